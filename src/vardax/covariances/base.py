"""What a covariance is: a symmetric positive semidefinite linear operator on fields, with a square root.

A covariance B acts on fields of one structure, `v -> B v`, and never needs its matrix. A field is an array, or a pytree
of arrays where a state has several variables. Everything an analysis asks of it goes through products: `mv` (B v),
`half` (an operator L with L Lᵀ = B, possibly rectangular), `diagonal` (the variances), `sample` (L times white noise)
and, for observation errors, `restrict` (the observed part of R). `inv_mv` and `logdet` exist for those who want B⁻¹ and
log|B|; no analysis calls them.

A covariance is a `lineax` operator: it can be added, scaled, composed and handed to `lineax.linear_solve`. What lineax
asks through its `singledispatch` hooks is answered here once, for all covariances. Positive semidefiniteness follows
from how a covariance is built (squares of a factor), not from its values, so it holds under `jit`, `vmap` and `grad`.
"""

import abc
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray, PyTree

from vardax.covariances.factors import ravel, require_structure, sample_factor
from vardax.covariances.restriction import AbstractRestriction
from vardax.types import float_array

__all__ = ["AbstractCovariance", "real_array", "real_tree", "register_semidefinite"]


class AbstractCovariance(lx.AbstractLinearOperator):
    """A covariance of fields of one structure, `in_structure() == out_structure()`: an array, or a pytree of arrays.

    A subclass stores what its square root needs and says how to multiply with it. The rest of lineax's contract
    (`transpose`, `out_structure`, all hooks) is settled here.

    **To add one**, subclass this in a file of its own, implement the abstract methods, and export it from
    `vardax.covariances`. What has no formula of its own, such as the matrix, follows from products
    (`vardax.covariances.by_products`).
    """

    @property
    @abc.abstractmethod
    def diagonal_matrix(self) -> bool:
        """Whether the matrix is diagonal by construction."""

    @abc.abstractmethod
    def in_structure(self) -> PyTree[jax.ShapeDtypeStruct]:
        """Shape and dtype of a field, or a pytree of these."""

    @abc.abstractmethod
    def mv(self, vector: PyTree[ArrayLike]) -> PyTree[Array]:
        """B v, a field."""

    @abc.abstractmethod
    def half(self) -> lx.AbstractLinearOperator:
        """L with L Lᵀ = B: `L.mv` takes a control to a field, `L.T.mv` a field to a control.

        The control need not have the shape of the field; `L.in_structure()` says what it is.
        """

    @abc.abstractmethod
    def diagonal(self) -> PyTree[Array]:
        """The variances, a field."""

    @abc.abstractmethod
    def as_matrix(self) -> Float[Array, "n n"]:
        """The matrix on row-major ravelled fields, for small sizes (`DENSE_LIMIT`)."""

    @abc.abstractmethod
    def inv_mv(self, vector: PyTree[ArrayLike]) -> PyTree[Array]:
        """B⁻¹ v, a field."""

    @abc.abstractmethod
    def logdet(self) -> Float[Array, ""]:
        """log|B|."""

    @abc.abstractmethod
    def restrict(
        self, mask: ArrayLike | Sequence[Any], *, std: ArrayLike | Sequence[Any] | None = None
    ) -> AbstractRestriction:
        """The part of B between entries where `mask` is 1 (see `vardax.covariances.restriction`)."""

    @property
    def shape(self) -> PyTree[tuple[int, ...]]:
        """The shape of the fields; a pytree of shapes where they are pytrees."""
        return jax.tree.map(lambda leaf: leaf.shape, self.in_structure())

    @property
    def dtype(self) -> Any:
        """The dtype of the fields; where their arrays differ, the one they have in common."""
        return functools.reduce(jnp.promote_types, [leaf.dtype for leaf in jax.tree.leaves(self.in_structure())])

    def sample(self, key: PRNGKeyArray, n: int) -> PyTree[Array]:
        """`n` fields drawn from N(0, B), stacked on axis 0 (of each array): L times white noise."""
        return sample_factor(self.half(), key, n)

    def transpose(self) -> "AbstractCovariance":
        return self

    def out_structure(self) -> PyTree[jax.ShapeDtypeStruct]:
        return self.in_structure()

    def field(self, vector: PyTree[ArrayLike]) -> Any:
        """`vector` as arrays, after a check that it is a field of this covariance."""
        structure = self.in_structure()
        tree = isinstance(vector, dict) or not isinstance(structure, jax.ShapeDtypeStruct)
        field = jax.tree.map(jnp.asarray, vector) if tree else jnp.asarray(vector)
        require_structure(type(self).__name__, "vector", field, structure)
        return field


