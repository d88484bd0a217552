"""The large linear-Gaussian analysis by conjugate gradients that carry pairs.

    J(dx) = ½ dxᵀ B⁻¹ dx + ½ (d − H dx)ᵀ R⁻¹ (d − H dx),       dx = B u

B⁻¹ is never applied: the iteration carries the sensitivity u = B⁻¹ dx, from which dx follows. ∇J = 0 reads
(I + D K) u = b with K and D symmetric and positive semidefinite, in one of two spaces:

    space           K         D          b           u                                 size
    observations    H B Hᵀ    R⁻¹        R⁻¹ d       weights w, dx = B Hᵀ w            one number per observation
    state           B         Hᵀ R⁻¹ H   Hᵀ R⁻¹ d    sensitivity B⁻¹ dx                a field

I + D K is self-adjoint in the inner product ⟨v, K u⟩, and conjugate gradients in that inner product are those of the
control space (chi = B^{-1/2} dx): the same increments at every step, and J decreases at each, so a truncated solve is
never worse than the background. A step costs one product with K. In observation space this is restricted preconditioned
conjugate gradients; in state space it is the pairs form, which takes a preconditioner that commutes with B.

Data flow: (B, H, R, d) -> `solve_blue` -> `KrylovResult`. R is what `covariances.restriction` gives, so masks are
already inside. The solution is differentiated by the implicit function theorem (`jax.lax.custom_linear_solve`).

Gratton, S. and J. Tshimanga (2009). An observation-space formulation of variational assimilation using a restricted
preconditioned conjugate gradient algorithm. QJRMS 135, 1573-1585. Derber, J. and A. Rosati (1989). A global oceanic data
assimilation system. J. Phys. Oceanogr. 19, 1333-1347.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Bool, Float, Int, PyTree

from vardax.covariances.matern import MaternLinearOperator
from vardax.covariances.spectral import spectral_weights
from vardax.minimisers.problem import cast_like

__all__ = [
    "EVEN_COVERAGE",
    "KrylovResult",
    "SpectralPreconditioner",
    "observation_coverage",
    "paired_conjugate_gradients",
    "solve_blue",
]

EVEN_COVERAGE = 0.25
"""Least density of the observations, seen at the scale of B, over its mean, for which the spectral form is taken."""


class ObservationError(Protocol):
    """R between the observed entries: `AbstractRestriction` or anything with these two products."""

    def solve(self, residual: Array) -> Array:
        """R⁻¹ r, zero where missing."""
        ...

    def mv(self, vector: Array) -> Array:
        """R v, zero where missing."""
        ...


class KrylovResult(eqx.Module):
    """The increment of a linear-Gaussian analysis and how it was reached.

    `increment` is dx = B Hᵀ w, `sensitivity` is u = B⁻¹ dx = Hᵀ w (the control is half(B)ᵀ u) and `weights` are
    w = R⁻¹ (d − H dx), zero where missing. `gradient_norm` is ‖∇J‖ in control space at the increment, computed afresh.
    `gradient_norms` and `costs` hold the value at the start and after each step, NaN after the last.
    """

    increment: PyTree[Array]
    sensitivity: PyTree[Array]
    weights: Float[Array, "..."]
    n_iterations: Int[Array, ""]
    converged: Bool[Array, ""]
    gradient_norm: Float[Array, ""]
    gradient_norms: Float[Array, "steps"]
    costs: Float[Array, "steps"]


class Preconditioned(NamedTuple):
    """What a step needs of the residual r: y = P r, its image K y, and ⟨r, K r⟩ = ‖∇J‖² in control space."""

    residual: Array
    image: Array
    squared_norm: Float[Array, ""]


class SpectralPreconditioner(eqx.Module):
    """P = (I + c B)⁻¹ for a covariance that the Fourier transform makes diagonal.

    It is the inverse of the Hessian for observations that cover the field evenly, c = mean of diag(Hᵀ R⁻¹ H); the
    number of steps then hardly depends on the number of observations. P commutes with B, and since
    (I + c B)⁻¹ r = r − c B (I + c B)⁻¹ r, the pair (P r, B P r) costs the same transform pair as B r.
    """

    spectrum: Float[Array, "..."]
    weight: Float[Array, ""]
    shape: tuple[int, ...] = eqx.field(static=True)

    def __call__(self, residual: Float[Array, "..."]) -> Preconditioned:
        spectrum = self.spectrum.astype(residual.dtype)
        modes = jnp.fft.rfftn(residual, s=self.shape)
        damped = spectrum / (1 + self.weight * spectrum)
        image = jnp.fft.irfftn(jax.lax.complex(damped * modes.real, damped * modes.imag), s=self.shape)
        multiplicity = jnp.asarray(spectral_weights(self.shape), residual.dtype)
        power = multiplicity * spectrum * (modes.real**2 + modes.imag**2)
        return Preconditioned(residual - self.weight * image, image, jnp.sum(power) / residual.size)


class _Iterate(NamedTuple):
    """`u`, its residual b − (I + D K) u, the search direction with its image under K, and the record."""

    n: Array
    u: Array
    residual: Array
    search: Array
    search_image: Array
    slope: Array
    squared_norm: Array
    sound: Array
    norms: Array
    costs: Array


def paired_conjugate_gradients(
    K: Callable[[Array], Array],
    D: Callable[[Array], Array],
    b: Float[Array, "..."],
    first_cost: Float[Array, ""],
    precondition: Callable[[Array], Preconditioned] | None,
    *,
    tol: float,
    max_steps: int,
) -> tuple[Float[Array, "..."], tuple[Array, Array, Array]]:
    """Solve (I + D K) u = b in the inner product ⟨v, K u⟩. Returns u and (steps, gradient norms, costs).

    Stops when ‖∇J‖² = ⟨r, K r⟩ is tol² of its first value, and so is ⟨r, K P r⟩ if there is a preconditioner. Before a
    step that is not finite, or whose curvature is not positive (rounding), it stops at the last sound iterate.
    """
    plain = precondition is None

    def look(residual: Array) -> Preconditioned:
        if precondition is not None:
            return precondition(residual)
        image = K(residual)
        return Preconditioned(residual, image, jnp.vdot(residual, image))

    def unfinished(it: _Iterate) -> Array:
        above = it.squared_norm > goal
        return (it.n < max_steps) & it.sound & (above if plain else above | (it.slope > slope_goal))

    def step(it: _Iterate) -> _Iterate:
        hessian_search = it.search + D(it.search_image)
        curvature = jnp.vdot(hessian_search, it.search_image)
        length = it.slope / curvature
        sound = (curvature > 0) & jnp.isfinite(length)
        u = jnp.where(sound, it.u + length * it.search, it.u)
        residual = jnp.where(sound, it.residual - length * hessian_search, it.residual)
        y = look(residual)
        slope = y.squared_norm if plain else jnp.vdot(residual, y.image)
        ratio = slope / it.slope
        n = it.n + sound.astype(it.n.dtype)
        cost = it.costs[it.n] - jnp.where(sound, 0.5 * length * it.slope, jnp.zeros_like(length))
        return _Iterate(
            n=n,
            u=u,
            residual=residual,
            search=y.residual + ratio * it.search,
            search_image=y.image + ratio * it.search_image,
            slope=slope,
            squared_norm=y.squared_norm,
            sound=sound & (slope >= 0) & jnp.isfinite(slope),
            norms=it.norms.at[n].set(jnp.sqrt(jnp.maximum(y.squared_norm, 0))),
            costs=it.costs.at[n].set(cost),
        )

    y = look(b)
    slope = y.squared_norm if plain else jnp.vdot(b, y.image)
    goal, slope_goal = tol**2 * y.squared_norm, tol**2 * slope
    blank = jnp.full(max_steps + 1, jnp.nan, b.dtype)
    start = _Iterate(
        n=jnp.asarray(0),
        u=jnp.zeros_like(b),
        residual=b,
        search=y.residual,
        search_image=y.image,
        slope=slope,
        squared_norm=y.squared_norm,
        sound=jnp.isfinite(slope),
        norms=blank.at[0].set(jnp.sqrt(jnp.maximum(y.squared_norm, 0))),
        costs=blank.at[0].set(first_cost),
    )
    last = jax.lax.while_loop(unfinished, step, start)
    return last.u, (last.n, last.norms, last.costs)


def _implicit_solve(
    K: Callable[[Array], Array],
    D: Callable[[Array], Array],
    b: Array,
    first_cost: Array,
    precondition: Callable[[Array], Preconditioned] | None,
    tol: float,
    max_steps: int,
) -> tuple[Array, tuple[Array, Array, Array]]:
    """`paired_conjugate_gradients`, differentiated as the solution that it approximates.

    Tangents solve the same system; cotangents its transpose, (I + K D)⁻¹ v = v − K (I + D K)⁻¹ D v.
    """

    def solve(_: Callable, rhs: Array) -> tuple[Array, tuple]:
        return paired_conjugate_gradients(K, D, rhs, first_cost, precondition, tol=tol, max_steps=max_steps)

    def transpose_solve(_: Callable, rhs: Array) -> tuple[Array, tuple]:
        u, record = solve(_, D(rhs))
        return rhs - K(u), record

    return jax.lax.custom_linear_solve(lambda u: u + D(K(u)), b, solve, transpose_solve, has_aux=True)


class _Products(eqx.Module):
    """B, H and Hᵀ between the dtypes of the background covariance and of the observations."""

    B: lx.AbstractLinearOperator
    H: lx.AbstractLinearOperator
    R: Any
    dtype: Any = eqx.field(static=True)

    def covary(self, sensitivity: PyTree[Array]) -> PyTree[Array]:
        """B u."""
        return self.B.mv(cast_like(sensitivity, self.B.in_structure()))

    def predict(self, increment: PyTree[Array]) -> Array:
        """H dx."""
        return self.H.mv(cast_like(increment, self.H.in_structure())).astype(self.dtype)

    def spread(self, weights: Array) -> PyTree[Array]:
        """Hᵀ w."""
        return self.H.transpose().mv(weights.astype(self.H.out_structure().dtype))

    def weigh(self, increment: PyTree[Array]) -> PyTree[Array]:
        """Hᵀ R⁻¹ H dx."""
        return self.spread(self.R.solve(self.predict(increment)))


def observation_coverage(
    B: MaternLinearOperator, H: lx.AbstractLinearOperator, R: ObservationError
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """(least density, evenness): how much of R⁻¹ the observations put on each cell, seen at the scale of B.

    The density is B Hᵀ R⁻¹ H 1 divided by the row sums of B. Evenness is its least value over its mean, from 0 (some
    part of the field is unobserved) to 1. It is 0 as well where H averages over many cells, which shows in
    tr(Hᵀ R⁻¹ H) < ½ 1ᵀ Hᵀ R⁻¹ H 1: the observations then do not see the small scales.
    """
    products = _Products(B, H, R, H.out_structure().dtype)
    ones = jnp.ones(B.shape, B.dtype)
    signs = jax.random.rademacher(jax.random.key(0), B.shape, B.dtype)
    lumped = products.weigh(ones).astype(B.dtype)
    trace = jnp.sum(signs * products.weigh(signs).astype(B.dtype))
    density = B.mv(lumped) / B.spectrum()[(0,) * len(B.shape)]
    mean = jnp.mean(lumped)
    local = trace > 0.5 * jnp.sum(lumped)
    evenness = jnp.where(local & (mean > 0), jnp.min(density) / mean, jnp.zeros_like(mean))
    return jnp.min(density), evenness


def solve_blue(
    B: lx.AbstractLinearOperator,
    H: lx.AbstractLinearOperator,
    R: ObservationError,
    innovation: Float[Array, "..."],
    *,
    tol: float,
    max_steps: int,
) -> KrylovResult:
    """The increment that minimises J, to ‖∇J‖ <= tol · ‖∇J(x_b)‖ in control space or `max_steps` steps.

    `B` needs products only, `H` products with it and its transpose, `R` is restricted to the observed entries
    (`vardax.covariances.functions.restrict`), and `innovation` is d = y − H(x_b), zero where missing. Works under `jit`
    and `vmap`; the increment can be differentiated with respect to everything in `B`, `H`, `R` and d.

    The iteration runs in observation space. For a periodic `MaternLinearOperator` whose field the observations cover
    evenly (`observation_coverage`) it runs in state space with a `SpectralPreconditioner`.

    >>> B, H = lx.DiagonalLinearOperator(jnp.array([1.0, 2.0])), lx.MatrixLinearOperator(jnp.array([[1.0, 1.0]]))
    >>> R = restrict(lx.DiagonalLinearOperator(jnp.array([1.0])), jnp.ones(1))
    >>> solve_blue(B, H, R, jnp.array([4.0]), tol=1e-6, max_steps=10).increment
    Array([1., 2.], dtype=float32)
    """
    products = _Products(B, H, R, innovation.dtype)
    in_observations = lambda: _solve_in_observations(products, innovation, tol, max_steps)  # noqa: E731
    if not _is_periodic(B, H):
        return in_observations()
    weight, evenness = jax.lax.stop_gradient(observation_coverage(B, H, R))
    preconditioner = SpectralPreconditioner(jax.lax.stop_gradient(B.spectrum()), weight, B.shape)
    in_state = lambda: _solve_in_state(products, innovation, preconditioner, tol, max_steps)  # noqa: E731
    return jax.lax.cond(evenness >= EVEN_COVERAGE, in_state, in_observations)


def _is_periodic(B: lx.AbstractLinearOperator, H: lx.AbstractLinearOperator) -> bool:
    """Whether B is diagonal in Fourier space and works in the dtype of the state."""
    return (
        isinstance(B, MaternLinearOperator)
        and B.domain_shape == B.shape
        and B.dtype == H.in_structure().dtype == H.out_structure().dtype
    )


def _solve_in_observations(products: _Products, innovation: Array, tol: float, max_steps: int) -> KrylovResult:
    """K = H B Hᵀ, D = R⁻¹, b = R⁻¹ d: restricted conjugate gradients on one number per observation."""

    def K(weights: Array) -> Array:
        return products.predict(products.covary(products.spread(weights)))

    D = products.R.solve
    b = D(innovation)
    weights, record = _implicit_solve(K, D, b, _first_cost(innovation, b), None, tol, max_steps)
    sensitivity = products.spread(weights)
    increment = products.covary(sensitivity)
    residual = b - weights - D(products.predict(increment))
    return _result(increment, sensitivity, weights, jnp.vdot(residual, K(residual)), record, tol)


def _solve_in_state(
    products: _Products, innovation: Array, preconditioner: SpectralPreconditioner, tol: float, max_steps: int
) -> KrylovResult:
    """K = B, D = Hᵀ R⁻¹ H, b = Hᵀ R⁻¹ d: the pairs form on fields."""
    K, D = products.covary, products.weigh
    weighted = products.R.solve(innovation)
    b = products.spread(weighted)
    first_cost = _first_cost(innovation, weighted)
    sensitivity, record = _implicit_solve(K, D, b, first_cost, preconditioner, tol, max_steps)
    increment = products.covary(sensitivity)
    weights = products.R.solve(innovation - products.predict(increment))
    residual = products.spread(weights) - sensitivity
    return _result(increment, sensitivity, weights, jnp.vdot(residual, K(residual)), record, tol)


def _first_cost(innovation: Array, weighted: Array) -> Float[Array, ""]:
    """J(x_b) = ½ dᵀ R⁻¹ d."""
    return 0.5 * jnp.vdot(innovation, weighted)


def _result(
    increment: PyTree[Array],
    sensitivity: PyTree[Array],
    weights: Array,
    squared_norm: Array,
    record: tuple[Array, Array, Array],
    tol: float,
) -> KrylovResult:
    n_iterations, norms, costs = record
    gradient_norm = jnp.sqrt(jnp.maximum(jax.lax.stop_gradient(squared_norm), 0))
    return KrylovResult(
        increment=increment,
        sensitivity=sensitivity,
        weights=weights,
        n_iterations=n_iterations,
        converged=gradient_norm <= tol * jnp.maximum(1, norms[0]),
        gradient_norm=gradient_norm,
        gradient_norms=norms,
        costs=costs,
    )
