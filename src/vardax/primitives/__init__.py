"""The mathematics as pure functions: costs, BLUE, the control-variable transform, the tangent-linear of a function.

`costs` holds the terms of J, `cost_functions` the costs of the methods as objects, `blue` the closed-form analysis,
`control` the transform to control space and `tangent_linear`, `incremental` the outer and inner loops of 4DVar,
`latent` the costs in latent space. The methods of `vardax.models` are built on the same control-space problem and need
none of the inverses that some of these take.
"""

from vardax.primitives.blue import blue_analysis
from vardax.primitives.control import cvt_inverse, cvt_transform, tangent_linear
from vardax.primitives.cost_functions import (
    BLUECost,
    FourDVarNetCost,
    IncrementalCost,
    StrongConstraintCost,
    ThreeDVarCost,
    WeakConstraintCost,
)
from vardax.primitives.costs import model_error_cost, obs_cost, prior_cost, threedvar_cost, variational_cost
from vardax.primitives.hessians import GaussNewtonOperator, gauss_newton_hessian, laplace_covariance
from vardax.primitives.incremental import gauss_newton_inner, incremental_cost, incremental_outer
from vardax.primitives.latent import (
    decode_jacobian,
    identity_latent_map,
    latent_incremental_cost,
    obs_misfit_latent_seq,
    variational_cost_latent,
)

__all__ = [
    "BLUECost",
    "FourDVarNetCost",
    "GaussNewtonOperator",
    "IncrementalCost",
    "StrongConstraintCost",
    "ThreeDVarCost",
    "WeakConstraintCost",
    "blue_analysis",
    "cvt_inverse",
    "cvt_transform",
    "decode_jacobian",
    "gauss_newton_hessian",
    "gauss_newton_inner",
    "identity_latent_map",
    "incremental_cost",
    "incremental_outer",
    "laplace_covariance",
    "latent_incremental_cost",
    "model_error_cost",
    "obs_cost",
    "obs_misfit_latent_seq",
    "prior_cost",
    "tangent_linear",
    "threedvar_cost",
    "variational_cost",
    "variational_cost_latent",
]
