"""`half`, `diagonal`, `inv_mv`, `logdet`, `sample` and `restrict` of any positive semidefinite lineax operator.

A user's B or R need not be one of ours. These functions look at how an operator is built and use that:

    operator                              half                       diagonal, inv_mv, logdet
    with a method of that name (ours)     that method                that method
    diagonal, identity, sums of these     √d                         elementwise
    c A,  A / c                           √c half(A)                 scaled
    A + B                                 [half(A) half(B)]          diagonal: the sum
    X C Xᵀ,  X Xᵀ                         X half(C),  X              elementwise where X is diagonal
    tagged A                              that of A                  that of A
    anything else                         from its matrix, up to `DENSE_LIMIT` rows; `ValueError` beyond

Fields may have any shape, or be pytrees; diagonals come back with the structure of the field. What is decided here is
decided by structure, so it works under `jit`, with one exception: that the last factor of X C Xᵀ is the transpose of
the first one is seen from their values, which are not there while tracing.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray, PyTree

from vardax.covariances.dense import factorise, square_root
from vardax.covariances.diagonal import safe_sqrt
from vardax.covariances.factors import ConcatenatedFactor, DenseFactor, ravel, require_structure, sample_factor, unravel
from vardax.covariances.restriction import (
    AbstractRestriction,
    require_restrictable,
    restrict_dense,
    restrict_diagonal,
)
from vardax.covariances.sizes import require_dense_size
from vardax.types import concrete_values, is_traced

__all__ = ["as_covariance", "diagonal", "half", "inv_mv", "is_diagonal", "logdet", "restrict", "sample"]

Operator = lx.AbstractLinearOperator


def half(op: Any) -> Operator:
    """L with L Lᵀ = `op`, from a control (`L.in_structure()`) to a field.

    >>> half(lx.DiagonalLinearOperator(jnp.array([4.0, 9.0]))).mv(jnp.array([1.0, 1.0]))
    Array([2., 3.], dtype=float32)
    """
    op = as_covariance("half", op)
    if own := _own(op, "half"):
        return own()
    if isinstance(op, lx.IdentityLinearOperator):
        return op
    if is_diagonal(op):
        variances = jax.tree.map(functools.partial(_not_negative, "half", "variance"), diagonal(op))
        return lx.DiagonalLinearOperator(jax.tree.map(safe_sqrt, variances))
    match op:
        case lx.TaggedLinearOperator():
            return half(op.operator)
        case lx.MulLinearOperator() | lx.DivLinearOperator():
            return half(op.operator) * safe_sqrt(_scale("half", op))
        case lx.AddLinearOperator():
            return ConcatenatedFactor((half(op.operator1), half(op.operator2)))
        case lx.ComposedLinearOperator():
            outer, inner = _sandwich(op)
            if outer:
                return functools.reduce(lambda a, b: a @ b, outer if inner is None else [*outer, half(inner)])
    return DenseFactor(square_root("half", _matrix("half", op)), op.out_structure())


def diagonal(op: Any) -> PyTree[Array]:
    """The variances, with the structure of a field.

    >>> diagonal(lx.MatrixLinearOperator(jnp.array([[2.0, 1.0], [1.0, 3.0]])))
    Array([2., 3.], dtype=float32)
    """
    op = as_covariance("diagonal", op)
    if own := _own(op, "diagonal"):
        return own()
    match op:
        case lx.IdentityLinearOperator():
            return jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), op.out_structure())
        case lx.DiagonalLinearOperator():
            return op.diagonal
        case lx.TaggedLinearOperator() if not is_diagonal(op) or is_diagonal(op.operator):
            return diagonal(op.operator)
        case lx.MulLinearOperator() | lx.DivLinearOperator():
            scale = _scalar(op)
            return jax.tree.map(lambda leaf: leaf * scale, diagonal(op.operator))
        case lx.NegLinearOperator():
            return jax.tree.map(jnp.negative, diagonal(op.operator))
        case lx.AddLinearOperator():
            return jax.tree.map(jnp.add, diagonal(op.operator1), diagonal(op.operator2))
        case lx.ComposedLinearOperator():
            weights, inner = _diagonal_sandwich(op)
            if weights is not None:
                return jax.tree.map(jnp.multiply, weights, diagonal(inner))
    if is_diagonal(op):
        return unravel(lx.diagonal(op), op.out_structure())
    return unravel(jnp.diagonal(_matrix("diagonal", op)), op.out_structure())


def inv_mv(op: Any, v: PyTree[ArrayLike]) -> PyTree[Array]:
    """`op`⁻¹ v. No analysis needs it: `half` is enough.

    >>> inv_mv(lx.DiagonalLinearOperator(jnp.array([4.0, 2.0])), jnp.array([4.0, 4.0]))
    Array([1., 2.], dtype=float32)
    """
    op = as_covariance("inv_mv", op)
    v = _field("inv_mv", op, v)
    if own := _own(op, "inv_mv"):
        return own(v)
    if isinstance(op, lx.IdentityLinearOperator):
        return v
    if is_diagonal(op):
        return jax.tree.map(jnp.divide, v, _invertible("inv_mv", diagonal(op)))
    match op:
        case lx.TaggedLinearOperator():
            return inv_mv(op.operator, v)
        case lx.MulLinearOperator() | lx.DivLinearOperator():
            scale = _invertible("inv_mv", _scale("inv_mv", op))
            return jax.tree.map(lambda leaf: leaf / scale, inv_mv(op.operator, v))
        case lx.ComposedLinearOperator():
            weights, inner = _diagonal_sandwich(op)
            if weights is not None:
                deviations = jax.tree.map(safe_sqrt, _invertible("inv_mv", weights))
                return jax.tree.map(jnp.divide, inv_mv(inner, jax.tree.map(jnp.divide, v, deviations)), deviations)
    return unravel(jax.scipy.linalg.cho_solve((_cholesky("inv_mv", op), True), ravel(v)), op.out_structure())


def logdet(op: Any) -> Float[Array, ""]:
    """log|`op`|.

    >>> logdet(lx.DiagonalLinearOperator(jnp.array([1.0, 1.0])))
    Array(0., dtype=float32)
    """
    op = as_covariance("logdet", op)
    if own := _own(op, "logdet"):
        return own()
    if isinstance(op, lx.IdentityLinearOperator):
        return jnp.zeros((), _dtype(op))
    if is_diagonal(op):
        return jnp.sum(jnp.log(ravel(_invertible("logdet", diagonal(op)))))
    match op:
        case lx.TaggedLinearOperator():
            return logdet(op.operator)
        case lx.MulLinearOperator() | lx.DivLinearOperator():
            scale = _invertible("logdet", _scale("logdet", op))
            return logdet(op.operator) + op.in_size() * jnp.log(scale)
        case lx.ComposedLinearOperator():
            weights, inner = _diagonal_sandwich(op)
            if weights is not None:
                return logdet(inner) + jnp.sum(jnp.log(ravel(_invertible("logdet", weights))))
    return 2 * jnp.sum(jnp.log(jnp.diagonal(_cholesky("logdet", op))))


def sample(op: Any, key: PRNGKeyArray, n: int) -> PyTree[Array]:
    """`n` fields drawn from N(0, `op`), stacked on axis 0 of each leaf.

    >>> sample(lx.DiagonalLinearOperator(jnp.array([4.0, 9.0])), jax.random.key(0), 5).shape
    (5, 2)
    """
    return sample_factor(half(op), key, n)


def restrict(
    op: Any, mask: ArrayLike | Sequence[Any], *, std: ArrayLike | Sequence[Any] | None = None
) -> AbstractRestriction:
    """The observed part of an observation-error covariance, factorised once (see `vardax.covariances.restriction`).

    `mask` has the shape of the observations, 1 observed, 0 missing. `std` replaces the standard deviations of `op` and
    keeps its correlations.

    >>> restrict(lx.DiagonalLinearOperator(jnp.array([4.0, 9.0])), jnp.array([0.0, 1.0])).whiten(jnp.array([1.0, 6.0]))
    Array([0., 2.], dtype=float32)
    """
    op = as_covariance("restrict", op)
    if own := _own(op, "restrict"):
        return own(mask) if std is None else own(mask, std=std)
    structure = op.out_structure()
    if not isinstance(structure, jax.ShapeDtypeStruct):
        raise TypeError(f"restrict: `op` acts on {structure}, expected one array; restrict each block by itself.")
    if isinstance(op, lx.IdentityLinearOperator) or is_diagonal(op):
        return restrict_diagonal(diagonal(op), mask, std)
    if isinstance(op, lx.TaggedLinearOperator):
        return restrict(op.operator, mask, std=std)
    require_restrictable(type(op).__name__, op.in_size())
    return restrict_dense(op.as_matrix(), structure.shape, mask, std)


WRAP = "wrap a matrix in `DenseCovariance` and variances in `DiagonalCovariance`"


def as_covariance(owner: str, op: Any, name: str = "op", remedy: str = WRAP) -> Operator:
    """`op` itself, or wrapped when it only looks like a lineax operator; square in any case."""
    if not isinstance(op, Operator):
        if not (callable(getattr(op, "mv", None)) and callable(getattr(op, "in_structure", None))):
            raise TypeError(f"{owner}: `{name}` is {type(op).__name__}, expected a lineax linear operator; {remedy}.")
        op = lx.FunctionLinearOperator(op.mv, op.in_structure(), lx.positive_semidefinite_tag)
    if op.in_structure() != op.out_structure():
        raise ValueError(
            f"{owner}: `{name}` takes {op.in_structure()} to {op.out_structure()}, expected a covariance, whose input "
            "and output are fields of one structure."
        )
    return op


def _own(op: Any, name: str) -> Any:
    """The method of that name, if the operator has one: all covariances of vardax do."""
    method = getattr(op, name, None)
    return method if callable(method) else None


def is_diagonal(op: Operator) -> bool:
    """Whether the operator is diagonal by structure or tag; a foreign one without lineax's hooks does not say."""
    try:
        return lx.is_diagonal(op)
    except NotImplementedError:
        return False


