"""Error covariances as linear operators: B of the background, R of the observations, Q of the model.

    AbstractCovariance        the contract: products, square root, samples
    DiagonalCovariance        independent errors of any field shape: the usual R
    DenseCovariance           a matrix, factorised once: small systems, correlated R
    MaternLinearOperator      smooth fields on regular 1-D to 3-D grids, by FFT: B at any size
    DiffusionCovariance       the same with land, lengths that vary, any geometry; `Exact()`, `Randomised(n)`
    BlockDiagonalCovariance   one covariance per variable, instrument or time; fields that are pytrees
    RepeatedCovariance        the same covariance at several times: model errors of a window
    KroneckerCovariance       separable: a covariance for each axis, or group of axes
    ScaledCovariance          standard deviations that vary, times a correlation
    LowRankCovariance         a few modes: B by its square root
    LocalizedEnsembleCovariance, HybridCovariance   errors of the day, alone and with a static part
    BalancedCovariance        variables that depend on each other through a balance

    half(op)                  L with L Lᵀ = op, what every analysis uses
    sample(op, key, n)        fields drawn from N(0, op)
    diagonal(op)              the variances
    restrict(op, mask)        R between the observed entries
    inv_mv(op, v), logdet(op) for diagnostics; no analysis calls them

    fit_matern(samples)       length scales, σ and ν of samples, with standard errors
    nmc_covariance(pairs)     B from differences of forecasts

The functions take any lineax operator, also scaled, summed, composed or foreign ones. Fields keep their shape.
"""

from vardax.covariances.balanced import BalancedCovariance, BalancedFactor
from vardax.covariances.base import AbstractCovariance
from vardax.covariances.block_diagonal import BlockDiagonalCovariance, BlockFactor
from vardax.covariances.block_restriction import BatchedRestriction, JoinedRestriction
from vardax.covariances.chebyshev import ChebyshevExponential
from vardax.covariances.correlations import gaspari_cohn, matern_correlation
from vardax.covariances.dense import DenseCovariance
from vardax.covariances.diagonal import DiagonalCovariance
from vardax.covariances.diffusion import DiffusionCovariance, DiffusionFactor
from vardax.covariances.ensemble import EnsembleFactor, LocalizedEnsembleCovariance
from vardax.covariances.factors import AbstractFactor, ConcatenatedFactor, DenseFactor, TransposedFactor
from vardax.covariances.functions import diagonal, half, inv_mv, logdet, restrict, sample
from vardax.covariances.hybrid import HybridCovariance
from vardax.covariances.kronecker import KroneckerCovariance, KroneckerFactor
from vardax.covariances.low_rank import LowRankCovariance, LowRankFactor
from vardax.covariances.matern import MaternLinearOperator
from vardax.covariances.matern_fit import fit_matern
from vardax.covariances.nmc import nmc_covariance
from vardax.covariances.normalisation import EXACT_LIMIT, AbstractNormalisation, Exact, Randomised
from vardax.covariances.repeated import RepeatedCovariance, RepeatedFactor
from vardax.covariances.restriction import AbstractRestriction, DenseRestriction, DiagonalRestriction
from vardax.covariances.scaled import ScaledCovariance, ScaledFactor
from vardax.covariances.sizes import DENSE_LIMIT, RESTRICT_LIMIT
from vardax.covariances.spectral import SpectralFactor
from vardax.covariances.stencil import Stencil

__all__ = [
    "DENSE_LIMIT",
    "EXACT_LIMIT",
    "RESTRICT_LIMIT",
    "AbstractCovariance",
    "AbstractFactor",
    "AbstractNormalisation",
    "AbstractRestriction",
    "BalancedCovariance",
    "BalancedFactor",
    "BatchedRestriction",
    "BlockDiagonalCovariance",
    "BlockFactor",
    "ChebyshevExponential",
    "ConcatenatedFactor",
    "DenseCovariance",
    "DenseFactor",
    "DenseRestriction",
    "DiagonalCovariance",
    "DiagonalRestriction",
    "DiffusionCovariance",
    "DiffusionFactor",
    "EnsembleFactor",
    "Exact",
    "HybridCovariance",
    "JoinedRestriction",
    "KroneckerCovariance",
    "KroneckerFactor",
    "LocalizedEnsembleCovariance",
    "LowRankCovariance",
    "LowRankFactor",
    "MaternLinearOperator",
    "Randomised",
    "RepeatedCovariance",
    "RepeatedFactor",
    "ScaledCovariance",
    "ScaledFactor",
    "SpectralFactor",
    "Stencil",
    "TransposedFactor",
    "diagonal",
    "fit_matern",
    "gaspari_cohn",
    "half",
    "inv_mv",
    "logdet",
    "matern_correlation",
    "nmc_covariance",
    "restrict",
    "sample",
]
