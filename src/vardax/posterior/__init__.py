"""Posteriors: the analysis with its uncertainty, and the adapters that make one from an analysis."""

from vardax.posterior.laplace import LaplaceCovariance, PosteriorCovariance
from vardax.posterior.posterior import Posterior

__all__ = ["LaplaceCovariance", "Posterior", "PosteriorCovariance"]
