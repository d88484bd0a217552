"""From state space to observation space.

An observation operator predicts what would be observed, y = H(x), and gives its tangent H'(x) as a lineax operator
whose transpose is exact. All are modules with traced arrays: new matrices, indices or positions of the same shape do
not compile again.

| module | operator | y = |
|---|---|---|
| `identity` | `MaskedIdentity()` | x, the gaps come with the batch |
| `linear` | `LinearObs(H)` | H x |
| `point` | `PointObs(indices)` | x at these entries |
| `interp` | `InterpObs`, `interp_obs_from_coords` | x interpolated to these positions |
| `cells`, `periods` | | of `interp`: cells along axes, corners without land; what closes and what repeats |
| `quads`, `quad_table`, `quad_search` | | of `interp`: the cells of a curvilinear grid, and how they are found |
| `callable` | `CallableObs(fn)` | fn(x) |
| `composite` | `CompositeObs(*ops)` | one operator after another |
| `averaging_kernel` | `AveragingKernel(A, x_a, h)` | A (h x + (1 - h) x_a) |
| `retrieval_kernel` | `RetrievalKernel(A, x_a)` | x_a + A (x - x_a) |
| `column_retrieval` | `ColumnRetrieval` | satellite columns, a kernel and an a priori for each sounding |
| `l2` | `averaging_kernel_from_l2` | these from the variables of a satellite product |
| `instruments` | `InstrumentSpec`, `InstrumentRegistry` | an instrument: operator, mask, R, name |
| `fusion` | `MultiInstrumentFusion` | all instruments of a registry, by name |
| `fused`, `scattered` | `FusedObs`, `ScatteredObs` | all instruments as one vector, in places or in any order |
| `instrument_errors` | `InstrumentErrors` | R of one instrument, ravelled and weighted |
| `module_operator` | `ModuleLinearOperator` | the linear operator of a linear module, as `linearize` returns it |
| `linearisation` | `linearise_operator`, `is_linear` | one linear operator from anyone's H; whether H is affine |
"""

from vardax.obs_operators.averaging_kernel import AveragingKernel
from vardax.obs_operators.callable import CallableObs
from vardax.obs_operators.column_retrieval import ColumnRetrieval
from vardax.obs_operators.composite import CompositeObs
from vardax.obs_operators.fused import FusedObs
from vardax.obs_operators.fusion import MultiInstrumentFusion
from vardax.obs_operators.identity import MaskedIdentity
from vardax.obs_operators.instrument_errors import InstrumentErrors
from vardax.obs_operators.instruments import InstrumentRegistry, InstrumentSpec
from vardax.obs_operators.interp import InterpObs, interp_obs_from_coords
from vardax.obs_operators.l2 import averaging_kernel_from_l2
from vardax.obs_operators.linear import LinearObs
from vardax.obs_operators.linearisation import is_linear, linearise_operator
from vardax.obs_operators.module_operator import ModuleLinearOperator
from vardax.obs_operators.point import PointObs
from vardax.obs_operators.retrieval_kernel import RetrievalKernel
from vardax.obs_operators.scattered import ScatteredObs

__all__ = [
    "AveragingKernel",
    "CallableObs",
    "ColumnRetrieval",
    "CompositeObs",
    "FusedObs",
    "InstrumentErrors",
    "InstrumentRegistry",
    "InstrumentSpec",
    "InterpObs",
    "LinearObs",
    "MaskedIdentity",
    "ModuleLinearOperator",
    "MultiInstrumentFusion",
    "PointObs",
    "RetrievalKernel",
    "ScatteredObs",
    "averaging_kernel_from_l2",
    "interp_obs_from_coords",
    "is_linear",
    "linearise_operator",
]
