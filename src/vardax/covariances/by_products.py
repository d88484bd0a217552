"""What a covariance that is known by its products can answer about itself.

    matrix       B e_i for every unit field e_i, up to `DENSE_LIMIT` cells
    diagonal     ‖Lᵀ e_i‖², up to `DENSE_LIMIT` cells
    restriction  from the matrix, up to `RESTRICT_LIMIT` entries
    B⁻¹ v        by Cholesky factorisation up to `DENSE_LIMIT` cells, by conjugate gradients beyond
    log|B|       by Cholesky factorisation up to `DENSE_LIMIT` cells, by stochastic Lanczos quadrature beyond

For covariances without a formula of their own for these. None of them is part of an analysis.
"""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray, PyTree

from vardax.covariances.base import AbstractCovariance
from vardax.covariances.dense import factorise
from vardax.covariances.diagonal import safe_sqrt
from vardax.covariances.factors import ravel, unravel
from vardax.covariances.restriction import DenseRestriction, require_restrictable, restrict_dense
from vardax.covariances.sizes import DENSE_LIMIT, require_dense_size
from vardax.covariances.stochastic import conjugate_gradients, lanczos_logdet
from vardax.types import is_traced

__all__ = [
    "diagonal_by_products",
    "inverse_by_products",
    "logdet_by_products",
    "logdet_estimate",
    "matrix_by_products",
    "restrict_by_products",
]

ROWS_AT_ONCE = 128
"""How many unit fields are multiplied together."""

MOST_STEPS = 1000
"""Most conjugate-gradient steps of B⁻¹ v."""


def matrix_by_products(covariance: AbstractCovariance) -> Float[Array, "n n"]:
    """The matrix of B on ravelled fields, one product for each cell.

    >>> from vardax.covariances.diagonal import DiagonalCovariance
    >>> matrix_by_products(DiagonalCovariance([4.0, 9.0])).tolist()
    [[4.0, 0.0], [0.0, 9.0]]
    """
    require_dense_size(f"{type(covariance).__name__}.as_matrix", covariance.in_size())
    return _matrix(covariance)


def diagonal_by_products(covariance: AbstractCovariance) -> PyTree[Array]:
    """The variances, ‖Lᵀ e_i‖² for every cell: as many products as there are cells."""
    require_dense_size(
        f"{type(covariance).__name__}.diagonal",
        covariance.in_size(),
        "estimate the variances from samples, `jnp.var(B.sample(key, n), axis=0)`",
    )
    return unravel(_squared_rows(covariance), covariance.in_structure())


def restrict_by_products(
    covariance: AbstractCovariance,
    mask: ArrayLike | Sequence[Any],
    std: ArrayLike | Sequence[Any] | None = None,
) -> DenseRestriction:
    """R between the observed entries, from its matrix."""
    owner, structure = type(covariance).__name__, covariance.in_structure()
    if not isinstance(structure, jax.ShapeDtypeStruct):
        raise TypeError(f"{owner}.restrict: the fields are pytrees, expected an R on one array.")
    require_restrictable(owner, covariance.in_size())
    return restrict_dense(_matrix(covariance), structure.shape, mask, std)


def inverse_by_products(covariance: AbstractCovariance, vector: PyTree[Array]) -> PyTree[Array]:
    """B⁻¹ v. Exact up to `DENSE_LIMIT` cells, beyond to a relative residual of √ε (1.5e-8 in float64, 3e-4 in float32).

    Eagerly a solve that does not get there raises `ValueError`; while tracing its result is NaN.
    """
    owner, structure = f"{type(covariance).__name__}.inv_mv", covariance.in_structure()
    if covariance.in_size() <= DENSE_LIMIT:
        solution = jax.scipy.linalg.cho_solve((_cholesky(owner, covariance), True), ravel(vector))
        return unravel(solution, structure)
    tolerance = float(jnp.finfo(covariance.dtype).eps) ** 0.5
    solution, residual = _solve(covariance, ravel(vector), tolerance, MOST_STEPS)
    reached = residual <= 2 * tolerance
    if not is_traced(reached) and not reached:
        raise ValueError(
            f"{owner}: conjugate gradients stopped at a relative residual of {float(residual):.1e}, expected "
            f"{tolerance:.1e}: B is singular, or too ill-conditioned for {covariance.dtype.name}; work with `half`, or "
            "add a small variance."
        )
    return unravel(jnp.where(reached, solution, jnp.nan), structure)


def logdet_by_products(covariance: AbstractCovariance) -> Float[Array, ""]:
    """log|B|: exact up to `DENSE_LIMIT` cells, beyond the mean of `logdet_estimate`."""
    if covariance.in_size() <= DENSE_LIMIT:
        factor = _cholesky(f"{type(covariance).__name__}.logdet", covariance)
        return 2 * jnp.sum(jnp.log(jnp.diagonal(factor)))
    return logdet_estimate(covariance, jax.random.key(0))[0]


def logdet_estimate(
    covariance: AbstractCovariance, key: PRNGKeyArray, *, n_probes: int = 32, n_steps: int = 100
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """(log|B|, its standard error) by stochastic Lanczos quadrature of the correlation matrix.

    The standard error is that of the `n_probes` random vectors. The quadrature of each resolves condition numbers of
    the correlations up to about `n_steps`²; an ill-conditioned B needs more steps.
    """
    structure = covariance.in_structure()
    deviation = safe_sqrt(ravel(covariance.diagonal()))

    def correlate(vector: Array) -> Array:
        return ravel(covariance.mv(unravel(vector / deviation, structure))) / deviation

    start = jax.ShapeDtypeStruct((covariance.in_size(),), covariance.dtype)
    rest, error = lanczos_logdet(correlate, start, key, n_probes=n_probes, n_steps=n_steps)
    return 2 * jnp.sum(jnp.log(deviation)) + rest, error


def _cholesky(owner: str, covariance: AbstractCovariance) -> Float[Array, "n n"]:
    matrix = _matrix(covariance)
    factor, definite = factorise(owner, (matrix + matrix.T) / 2)
    if not definite:
        raise ValueError(
            f"{owner}: B is only positive semidefinite, so there is no inverse; work with `half`, or add a small "
            "variance, `B + DiagonalCovariance(...)`."
        )
    return factor


@eqx.filter_jit
def _matrix(covariance: AbstractCovariance) -> Float[Array, "n n"]:
    structure = covariance.in_structure()
    return _by_rows(covariance, lambda unit: ravel(covariance.mv(unravel(unit, structure))))


@eqx.filter_jit
def _squared_rows(covariance: AbstractCovariance) -> Float[Array, "n"]:
    transposed, structure = covariance.half().transpose(), covariance.in_structure()
    return _by_rows(covariance, lambda unit: jnp.sum(ravel(transposed.mv(unravel(unit, structure))) ** 2))


def _by_rows(covariance: AbstractCovariance, product: Any) -> Array:
    units = jnp.eye(covariance.in_size(), dtype=covariance.dtype)
    return jax.lax.map(product, units, batch_size=ROWS_AT_ONCE)


@eqx.filter_jit
def _solve(covariance: AbstractCovariance, vector: Array, tol: float, max_steps: int) -> tuple[Array, Array]:
    """Conjugate gradients, preconditioned by the variances."""
    structure = covariance.in_structure()
    variance = ravel(covariance.diagonal())
    return conjugate_gradients(
        lambda v: ravel(covariance.mv(unravel(v, structure))),
        vector,
        lambda residual: residual / variance,
        tol=tol,
        max_steps=max_steps,
    )
