"""Truncated conjugate gradients for the quadratic of an outer loop, with the Lanczos record of what they saw.

    (I + GᵀG) dchi = b,      b = -∇J(chi),      A = I + GᵀG

The iteration starts at zero, stops at a tolerance or after a given number of steps, and never raises: each iterate
lowers the quadratic, so a truncated one is still a step downhill. Its residuals, normalised, are the Lanczos vectors
of A, and its step lengths give the tridiagonal matrix T = VᵀAV, whose eigenvalues (Ritz values) approach those of A.

The same recursion runs on two representations of a vector of the control space, so that both give the same iterates:

- `ControlVectors`: the vector itself;
- `ImageVectors`: v = a b + Mᵀ w by its coefficients (a, w) and its image M v. With M = G these are as long as the
  observations (`DualCG`: restricted preconditioned conjugate gradients), with M = B^{1/2} they are states (no
  control-variable transform: the pairs dx, B⁻¹dx).

Golub, G. and Van Loan, C. (2013). Matrix Computations, 4th ed., section 11.3 (conjugate gradients and Lanczos).
Gratton, S. and Tshimanga, J. (2009). An observation-space formulation of variational assimilation using a restricted
preconditioned conjugate gradient algorithm. QJRMS 135, 1573-1585.
"""

import abc
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from vardax.minimisers.problem import tree_dot

__all__ = [
    "AbstractVectors",
    "ControlVectors",
    "ImageVectors",
    "KrylovRecord",
    "RitzPairs",
    "combine",
    "conjugate_gradients",
]

CONVERGED_PAIR = 1e-2
"""A Ritz pair counts as an eigenpair when its residual is below this fraction of its value."""


def _plus(u: PyTree[Array], scale: Array, v: PyTree[Array]) -> PyTree[Array]:
    """u + scale v."""
    return jax.tree.map(lambda a, b: a + scale.astype(b.dtype) * b, u, v)


def combine(parts: Array, vectors: PyTree[Array]) -> PyTree[Array]:
    """Σ_i parts_i v_i over vectors stacked on axis 0 (parts may have leading axes)."""
    product = lambda v: jnp.tensordot(parts.astype(v.dtype), v, axes=1, precision="highest")  # noqa: E731
    return jax.tree.map(product, vectors)


class AbstractVectors(eqx.Module):
    """A representation of vectors of the control space, in which A can be applied."""

    @abc.abstractmethod
    def right_hand_side(self) -> Any:
        """b."""

    @abc.abstractmethod
    def curve(self, v: Any) -> Any:
        """A v, good for `step` and as the first argument of `dot`."""

    @abc.abstractmethod
    def step(self, r: Any, length: Array, curved: Any) -> Any:
        """r - length A v."""

    @abc.abstractmethod
    def dot(self, u: Any, v: Any) -> Float[Array, ""]:
        """⟨u, v⟩ in the control space."""

    @abc.abstractmethod
    def control(self, v: Any) -> PyTree[Array]:
        """The vector itself."""

    @abc.abstractmethod
    def stacked_controls(self, basis: Any) -> PyTree[Array] | None:
        """Stacked vectors themselves, where they are at hand."""


class ControlVectors(AbstractVectors):
    """Vectors as they are: a product with G and Gᵀ when A is applied.

    With a preconditioner S Sᵀ the vectors are v with dchi = S v, and the system is Sᵀ A S v = Sᵀ b. Where part of the
    control has no prior, `prior_part` takes the place of the identity in A.
    """

    b: PyTree[Array]
    G: Callable
    GT: Callable
    S: Callable | None = None
    ST: Callable | None = None
    prior_part: Callable = lambda v: v

    def right_hand_side(self) -> PyTree[Array]:
        return self.b if self.ST is None else self.ST(self.b)

    def curve(self, v: PyTree[Array]) -> PyTree[Array]:
        u = self.control(v)
        curved = jax.tree.map(jnp.add, self.prior_part(u), self.GT(self.G(u)))
        return curved if self.ST is None else self.ST(curved)

    def step(self, r: PyTree[Array], length: Array, curved: PyTree[Array]) -> PyTree[Array]:
        return _plus(r, -length, curved)

    def dot(self, u: PyTree[Array], v: PyTree[Array]) -> Float[Array, ""]:
        return tree_dot(u, v)

    def control(self, v: PyTree[Array]) -> PyTree[Array]:
        return v if self.S is None else self.S(v)

    def stacked_controls(self, basis: PyTree[Array]) -> PyTree[Array]:
        return basis


