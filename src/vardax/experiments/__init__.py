"""Named twin experiments, each a short citable file with the scores that it must give.

| module | holds |
|---|---|
| `lorenz63` | settings and expected scores of Lorenz-63 after Sakov, Oliver and Bertino (2012); `lorenz63_twin` |
| `lorenz96` | the same of Lorenz-96 after Sakov and Oke (2008); `lorenz96_twin` |
| `cycled` | what cycled experiments share: a row for every method |
| `index` | the names of the experiments |
| `config` | settings as frozen dataclasses, from TOML and `key=value` |
| `twin`, `recipes` | simulate a truth, make a row of every exported method, cycle it |
| `uncertainty` | the spread that a method expects, and how often its intervals hold the truth |
| `results`, `table`, `report` | scores; the table; the files and figures of a run |
| `progress` | a bar or lines on a terminal |
| `fitting` | `fit`, the trainer of learned methods |
| `checkpoints`, `training_log`, `training_data` | what `fit` leaves on the disk, and the order of its data |

Run one by `vardax run lorenz96`, or `lorenz96.run(lorenz96.Lorenz96Config(cycles=2000))`. To add one, write a module
with `Config`, `QUICK`, `EXPECTED` and `run`, and name it in `index`.
"""

import importlib
from typing import TYPE_CHECKING, Any

from vardax.experiments.index import EXPERIMENTS

if TYPE_CHECKING:
    from vardax.experiments.fitting import Fitted, fit

__all__ = ["EXPERIMENTS", "Fitted", "fit"]


def __getattr__(name: str) -> Any:
    """The trainer at its first use: the command line lists the experiments without starting JAX."""
    if name in ("Fitted", "fit"):
        return getattr(importlib.import_module("vardax.experiments.fitting"), name)
    raise AttributeError(f"module 'vardax.experiments' has no attribute {name!r}")
