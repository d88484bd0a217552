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
| `callable` | `CallableObs(fn)` | fn(x) |
| `module_operator` | `ModuleLinearOperator` | the linear operator of a linear module, as `linearize` returns it |
| `linearisation` | `linearise_operator`, `is_linear` | one linear operator from anyone's H; whether H is affine |
"""

from vardax.obs_operators.callable import CallableObs
from vardax.obs_operators.identity import MaskedIdentity
from vardax.obs_operators.interp import InterpObs, interp_obs_from_coords
from vardax.obs_operators.linear import LinearObs
from vardax.obs_operators.linearisation import is_linear, linearise_operator
from vardax.obs_operators.module_operator import ModuleLinearOperator
from vardax.obs_operators.point import PointObs

__all__ = [
    "CallableObs",
    "InterpObs",
    "LinearObs",
    "MaskedIdentity",
    "ModuleLinearOperator",
    "PointObs",
    "interp_obs_from_coords",
    "is_linear",
    "linearise_operator",
]