class _Coefficients(NamedTuple):
    """v = along b + Mᵀ weights, and image = M v."""

    along: Array
    weights: PyTree[Array]
    image: PyTree[Array]


class ImageVectors(AbstractVectors):
    """Vectors a b + Mᵀ w as (a, w, M v), for GᵀG = Mᵀ C M with C = `weigh` (the identity where M = G).

    A v = a b + Mᵀ (w + C M v), so A needs no product with M; one with M Mᵀ gives the image of the next residual.
    """

    b: PyTree[Array]
    M: Callable
    MT: Callable
    weigh: Callable
    b_image: PyTree[Array]
    b_square: Array

    @classmethod
    def of(cls, b: PyTree[Array], M: Callable, MT: Callable, weigh: Callable) -> "ImageVectors":
        return cls(b, M, MT, weigh, M(b), tree_dot(b, b))

    def right_hand_side(self) -> _Coefficients:
        zero = jax.tree.map(jnp.zeros_like, self.b_image)
        return _Coefficients(jnp.ones_like(self.b_square), zero, self.b_image)

    def curve(self, v: _Coefficients) -> _Coefficients:
        return v._replace(weights=jax.tree.map(jnp.add, v.weights, self.weigh(v.image)))

    def step(self, r: _Coefficients, length: Array, curved: _Coefficients) -> _Coefficients:
        moved = _plus(r, -length, curved)
        image = self.M(self.MT(moved.weights))
        return moved._replace(image=_plus(image, moved.along, self.b_image))

    def dot(self, u: _Coefficients, v: _Coefficients) -> Float[Array, ""]:
        dtype = self.b_square.dtype
        with_b = v.along * self.b_square + tree_dot(self.b_image, v.weights).astype(dtype)
        return u.along * with_b + tree_dot(u.weights, v.image).astype(dtype)

    def control(self, v: _Coefficients) -> PyTree[Array]:
        return _plus(self.MT(v.weights), v.along, self.b)

    def stacked_controls(self, basis: _Coefficients) -> None:
        return None


class RitzPairs(eqx.Module):
    """Approximate eigenpairs of A: `values` (k,), `vectors` stacked on axis 0, and which of them have `converged`."""

    values: Float[Array, "k"]
    vectors: PyTree[Array]
    converged: Array

    def damp(self, v: PyTree[Array]) -> PyTree[Array]:
        """P^{1/2} v with P = I + Σ (1/λ - 1) u uᵀ over the converged pairs: A^{-1/2} where A is known."""
        factor = jnp.where(self.converged, self.values**-0.5 - 1.0, 0.0)
        parts = factor * jax.vmap(tree_dot, in_axes=(0, None))(self.vectors, v)
        return jax.tree.map(jnp.add, v, combine(parts, self.vectors))

    def solve(self, v: PyTree[Array]) -> PyTree[Array]:
        """V T⁻¹ Vᵀ v on the span of all pairs, converged or not, and v itself beyond: A⁻¹ where they are complete."""
        factor = jnp.where(self.values > 0.5, 1.0 / jnp.maximum(self.values, 0.5) - 1.0, 0.0)
        parts = factor * jax.vmap(tree_dot, in_axes=(0, None))(self.vectors, v)
        return jax.tree.map(jnp.add, v, combine(parts, self.vectors))


class KrylovRecord(eqx.Module):
    """The Lanczos vectors (k + 1, *control), with T = tridiag(`off`, `diagonal`, `off`) between the first `n` of them.

    They belong to Sᵀ A S where there was a preconditioner. `vectors` is None where the recursion ran on another
    representation than the control. `control` is the point at which A is the Hessian of the problem; None where the
    vectors belong to something else (see `vardax.minimisers.last_hessian`). `complete` says that there are as many
    vectors as were asked for, or as there are; None where nobody has looked.
    """

    vectors: PyTree[Array] | None
    diagonal: Float[Array, "k"]
    off: Float[Array, "k"]
    n: Int[Array, ""]
    control: PyTree[Array] | None = None
    complete: Bool[Array, ""] | None = None

    def first(self, k: int) -> "KrylovRecord":
        """The record of the first k vectors, and the next one."""
        k = min(k, self.diagonal.shape[0])
        vectors = jax.tree.map(lambda rows: rows[: k + 1], self.vectors)
        n = jnp.minimum(self.n, k)
        return KrylovRecord(vectors, self.diagonal[:k], self.off[:k], n, self.control, self.complete)

    def ritz_pairs(self) -> RitzPairs:
        """The eigenpairs of T carried to control space; a residual is |off_n| times the last entry of the vector."""
        steps = self.diagonal.shape[0]
        index = jnp.arange(steps)
        inner = jnp.where(index[:-1] + 1 < self.n, self.off[:-1], 0.0)
        used = jnp.where(index < self.n, self.diagonal, 0.0)  # A >= I, so a value of 0 is none of A's
        values, S = jnp.linalg.eigh(jnp.diag(used) + jnp.diag(inner, 1) + jnp.diag(inner, -1))
        last = jnp.maximum(self.n - 1, 0)
        residual = jnp.abs(self.off[last] * S[last])
        vectors = combine(S.T, jax.tree.map(lambda v: v[:steps], self.vectors))
        return RitzPairs(values, vectors, (residual <= CONVERGED_PAIR * values) & (values > 0.5))


