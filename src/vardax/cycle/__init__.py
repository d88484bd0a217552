"""Cycled assimilation: the analysis of one time is the start of the forecast to the next.

`DACycle` filters (one observation time per analysis), `SmootherCycle` analyses windows. Both take any analysis step;
`VarDACycle` and `VarSmootherCycle` take a method. `DAState` is the clock that goes in and comes out, `CycleHistory`
what happened on the way.
"""

from vardax.cycle.filter import DACycle, VarDACycle
from vardax.cycle.smoother import SmootherCycle, VarSmootherCycle
from vardax.cycle.state import CycleHistory, CycleReport, DAState

__all__ = ["CycleHistory", "CycleReport", "DACycle", "DAState", "SmootherCycle", "VarDACycle", "VarSmootherCycle"]
