"""The large linear-Gaussian analysis by conjugate gradients.

    J(dx) = ½ dxᵀ B⁻¹ dx + ½ (d − H dx)ᵀ R⁻¹ (d − H dx)

Any minimiser in control space, dx = L chi with L Lᵀ = B, only visits increments dx = B Hᵀ w, and can carry the weights
w, one number per observation, instead of the control. Both forms read (I + D K) u = b, with K and D symmetric and
positive semidefinite:

    form            u              K         D              b          dx
    observations    weights w      H B Hᵀ    R⁻¹            R⁻¹ d      B Hᵀ w
    modes           control chi    I         Lᵀ Hᵀ R⁻¹ H L  LᵀHᵀR⁻¹d   L chi

I + D K is self-adjoint in the inner product ⟨v, K u⟩, and conjugate gradients in that inner product take the same steps
in both forms: those of the control space. J decreases at every step, so a truncated solve is never worse than the
background (conjugate gradients on H B Hᵀ + R do not have that property). A step costs one product with B.

In observation space this is restricted preconditioned conjugate gradients, which need only products with B. In the
Fourier modes of a `MaternLinearOperator` a step costs one real transform forth and one back as well, rounding does not
accumulate, and there is a preconditioner for observations that cover the field evenly.

Data flow: (B, L, H, R, d) -> `solve_blue` -> `KrylovResult`. R is what `covariances.functions.restrict` gives, so masks
are already inside. The solution is differentiated by the implicit function theorem (`jax.lax.custom_linear_solve`).

Gratton, S. and J. Tshimanga (2009). An observation-space formulation of variational assimilation using a restricted
preconditioned conjugate gradient algorithm. QJRMS 135, 1573-1585.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from vardax.covariances.matern import MaternLinearOperator
from vardax.covariances.spectral import apply_spectrum, spectral_weights

__all__ = [
    "EVEN_COVERAGE",
    "SHARPNESS",
    "KrylovResult",
    "ObservationError",
    "observation_coverage",
    "paired_conjugate_gradients",
    "solve_blue",
    "solve_by_products",
    "solve_in_modes",
    "solve_in_observations",
]

EVEN_COVERAGE = 0.25
"""Least density of the observations over its mean (`observation_coverage`) from which the modes form is taken."""

SHARPNESS = 30.0
"""How sharply the density of observations is seen: smoothed by c B / (1 + c B), c this over the largest eigenvalue."""

ERROR_STEPS = 1000
"""Most steps of the two solves with R alone in `solve_by_products`."""

Product = Callable[[Array], Array]
Record = tuple[Array, Array, Array]


@runtime_checkable
class ObservationError(Protocol):
    """R between the observed entries: `AbstractRestriction`, or anything with this product."""

    def solve(self, residual: Array, /) -> Array:
        """R⁻¹ r, zero where missing."""
        ...


class KrylovResult(eqx.Module):
    """The increment of a linear-Gaussian analysis and how it was reached.

    `increment` is dx, `control` the chi with dx = L chi, and `weights` are R⁻¹ (d − H dx), zero where missing, which at
    the minimum gives dx = B Hᵀ w. `gradient_norms` (‖∇J‖ in control space) and `costs` (J) hold the value at the
    background and after each step, NaN after the last, as the iteration carries them.
    """

    increment: PyTree[Array]
    control: PyTree[Array]
    weights: Float[Array, "..."]
    n_iterations: Int[Array, ""]
    converged: Bool[Array, ""]
    gradient_norms: Float[Array, "steps"]
    costs: Float[Array, "steps"]

    @property
    def gradient_norm(self) -> Float[Array, ""]:
        """‖∇J‖ at the increment."""
        return self.gradient_norms[jnp.minimum(self.n_iterations, self.gradient_norms.shape[0] - 1)]


class _Look(NamedTuple):
    """A residual r as a step sees it: y = P r, its image K y (None: y itself), and ‖∇J‖² = ⟨r, K r⟩."""

    direction: Array
    image: Array | None
    squared_norm: Array


class _Iterate(NamedTuple):
    """`u`, its residual r = b − (I + D K) u, the search direction with its image, ⟨r, K P r⟩, and the record."""

    n: Array
    u: Array
    residual: Array
    search: Array
    image: Array | None
    slope: Array
    squared_norm: Array
    sound: Array
    norms: Array
    costs: Array


def paired_conjugate_gradients(
    look: Callable[[Array], _Look],
    curve: Callable[[Array, Array], Array],
    b: Float[Array, "..."],
    first_cost: Float[Array, ""],
    *,
    tol: float,
    max_steps: int,
) -> tuple[Float[Array, "..."], Record]:
    """Solve (I + D K) u = b in the inner product ⟨v, K u⟩. Returns u and (steps, gradient norms, costs).

    `look` takes a residual r to (P r, K P r, ⟨r, K r⟩), and `curve` a pair (p, K p) to p + D K p. Stops when ‖∇J‖ and
    its preconditioned norm ⟨r, K P r⟩^½ are `tol` times their first values. If rounding has made the curvature
    negative, or something is not finite, it stops at the last sound iterate.
    """

    def unfinished(it: _Iterate) -> Array:
        return (it.n < max_steps) & it.sound & ((it.squared_norm > norm_goal) | (it.slope > slope_goal))

    def step(it: _Iterate) -> _Iterate:
        image = it.search if it.image is None else it.image
        curved = curve(it.search, image)
        curvature = jnp.vdot(curved, image)
        length = it.slope / curvature
        sound = (curvature > 0) & jnp.isfinite(length)
        u = jnp.where(sound, it.u + length * it.search, it.u)
        residual = jnp.where(sound, it.residual - length * curved, it.residual)
        y = look(residual)
        slope = _slope(residual, y)
        ratio = slope / it.slope
        n = it.n + sound.astype(it.n.dtype)
        decrease = jnp.where(sound, 0.5 * length * it.slope, jnp.zeros_like(length))
        return _Iterate(
            n=n,
            u=u,
            residual=residual,
            search=y.direction + ratio * it.search,
            image=None if it.image is None or y.image is None else y.image + ratio * it.image,
            slope=slope,
            squared_norm=y.squared_norm,
            sound=sound & jnp.isfinite(slope),
            norms=it.norms.at[n].set(jnp.sqrt(jnp.maximum(y.squared_norm, 0))),
            costs=it.costs.at[n].set(it.costs[it.n] - decrease),
        )

    first = look(b)
    slope = _slope(b, first)
    norm_goal, slope_goal = tol**2 * first.squared_norm, tol**2 * slope
    blank = jnp.full(max_steps + 1, jnp.nan, b.dtype)
    start = _Iterate(
        n=jnp.asarray(0),
        u=jnp.zeros_like(b),
        residual=b,
        search=first.direction,
        image=first.image,
        slope=slope,
        squared_norm=first.squared_norm,
        sound=jnp.isfinite(slope),
        norms=blank.at[0].set(jnp.sqrt(jnp.maximum(first.squared_norm, 0))),
        costs=blank.at[0].set(first_cost),
    )
    last = jax.lax.while_loop(unfinished, step, start)
    return last.u, (last.n, last.norms, last.costs)


def _slope(residual: Array, y: _Look) -> Array:
    """⟨r, K P r⟩."""
    return jnp.vdot(residual, y.direction if y.image is None else y.image)


def _implicit_solve(
    look: Callable[[Array], _Look],
    K: Product,
    D: Product,
    b: Array,
    first_cost: Array,
    *,
    tol: float,
    max_steps: int,
) -> tuple[Array, Record]:
    """`paired_conjugate_gradients`, differentiated as the solution that it approximates.

    Tangents solve the same system; cotangents its transpose, (I + K D)⁻¹ v = v − K (I + D K)⁻¹ D v.
    """

    def solve(_: Product, rhs: Array) -> tuple[Array, Record]:
        curve = lambda search, image: search + D(image)  # noqa: E731
        return paired_conjugate_gradients(look, curve, rhs, first_cost, tol=tol, max_steps=max_steps)

    def transpose_solve(_: Product, rhs: Array) -> tuple[Array, Record]:
        u, record = solve(_, D(rhs))
        return rhs - K(u), record

    return jax.lax.custom_linear_solve(lambda u: u + D(K(u)), b, solve, transpose_solve, has_aux=True)


class _Observing(eqx.Module):
    """H, Hᵀ and R⁻¹, between the dtype of the observations and those of H."""

    H: lx.AbstractLinearOperator
    R: Any
    dtype: Any = eqx.field(static=True)

    def predict(self, increment: PyTree[Array]) -> Array:
        """H dx."""
        return self.H.mv(_cast(increment, self.H.in_structure())).astype(self.dtype)

    def spread(self, weights: Array) -> PyTree[Array]:
        """Hᵀ w."""
        return self.H.transpose().mv(weights.astype(self.H.out_structure().dtype))

    def weigh(self, increment: PyTree[Array]) -> PyTree[Array]:
        """Hᵀ R⁻¹ H dx."""
        return self.spread(self.R.solve(self.predict(increment)))


def _cast(tree: PyTree[Array], structure: PyTree) -> PyTree[Array]:
    return jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), tree, structure)


def solve_blue(
    B: lx.AbstractLinearOperator,
    B_half: lx.AbstractLinearOperator,
    H: lx.AbstractLinearOperator,
    R: ObservationError,
    innovation: Float[Array, "..."],
    *,
    tol: float,
    max_steps: int,
) -> KrylovResult:
    """The increment that minimises J: to ‖∇J‖ <= tol · ‖∇J(x_b)‖ in control space, or `max_steps` steps.

    `B_half` is L with L Lᵀ = B, `R` is restricted to the observed entries, and `innovation` is d = y − H(x_b), zero
    where missing. Works under `jit` and `vmap`; the result can be differentiated with respect to everything in B, H, R
    and d.

    Takes the observation form, which suits any B and H. For a periodic `MaternLinearOperator` whose field the
    observations cover evenly (`observation_coverage`) it takes the preconditioned modes form, which needs a fraction of
    the steps. (The padding of a free boundary is a part of the domain without observations.)

    >>> from vardax.covariances.diagonal import DiagonalCovariance
    >>> B, R = DiagonalCovariance(jnp.array([1.0, 2.0])), DiagonalCovariance(jnp.array([1.0])).restrict(jnp.ones(1))
    >>> H = lx.MatrixLinearOperator(jnp.array([[1.0, 1.0]]))
    >>> solve_blue(B, B.half(), H, R, jnp.array([4.0]), tol=1e-6, max_steps=10).increment
    Array([1., 2.], dtype=float32)
    """
    in_observations = lambda: solve_in_observations(B, B_half, H, R, innovation, tol=tol, max_steps=max_steps)  # noqa: E731
    if not (isinstance(B, MaternLinearOperator) and B.domain_shape == B.shape):
        return in_observations()
    least, evenness = jax.lax.stop_gradient(observation_coverage(B, H, R))
    in_modes = lambda: solve_in_modes(B, H, R, innovation, coverage=least, tol=tol, max_steps=max_steps)  # noqa: E731
    return jax.lax.cond(evenness >= EVEN_COVERAGE, in_modes, in_observations)


def solve_in_observations(
    B: lx.AbstractLinearOperator,
    B_half: lx.AbstractLinearOperator,
    H: lx.AbstractLinearOperator,
    R: ObservationError,
    innovation: Float[Array, "..."],
    *,
    tol: float,
    max_steps: int,
) -> KrylovResult:
    """`solve_blue` by restricted conjugate gradients on the weights: one product with B, H and Hᵀ a step.

    The norm of the iteration, ⟨w, K w⟩, does not see weights that give no increment (two observations of one cell with
    opposite weights, or a direction that a low-rank B does not have), so these do not converge. Nothing visible depends
    on them, but derivatives with respect to B do. So values come from the iteration, and derivatives from the implicit
    function theorem at w = R⁻¹ (d − H dx), where they are right.
    """
    observing = _Observing(H, R, innovation.dtype)

    def covary(weights: Array) -> PyTree[Array]:
        return B.mv(_cast(observing.spread(weights), B.in_structure()))

    def K(weights: Array) -> Array:
        return observing.predict(covary(weights))

    def look(residual: Array) -> _Look:
        image = K(residual)
        return _Look(residual, image, jnp.vdot(residual, image))

    def emit(weights: Array) -> tuple[PyTree[Array], PyTree[Array]]:
        return covary(weights), B_half.transpose().mv(_cast(observing.spread(weights), B_half.out_structure()))

    solve = functools.partial(_implicit_solve, look, K, R.solve, tol=tol, max_steps=max_steps)
    b = R.solve(innovation)
    visible, record = jax.lax.stop_gradient(solve(b, _cost(innovation, b)))
    exact = jax.lax.stop_gradient(jnp.where(jnp.isfinite(record[1][0]), b - R.solve(K(visible)), visible))
    misfit = b - exact - R.solve(K(exact))
    change, _ = solve(misfit - jax.lax.stop_gradient(misfit), jnp.zeros_like(record[2][0]))
    increment, control = _with_derivative_of(emit(visible), emit(exact + change))
    return _result(increment, control, R.solve(innovation - observing.predict(increment)), record, tol)


def _with_derivative_of(value: PyTree[Array], twin: PyTree[Array]) -> PyTree[Array]:
    """`value`, differentiated as if it were `twin`."""
    constant = jax.lax.stop_gradient
    return jax.tree.map(lambda v, t: constant(v) + jnp.where(jnp.isfinite(t), t - constant(t), 0), value, twin)


class _Modes(eqx.Module):
    """The control of a Matérn covariance as its Fourier transform, scaled to be orthonormal.

    Modes are the real and imaginary parts (first axis) of the half spectrum. `up` is L, from white modes to a field
    with covariance B, `down` its transpose.
    """

    amplitude: Float[Array, "..."]
    domain: tuple[int, ...] = eqx.field(static=True)
    shape: tuple[int, ...] = eqx.field(static=True)

    def up(self, modes: Array) -> Array:
        """L chi."""
        field = self._field(modes, self.amplitude)
        return field if self.shape == self.domain else field[tuple(slice(n) for n in self.shape)]

    def down(self, field: Array) -> Array:
        """Lᵀ v."""
        spectrum = jnp.fft.rfftn(field, s=self.domain)
        scale = self.amplitude * self._unit()
        return jnp.stack([scale * spectrum.real, scale * spectrum.imag])

    def control(self, modes: Array) -> Array:
        """The control field of `MaternLinearOperator.half()`."""
        return self._field(modes, jnp.ones_like(self.amplitude))

    def damping(self, coverage: Array) -> Array:
        """(I + c B)⁻¹, for all modes."""
        return 1 / (1 + coverage * self.amplitude**2)[None]

    def _field(self, modes: Array, factor: Array) -> Array:
        scale = factor / self._unit()
        return jnp.fft.irfftn(jax.lax.complex(scale * modes[0], scale * modes[1]), s=self.domain)

    def _unit(self) -> Array:
        """Scales the half spectrum of a field so that the sum of squares is that of the field."""
        weights = spectral_weights(self.domain) / math.prod(self.domain)
        return jnp.broadcast_to(jnp.asarray(np.sqrt(weights), self.amplitude.dtype), self.amplitude.shape)


def solve_in_modes(
    B: MaternLinearOperator,
    H: lx.AbstractLinearOperator,
    R: ObservationError,
    innovation: Float[Array, "..."],
    *,
    coverage: Float[Array, ""] | float = 0.0,
    tol: float,
    max_steps: int,
) -> KrylovResult:
    """`solve_blue` by conjugate gradients in the Fourier modes of B, preconditioned by (I + c B)⁻¹, c = `coverage`.

    With c = diag(Hᵀ R⁻¹ H) the same everywhere the preconditioner would be the inverse Hessian. Where the observations
    are denser than c the Hessian is larger than I + c B, and smaller where they are sparser: the least density (see
    `observation_coverage`) keeps the preconditioned Hessian above I. `coverage=0` is no preconditioner.
    """
    modes = _Modes(B.half().amplitude, B.domain_shape, B.shape)
    observing = _Observing(H, R, innovation.dtype)
    damping = jax.lax.stop_gradient(modes.damping(jnp.asarray(coverage, B.dtype)))

    def D(chi: Array) -> Array:
        return modes.down(observing.weigh(modes.up(chi)).astype(B.dtype))

    def look(residual: Array) -> _Look:
        return _Look(damping * residual, None, jnp.vdot(residual, residual))

    weighted = R.solve(innovation)
    b = modes.down(observing.spread(weighted).astype(B.dtype))
    cost = _cost(innovation, weighted).astype(B.dtype)
    chi, record = _implicit_solve(look, lambda v: v, D, b, cost, tol=tol, max_steps=max_steps)
    increment = modes.up(chi)
    weights = R.solve(innovation - observing.predict(increment))
    return _result(increment, modes.control(chi), weights, record, tol)


def solve_by_products(
    B: lx.AbstractLinearOperator,
    B_half: lx.AbstractLinearOperator,
    H: lx.AbstractLinearOperator,
    R: lx.AbstractLinearOperator,
    innovation: Float[Array, "..."],
    mask: Float[Array, "..."],
    *,
    tol: float,
    max_steps: int,
) -> KrylovResult:
    """The analysis for an R that cannot be factorised: products with R only.

    Conjugate gradients solve (H B Hᵀ + R) w = d between the observed entries (`mask` 1) to ‖residual‖ <= tol · ‖d‖.
    On the way J may rise above J(x_b), so the increment is multiplied by the number that minimises J: 1 at
    convergence, and J <= J(x_b) wherever it is truncated. What that and ‖∇J‖ need of R⁻¹ are two solves with R alone,
    after the iteration. `gradient_norms` and `costs` are those of the background and of the result.
    """
    observing = _Observing(H, R, innovation.dtype)
    observed = lambda v: jnp.where(mask != 0, v, jnp.zeros_like(v))  # noqa: E731

    def covary(weights: Array) -> PyTree[Array]:
        return B.mv(_cast(observing.spread(observed(weights)), B.in_structure()))

    def K(weights: Array) -> Array:
        return observed(observing.predict(covary(weights)))

    def error(weights: Array) -> Array:
        product = R.mv(observed(weights).astype(R.in_structure().dtype))
        return jnp.where(mask != 0, product.astype(weights.dtype), weights)

    innovation = observed(innovation)
    weights, n_iterations = _symmetric_solve(lambda w: K(w) + error(w), innovation, tol, max_steps)
    exact = float(jnp.finfo(innovation.dtype).eps) ** 0.75
    solve_error = lambda v: _symmetric_solve(error, v, exact, ERROR_STEPS)[0]  # noqa: E731
    image = K(weights)
    b, residual = solve_error(innovation), solve_error(innovation - image - error(weights))
    scale, costs = _least_cost_multiple(image, b, residual, 0.5 * jnp.vdot(innovation, b))
    gradients = b, b - scale * (b - residual)
    norms = jnp.stack([jnp.sqrt(jnp.maximum(jnp.vdot(g, K(g)), 0)) for g in gradients])
    weights = scale * weights
    return KrylovResult(
        increment=covary(weights),
        control=B_half.transpose().mv(_cast(observing.spread(weights), B_half.out_structure())),
        weights=weights,
        n_iterations=n_iterations,
        converged=jnp.isfinite(norms[1]) & (norms[1] <= tol * jnp.maximum(1, norms[0])),
        gradient_norms=norms,
        costs=costs,
    )


def _least_cost_multiple(image: Array, b: Array, residual: Array, first_cost: Array) -> tuple[Array, Array]:
    """(s, J of 0 and of s w): the multiple of the weights w with the least J. `image` is K w, `residual` is
    R⁻¹ (d − K w − R w), and J(s w) = J(0) − s ⟨K w, b⟩ + ½ s² ⟨K w, b − residual⟩."""
    along, curvature = jnp.vdot(image, b), jnp.vdot(image, b - residual)
    curved = curvature > 0
    scale = jnp.where(curved, along / jnp.where(curved, curvature, jnp.ones_like(curvature)), jnp.zeros_like(along))
    scale = jax.lax.stop_gradient(scale)
    return scale, jnp.stack([first_cost, first_cost - scale * along + 0.5 * scale**2 * curvature])


def _symmetric_solve(product: Product, rhs: Array, tol: float, max_steps: int) -> tuple[Array, Array]:
    """(A⁻¹ b, steps) by conjugate gradients, differentiated implicitly."""

    def solve(_: Product, b: Array) -> tuple[Array, Array]:
        look = lambda r: _Look(r, None, jnp.vdot(r, r))  # noqa: E731
        curve = lambda search, _: product(search)  # noqa: E731
        solution, record = paired_conjugate_gradients(
            look, curve, b, jnp.zeros((), b.dtype), tol=tol, max_steps=max_steps
        )
        return solution, record[0]

    return jax.lax.custom_linear_solve(product, rhs, solve, symmetric=True, has_aux=True)


def observation_coverage(
    B: MaternLinearOperator, H: lx.AbstractLinearOperator, R: ObservationError
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """(least density, evenness): the R⁻¹ that the observations put on each cell of the field.

    The density is Hᵀ R⁻¹ H 1, smoothed at a fraction of the length of B by c B / (1 + c B), with c = `SHARPNESS` over
    the largest eigenvalue. Evenness is its least value over its mean, from 0 (some part of the field is unobserved) to
    1. It is 0 also where H averages over many cells, so that the observations do not see the small scales; that shows
    in tr(Hᵀ R⁻¹ H), estimated with one random vector, well below 1ᵀ Hᵀ R⁻¹ H 1.
    """
    observing = _Observing(H, R, H.out_structure().dtype)
    ones = jnp.ones(B.shape, B.dtype)
    signs = jax.random.rademacher(jax.random.key(0), B.shape, B.dtype)
    row_sums = observing.weigh(ones).astype(B.dtype)
    trace = jnp.vdot(signs, observing.weigh(signs).astype(B.dtype))
    spectrum = SHARPNESS * B.spectrum() / jnp.max(B.spectrum())
    smooth = functools.partial(apply_spectrum, spectrum / (1 + spectrum), domain=B.domain_shape, shape=B.shape)
    least = jnp.min(smooth(row_sums) / smooth(ones))
    mean = jnp.mean(row_sums)
    local = (mean > 0) & (least > 0) & (trace > 0.3 * jnp.sum(row_sums))
    return jnp.maximum(least, 0), jnp.where(local, least / mean, jnp.zeros_like(mean))


def _cost(innovation: Array, weighted: Array) -> Float[Array, ""]:
    """J(x_b) = ½ dᵀ R⁻¹ d."""
    return 0.5 * jnp.vdot(innovation, weighted)


def _result(
    increment: PyTree[Array], control: PyTree[Array], weights: Array, record: Record, tol: float
) -> KrylovResult:
    n_iterations, norms, costs = record
    dtype, last = weights.dtype, norms[n_iterations]
    return KrylovResult(
        increment=increment,
        control=control,
        weights=weights,
        n_iterations=n_iterations,
        converged=jnp.isfinite(last) & (last <= tol * jnp.maximum(1, norms[0])),
        gradient_norms=norms.astype(dtype),
        costs=costs.astype(dtype),
    )
