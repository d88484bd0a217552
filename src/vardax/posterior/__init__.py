"""Posteriors: the analysis with its uncertainty, and the adapters that make one from an analysis."""

from vardax.posterior.covariance import PosteriorCovariance
from vardax.posterior.ensemble import EnsembleCovariance
from vardax.posterior.gauss_newton_hessian import GaussNewtonHessian
from vardax.posterior.inverses import AbstractInverse, DenseInverse, IterativeInverse, KrylovInverse
from vardax.posterior.laplace import LaplaceCovariance
from vardax.posterior.latent import DecodedState, LatentLaplaceCovariance, LatentVector
from vardax.posterior.marks import GaussianMarkLikelihood
from vardax.posterior.posterior import Posterior
from vardax.posterior.quantities import AbstractQuantity, Entry, State, Trajectory, Untransformed

__all__ = [
    "AbstractInverse",
    "AbstractQuantity",
    "DecodedState",
    "DenseInverse",
    "EnsembleCovariance",
    "Entry",
    "GaussNewtonHessian",
    "GaussianMarkLikelihood",
    "IterativeInverse",
    "KrylovInverse",
    "LaplaceCovariance",
    "LatentLaplaceCovariance",
    "LatentVector",
    "Posterior",
    "PosteriorCovariance",
    "State",
    "Trajectory",
    "Untransformed",
]
