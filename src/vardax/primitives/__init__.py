"""The mathematics as pure functions: costs, BLUE, the control-variable transform, the tangent-linear of a function.

`costs` holds the terms of J, `cost_functions` the costs of the methods as objects, `blue` the closed-form analysis,
`control` the transform to control space and `tangent_linear`. The methods of `vardax.models` are built on the same
control-space problem and need none of the inverses that some of these take.
"""

from vardax.primitives.blue import blue_analysis
from vardax.primitives.control import cvt_inverse, cvt_transform, tangent_linear
from vardax.primitives.cost_functions import BLUECost, StrongConstraintCost, ThreeDVarCost
from vardax.primitives.costs import model_error_cost, obs_cost, prior_cost, threedvar_cost, variational_cost

__all__ = [
    "BLUECost",
    "StrongConstraintCost",
    "ThreeDVarCost",
    "blue_analysis",
    "cvt_inverse",
    "cvt_transform",
    "model_error_cost",
    "obs_cost",
    "prior_cost",
    "tangent_linear",
    "threedvar_cost",
    "variational_cost",
]
