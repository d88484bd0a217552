"""What a covariance is: a symmetric positive semidefinite linear operator on fields, with a square root.

A covariance B acts on arrays of one field shape, `v -> B v`, and never needs its matrix. Everything an analysis asks of
it goes through products: `mv` (B v), `half` (an operator L with L Lᵀ = B, possibly rectangular), `diagonal` (the
variances), `sample` (L times white noise) and, for observation errors, `restrict` (the observed part of R). `inv_mv`
and `logdet` exist for those who want B⁻¹ and log|B|; no analysis calls them.

A covariance is a `lineax` operator: it can be added, scaled, composed and handed to `lineax.linear_solve`. What lineax
asks through its `singledispatch` hooks is answered here once, for all covariances. Positive semidefiniteness follows
from how a covariance is built (squares of a factor), not from its values, so it holds under `jit`, `vmap` and `grad`.
"""

import abc
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from vardax.covariances.factors import require_structure, sample_factor
from vardax.covariances.restriction import AbstractRestriction
from vardax.types import float_array

__all__ = ["AbstractCovariance", "real_array"]


class AbstractCovariance(lx.AbstractLinearOperator):
    """A covariance of fields of one shape, `in_structure() == out_structure()`.

    A subclass stores what its square root needs and says how to multiply with it. The rest of lineax's contract
    (`transpose`, `out_structure`, all hooks) is settled here.

    **To add one**, subclass this in a file of its own, implement the abstract methods, and export it from
    `vardax.covariances`.
    """

    diagonal_matrix: eqx.AbstractClassVar[bool]
    """Whether every operator of this class has a diagonal matrix."""

    @property
    @abc.abstractmethod
    def shape(self) -> tuple[int, ...]:
        """The shape of the fields."""

    @property
    @abc.abstractmethod
    def dtype(self) -> Any:
        """The dtype of the fields."""

    @abc.abstractmethod
    def mv(self, vector: ArrayLike) -> Float[Array, "..."]:
        """B v, a field."""

    @abc.abstractmethod
    def half(self) -> lx.AbstractLinearOperator:
        """L with L Lᵀ = B: `L.mv` takes a control to a field, `L.T.mv` a field to a control.

        The control need not have the shape of the field; `L.in_structure()` says what it is.
        """

    @abc.abstractmethod
    def diagonal(self) -> Float[Array, "..."]:
        """The variances, a field."""

    @abc.abstractmethod
    def as_matrix(self) -> Float[Array, "n n"]:
        """The matrix on row-major ravelled fields, for small sizes (`DENSE_LIMIT`)."""

    @abc.abstractmethod
    def inv_mv(self, vector: ArrayLike) -> Float[Array, "..."]:
        """B⁻¹ v, a field."""

    @abc.abstractmethod
    def logdet(self) -> Float[Array, ""]:
        """log|B|."""

    @abc.abstractmethod
    def restrict(
        self, mask: ArrayLike | Sequence[Any], *, std: ArrayLike | Sequence[Any] | None = None
    ) -> AbstractRestriction:
        """The part of B between entries where `mask` is 1 (see `vardax.covariances.restriction`)."""

    def sample(self, key: PRNGKeyArray, n: int) -> Float[Array, "n ..."]:
        """`n` fields drawn from N(0, B), stacked on axis 0: L times white noise."""
        return sample_factor(self.half(), key, n)

    def transpose(self) -> "AbstractCovariance":
        return self

    def in_structure(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(self.shape, self.dtype)

    def out_structure(self) -> jax.ShapeDtypeStruct:
        return self.in_structure()

    def field(self, vector: ArrayLike) -> Float[Array, "..."]:
        """`vector` as an array, after a check that it is a field of this covariance."""
        array = jnp.asarray(vector)
        require_structure(type(self).__name__, "vector", array, self.in_structure())
        return array


def real_array(owner: str, name: str, x: ArrayLike | Sequence[Any], dtype: Any = None) -> Float[Array, "..."]:
    """`x` as a floating-point array: its own float dtype, or `dtype`, or the default for numbers without one."""
    array = float_array(x)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(f"{owner}: `{name}` has dtype {array.dtype}, expected real numbers.")
    return array.astype(array.dtype if dtype is None else dtype)


def _is_diagonal(operator: AbstractCovariance) -> bool:
    return operator.diagonal_matrix or operator.in_size() == 1


for _hook in (lx.linearise, lx.conj):
    _hook.register(AbstractCovariance)(lambda operator: operator)

for _hook in (lx.is_symmetric, lx.is_positive_semidefinite):
    _hook.register(AbstractCovariance)(lambda operator: True)

for _hook in (lx.is_negative_semidefinite, lx.has_unit_diagonal):
    _hook.register(AbstractCovariance)(lambda operator: False)

for _hook in (lx.is_diagonal, lx.is_tridiagonal, lx.is_lower_triangular, lx.is_upper_triangular):
    _hook.register(AbstractCovariance)(_is_diagonal)


@lx.diagonal.register(AbstractCovariance)
def _(operator: AbstractCovariance):
    return jnp.ravel(operator.diagonal())


@lx.tridiagonal.register(AbstractCovariance)
def _(operator: AbstractCovariance):
    if _is_diagonal(operator):
        off_diagonal = jnp.zeros(operator.in_size() - 1, operator.dtype)
        return jnp.ravel(operator.diagonal()), off_diagonal, off_diagonal
    matrix = operator.as_matrix()
    return jnp.diagonal(matrix), jnp.diagonal(matrix, offset=-1), jnp.diagonal(matrix, offset=1)


@lx.materialise.register(AbstractCovariance)
def _(operator: AbstractCovariance):
    if _is_diagonal(operator):
        return operator
    blocks = operator.as_matrix().reshape(operator.shape + operator.shape)
    return lx.PyTreeLinearOperator(blocks, operator.out_structure(), lx.positive_semidefinite_tag)
