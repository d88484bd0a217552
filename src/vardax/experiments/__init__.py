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

Run one by `vardax run lorenz96`, or `lorenz96.run(lorenz96.Lorenz96Config(cycles=2000))`. To add one, write a module
with `Config`, `QUICK`, `EXPECTED` and `run`, and name it in `index`.
"""

from vardax.experiments.index import EXPERIMENTS

__all__ = ["EXPERIMENTS"]