def _dtype(op: Operator) -> Any:
    return functools.reduce(jnp.promote_types, [leaf.dtype for leaf in jax.tree.leaves(op.out_structure())])


def _field(owner: str, op: Operator, v: PyTree[ArrayLike]) -> PyTree[Array]:
    v = jax.tree.map(jnp.asarray, v)
    require_structure(owner, "v", v, op.in_structure())
    return v


def _scalar(op: lx.MulLinearOperator | lx.DivLinearOperator) -> Float[Array, ""]:
    scalar = op.scalar.astype(_dtype(op))
    return scalar if isinstance(op, lx.MulLinearOperator) else 1 / scalar


def _scale(owner: str, op: lx.MulLinearOperator | lx.DivLinearOperator) -> Float[Array, ""]:
    return _not_negative(owner, "scalar", _scalar(op))


def _not_negative(owner: str, name: str, x: Array) -> Array:
    values = concrete_values(x)
    if values is not None and not np.all(values >= 0):
        raise ValueError(
            f"{owner}: `op` is not positive semidefinite: its {name} is negative or NaN (smallest {values.min()})."
        )
    return x


def _invertible(owner: str, tree: PyTree[Array]) -> PyTree[Array]:
    for leaf in jax.tree.leaves(tree):
        values = concrete_values(leaf)
        if values is not None and not np.all(values > 0):
            raise ValueError(
                f"{owner}: `op` has variances that are not positive (smallest {values.min()}), so it has no inverse; "
                "leave those entries out, or work with `half`."
            )
    return tree


