"""Error covariances as linear operators: B of the background, R of the observations, Q of the model.

    AbstractCovariance        the contract: products, square root, samples
    DiagonalCovariance        independent errors of any field shape: the usual R
    DenseCovariance           a matrix, factorised once: small systems, correlated R
    MaternLinearOperator      smooth fields on regular 1-D to 3-D grids, by FFT: B at any size
    BlockDiagonalCovariance   one covariance per variable, instrument or time; fields that are pytrees

    half(op)                  L with L Lᵀ = op, what every analysis uses
    sample(op, key, n)        fields drawn from N(0, op)
    diagonal(op)              the variances
    restrict(op, mask)        R between the observed entries
    inv_mv(op, v), logdet(op) for diagnostics; no analysis calls them

The functions take any lineax operator, also scaled, summed, composed or foreign ones. Fields keep their shape.
"""

from vardax.covariances.base import AbstractCovariance
from vardax.covariances.block_diagonal import BlockDiagonalCovariance, BlockFactor
from vardax.covariances.block_restriction import BatchedRestriction, JoinedRestriction
from vardax.covariances.correlations import matern_correlation
from vardax.covariances.dense import DenseCovariance
from vardax.covariances.diagonal import DiagonalCovariance
from vardax.covariances.factors import AbstractFactor, ConcatenatedFactor, DenseFactor, TransposedFactor
from vardax.covariances.functions import diagonal, half, inv_mv, logdet, restrict, sample
from vardax.covariances.matern import MaternLinearOperator
from vardax.covariances.restriction import AbstractRestriction, DenseRestriction, DiagonalRestriction
from vardax.covariances.sizes import DENSE_LIMIT, RESTRICT_LIMIT
from vardax.covariances.spectral import SpectralFactor

__all__ = [
    "DENSE_LIMIT",
    "RESTRICT_LIMIT",
    "AbstractCovariance",
    "AbstractFactor",
    "AbstractRestriction",
    "BatchedRestriction",
    "BlockDiagonalCovariance",
    "BlockFactor",
    "ConcatenatedFactor",
    "DenseCovariance",
    "DenseFactor",
    "DenseRestriction",
    "DiagonalCovariance",
    "DiagonalRestriction",
    "JoinedRestriction",
    "MaternLinearOperator",
    "SpectralFactor",
    "TransposedFactor",
    "diagonal",
    "half",
    "inv_mv",
    "logdet",
    "matern_correlation",
    "restrict",
    "sample",
]
