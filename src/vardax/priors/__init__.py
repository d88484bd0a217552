"""Priors: reconstructions x -> phi(x) that stay close to x where x is plausible.

A learned method penalises ‖x - phi(x)‖², or `prior.cost(x)` where a prior has one. States are whole windows
(T, *state), without a batch axis.

    IdentityPrior             every state is plausible: observations alone
    GaussianPrior             the background term of classical methods, ½‖x - x_b‖²_{B⁻¹}
    DynamicalPrior            each entry follows from the one before by a model: weak-constraint 4D-Var
    DynIncrements, DynTrajectory   the same, and from the first entry, at given times, with a loss
    L63Prior, L96Prior        the models of Lorenz
"""

from vardax.priors.dynamical import AbstractDynamicalPrior, DynamicalPrior
from vardax.priors.gaussian import GaussianPrior
from vardax.priors.identity import IdentityPrior
from vardax.priors.intervals import Intervals
from vardax.priors.lorenz import L63Prior, L96Prior
from vardax.priors.temporal import DynIncrements, DynTrajectory

__all__ = [
    "AbstractDynamicalPrior",
    "DynIncrements",
    "DynTrajectory",
    "DynamicalPrior",
    "GaussianPrior",
    "IdentityPrior",
    "Intervals",
    "L63Prior",
    "L96Prior",
]