class _Iterate(NamedTuple):
    n: Array
    x: Any
    r: Any
    d: Any
    square: Array
    carried: Array
    basis: Any
    diagonal: Array
    off: Array
    sound: Array


def conjugate_gradients(
    space: AbstractVectors,
    *,
    steps: int,
    limit: Array,
    rtol: float,
    atol: float | Array,
    reorthogonalise: bool,
) -> tuple[PyTree[Array], KrylovRecord]:
    """dchi after at most `limit` <= `steps` iterations from zero, until ‖b - A dchi‖ <= max(atol, rtol ‖b‖).

    With `reorthogonalise` each residual is made orthogonal to all earlier ones: rounding takes that from plain
    conjugate gradients, and with it the iterates of exact arithmetic.
    """
    b = space.right_hand_side()
    square = space.dot(b, b)
    rounding = float(jnp.finfo(square.dtype).eps)
    goal = jnp.maximum(atol, max(rtol, rounding) * jnp.sqrt(square)) ** 2

    def unfinished(it: _Iterate) -> Array:
        return (it.n < limit) & it.sound & (it.square > goal)

    def iteration(it: _Iterate) -> _Iterate:
        curved = space.curve(it.d)
        curvature = space.dot(curved, it.d)
        sound = (curvature > 0) & jnp.isfinite(curvature)
        length = it.square / jnp.where(sound, curvature, jnp.ones_like(curvature))
        r = space.step(it.r, length, curved)
        if reorthogonalise:
            parts = jax.vmap(space.dot, in_axes=(0, None))(it.basis, r)
            r = jax.tree.map(jnp.subtract, r, combine(parts, it.basis))
        square = jnp.maximum(space.dot(r, r), 0)
        ratio = square / it.square
        write = lambda array, value: array.at[it.n].set(jnp.where(sound, value, array[it.n]))  # noqa: E731
        unit = jax.lax.rsqrt(jnp.where(square > 0, square, jnp.ones_like(square)))
        keep = lambda new, old: jax.tree.map(lambda a, b: jnp.where(sound, a, b), new, old)  # noqa: E731
        return _Iterate(
            n=it.n + sound.astype(it.n.dtype),
            x=keep(_plus(it.x, length, it.d), it.x),
            r=keep(r, it.r),
            d=keep(_plus(r, ratio, it.d), it.d),
            square=jnp.where(sound, square, it.square),
            carried=jnp.where(sound, ratio / length, it.carried),
            basis=jax.tree.map(lambda v, leaf: v.at[it.n + 1].set(unit.astype(v.dtype) * leaf), it.basis, r),
            diagonal=write(it.diagonal, 1 / length + it.carried),
            off=write(it.off, -jnp.sqrt(ratio) / length),  # consecutive residuals point against A
            sound=sound,
        )

    scale = jax.lax.rsqrt(jnp.where(square > 0, square, jnp.ones_like(square)))
    blank = jax.tree.map(lambda v: jnp.zeros((steps + 1, *v.shape), v.dtype), b)
    start = _Iterate(
        n=jnp.asarray(0),
        x=jax.tree.map(jnp.zeros_like, b),
        r=b,
        d=b,
        square=square,
        carried=jnp.zeros_like(square),
        basis=jax.tree.map(lambda v, leaf: v.at[0].set(scale.astype(v.dtype) * leaf), blank, b),
        diagonal=jnp.ones(steps, square.dtype),
        off=jnp.zeros(steps, square.dtype),
        sound=jnp.isfinite(square),
    )
    last = jax.lax.while_loop(unfinished, iteration, start)
    record = KrylovRecord(space.stacked_controls(last.basis), last.diagonal, last.off, last.n)
    return space.control(last.x), record