def _matrix(owner: str, op: Operator) -> Float[Array, "n n"]:
    require_dense_size(
        f"{owner} of {type(op).__name__}, of which no structure is known,",
        op.in_size(),
        "build it from covariances (scaled, summed, or X C Xᵀ with X.T as the last factor), or give it a method "
        f"`{owner}`",
    )
    return op.as_matrix()


def _cholesky(owner: str, op: Operator) -> Float[Array, "n n"]:
    factor, definite = factorise(owner, _matrix(owner, op))
    if not definite:
        raise ValueError(
            f"{owner}: `op` is only positive semidefinite, so it has no inverse; work with `half`, or add a small "
            "variance to its diagonal."
        )
    return factor


def _sandwich(op: Operator) -> tuple[list[Operator], Operator | None]:
    """([X, Y, ...], C) of X Y ... C ... Yᵀ Xᵀ; C is None for X Xᵀ, and the list is empty for anything else."""
    chain, outer = _chain(op), []
    while len(chain) > 1 and _is_transpose(chain[-1], chain[0]):
        outer.append(chain[0])
        chain = chain[1:-1]
    return outer, functools.reduce(lambda a, b: a @ b, chain) if chain else None


def _diagonal_sandwich(op: Operator) -> tuple[PyTree[Array] | None, Operator]:
    """(d², C) of diag(d) C diag(d); (None, op) for anything else."""
    outer, inner = _sandwich(op)
    if inner is None or not outer or not all(is_diagonal(factor) for factor in outer):
        return None, op
    deviations = functools.reduce(functools.partial(jax.tree.map, jnp.multiply), [diagonal(factor) for factor in outer])
    return jax.tree.map(jnp.square, deviations), inner


def _chain(op: Operator) -> list[Operator]:
    """The factors of a composition, from the left."""
    match op:
        case lx.ComposedLinearOperator():
            return _chain(op.operator1) + _chain(op.operator2)
        case lx.TaggedLinearOperator(operator=lx.ComposedLinearOperator()):
            return _chain(op.operator)
    return [op]


def _is_transpose(last: Operator, first: Operator) -> bool:
    """Whether `last` is `first`ᵀ: built alike from the same arrays, or from arrays with equal values."""
    if last.in_structure() != first.out_structure() or last.out_structure() != first.in_structure():
        return False
    if isinstance(last, lx.MatrixLinearOperator) and isinstance(first, lx.MatrixLinearOperator):
        return _equal(last.matrix, first.matrix.T)
    mine, my_structure = jax.tree.flatten(last)
    theirs, their_structure = jax.tree.flatten(first.transpose())
    return my_structure == their_structure and all(map(_equal, mine, theirs))


def _equal(a: Any, b: Any) -> bool:
    if a is b:
        return True
    if is_traced(a) or is_traced(b):
        return False
    return np.shape(a) == np.shape(b) and bool(np.all(np.asarray(a) == np.asarray(b)))