def real_array(owner: str, name: str, x: ArrayLike | Sequence[Any], dtype: Any = None) -> Float[Array, "..."]:
    """`x` as a floating-point array: its own float dtype, or `dtype`, or the default for numbers without one."""
    array = float_array(x)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(f"{owner}: `{name}` has dtype {array.dtype}, expected real numbers.")
    return array.astype(array.dtype if dtype is None else dtype)


def real_tree(owner: str, name: str, x: Any, dtype: Any = None) -> PyTree[Array]:
    """`x`, an array (also as nested lists) or a pytree of arrays of one dtype, as floating-point arrays."""
    if isinstance(x, list | tuple) and all(np.ndim(leaf) == 0 for leaf in jax.tree.leaves(x)):
        return real_array(owner, name, x, dtype)
    tree = jax.tree.map(lambda leaf: real_array(owner, name, leaf, dtype), x)
    dtypes = sorted({leaf.dtype.name for leaf in jax.tree.leaves(tree)})
    if len(dtypes) != 1:
        found = f"arrays of the dtypes {', '.join(dtypes)}" if dtypes else "no arrays"
        raise ValueError(f"{owner}: `{name}` holds {found}, expected arrays of one; give `dtype=`.")
    return tree


def _is_diagonal(operator: AbstractCovariance) -> bool:
    return operator.diagonal_matrix or operator.in_size() == 1


def register_semidefinite(
    cls: type[lx.AbstractLinearOperator], is_diagonal: Callable[[Any], bool] = lambda operator: False
) -> None:
    """Tell lineax that operators of `cls` are symmetric and positive semidefinite, and which of them are diagonal."""
    for hook in (lx.linearise, lx.conj):
        hook.register(cls)(lambda operator: operator)
    for hook in (lx.is_symmetric, lx.is_positive_semidefinite):
        hook.register(cls)(lambda operator: True)
    for hook in (lx.is_negative_semidefinite, lx.has_unit_diagonal):
        hook.register(cls)(lambda operator: False)
    for hook in (lx.is_diagonal, lx.is_tridiagonal, lx.is_lower_triangular, lx.is_upper_triangular):
        hook.register(cls)(is_diagonal)


register_semidefinite(AbstractCovariance, _is_diagonal)


@lx.diagonal.register(AbstractCovariance)
def _(operator: AbstractCovariance):
    return ravel(operator.diagonal())


@lx.tridiagonal.register(AbstractCovariance)
def _(operator: AbstractCovariance):
    if _is_diagonal(operator):
        off_diagonal = jnp.zeros(operator.in_size() - 1, operator.dtype)
        return ravel(operator.diagonal()), off_diagonal, off_diagonal
    matrix = operator.as_matrix()
    return jnp.diagonal(matrix), jnp.diagonal(matrix, offset=-1), jnp.diagonal(matrix, offset=1)


@lx.materialise.register(AbstractCovariance)
def _(operator: AbstractCovariance):
    if _is_diagonal(operator):
        return operator
    structure = operator.in_structure()
    if not isinstance(structure, jax.ShapeDtypeStruct):
        return lx.materialise(lx.FunctionLinearOperator(operator.mv, structure, lx.positive_semidefinite_tag))
    blocks = operator.as_matrix().reshape(structure.shape + structure.shape)
    return lx.PyTreeLinearOperator(blocks, structure, lx.positive_semidefinite_tag)
