"""The control-space problem: what every iterative method minimises.

    chi -> z = T^{-1}(x_b) + B^{1/2} chi -> x = T(z) -> H(x) -> residual r = W (y - H(x)),   WᵀW = R^{-1} where observed
    J(chi) = ½ ‖chi‖² + ½ ‖r(chi)‖² + J_c(x)

with the tangent-linear G = W H' dx/dchi, its adjoint Gᵀ, and the Gauss-Newton product v + GᵀG v. B^{-1} is never
applied. `observe` is the map from a state to predicted observations, one of `vardax.minimisers.windows`. Further terms
J_c (`penalties`, see `vardax.minimisers.penalties`) that have a residual, and the jumps of `SubWindows`, make r the
tuple (W (y - H(x)), residuals of the terms, weighted jumps), and G its derivative. Where a part of the control has no
prior, `observe.prior_part` takes the place of chi in ½‖chi‖² and of v in the product. `ControlSpaceProblem` is one
sample; `BatchedProblem` has the same members with a leading sample axis.
"""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Float, PyTree

from vardax.covariances.functions import diagonal
from vardax.minimisers.observed import ObservedEntries
from vardax.minimisers.penalties import around, penalty_costs, penalty_residual
from vardax.minimisers.projection import shortest_control
from vardax.minimisers.transforms import from_control, to_control
from vardax.minimisers.windows import AbstractObserving, starting
from vardax.types import CostTerms

__all__ = [
    "BatchedProblem",
    "ControlSpaceProblem",
    "cast_like",
    "tree_dot",
    "tree_norm",
]


def tree_dot(a: PyTree[Array], b: PyTree[Array]) -> Float[Array, ""]:
    """⟨a, b⟩ over all leaves; 0 where there are none."""
    products = jax.tree.leaves(jax.tree.map(lambda u, v: jnp.sum(u * v), a, b))
    if not products:
        return jnp.zeros(())
    dtype = jnp.result_type(*products)
    return functools.reduce(jnp.add, [product.astype(dtype) for product in products])


def tree_norm(a: PyTree[Array]) -> Float[Array, ""]:
    """‖a‖₂ over all leaves."""
    return jnp.sqrt(tree_dot(a, a))


def cast_like(tree: PyTree[Array], structure: PyTree) -> PyTree[Array]:
    """`tree` with the dtypes of `structure`."""
    return jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), tree, structure)


def _negated(tangent: Callable, point: PyTree[Array]) -> tuple[Callable, Callable]:
    """(-T, -Tᵀ) of a linear map: the derivative of a prediction from that of y less the prediction."""
    transposed = jax.linear_transpose(tangent, point)
    negative = lambda tree: jax.tree.map(jnp.negative, tree)  # noqa: E731
    return lambda v: negative(tangent(v)), lambda w: negative(transposed(w)[0])


def _zeros(structure: PyTree[jax.ShapeDtypeStruct]) -> PyTree[Array]:
    return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), structure)


class ControlSpaceProblem(eqx.Module):
    """One sample's J(chi), its residual and its derivatives."""

    background: PyTree[Array]
    observed: ObservedEntries
    covariance: lx.AbstractLinearOperator
    half: lx.AbstractLinearOperator
    observe: AbstractObserving
    transform: PyTree
    penalties: tuple = ()

    def zero_control(self) -> PyTree[Array]:
        """chi = 0, the background."""
        return _zeros(self.half.in_structure())

    def residual_structure(self) -> PyTree[jax.ShapeDtypeStruct]:
        """What r looks like, found without computing it."""
        if not self.penalties and self.observe.proper:
            return jax.ShapeDtypeStruct(self.observed.value.shape, self.observed.value.dtype)
        return jax.eval_shape(self.residual, self.zero_control())

    def zero_residual(self) -> PyTree[Array]:
        """r = 0."""
        return _zeros(self.residual_structure())

    def _untransformed(self, control: PyTree[Array]) -> PyTree[Array]:
        """z = T^{-1}(x_b) + B^{1/2} chi, in the dtype of the background."""
        increment = self.half.mv(cast_like(control, self.half.in_structure()))
        return jax.tree.map(
            lambda b, dz: b + dz.astype(b.dtype), to_control(self.transform, self.background), increment
        )

    def control_to_state(self, control: PyTree[Array]) -> PyTree[Array]:
        """x = T(T^{-1}(x_b) + B^{1/2} chi), in the dtype of the background."""
        return self.observe.result(self.window_state(control))

    def window_state(self, control: PyTree[Array]) -> PyTree[Array]:
        """x, as `observe` takes it."""
        return from_control(self.transform, self._untransformed(control))

    def prior_variances(self, control: PyTree[Array]) -> PyTree[Array]:
        """The background variances carried to states around x(chi): (dT/dz)² diag(B)."""
        slopes = self.transform_slopes(control)
        return jax.tree.map(lambda s, v: s**2 * v.astype(s.dtype), slopes, diagonal(self.covariance))

    def transform_slopes(self, control: PyTree[Array]) -> PyTree[Array]:
        """dT/dz of each entry at x(chi)."""
        z = self._untransformed(control)
        return jax.jvp(lambda z: from_control(self.transform, z), (z,), (jax.tree.map(jnp.ones_like, z),))[1]

    def predicted(self, control: PyTree[Array]) -> Array:
        """H(x(chi)), shape (E, *obs)."""
        return self.observe(self.window_state(control), self.observed)

    def residual(self, control: PyTree[Array]) -> PyTree[Array]:
        """r = W (y - H(x(chi))), zero where nothing was observed; with further terms or jumps, theirs after it."""
        return self._residual_and_innovation(control)[0]

    def residual_and_terms(self, control: PyTree[Array]) -> tuple[tuple[PyTree[Array], PyTree[Array]], CostTerms]:
        """The least-squares residual (chi, r) with J = ½‖(chi, r)‖², and the terms of J."""
        residual, innovation = self._residual_and_innovation(control)
        terms = self._terms_of_residual(control, innovation, residual)
        return (self.observe.prior_part(control), residual), terms

    def _residual_and_innovation(self, control: PyTree[Array]) -> tuple[PyTree[Array], Array]:
        return self._residual_of(self.window_state(control))

    def _residual_of(self, state: PyTree[Array]) -> tuple[PyTree[Array], Array]:
        """r at a state, and y - H(x)."""
        run = self.observe.run(state, self.observed)
        innovation = self.observed.innovation(run.predicted)
        whitened = self.observed.whiten(innovation)
        if not self.penalties and self.observe.proper:
            return whitened, innovation
        further = tuple(penalty_residual(p, run.trajectory) for p in self.penalties)
        return (whitened, further, run.error), innovation

    def _terms_of_residual(self, control: PyTree[Array], innovation: Array, residual: PyTree[Array]) -> CostTerms:
        whitened, further, error = residual if isinstance(residual, tuple) else (residual, (), ())
        return self._terms_at(control, innovation, whitened, 0.5 * tree_dot(further, further), error)

    def _terms_at(
        self, control: PyTree[Array], innovation: Array, whitened: Array, further: Array, error: PyTree[Array]
    ) -> CostTerms:
        background, errors, theta = self.observe.split(control)
        halves = (0.5 * tree_dot(part, part) for part in (background, (errors, error), theta))
        J_b, J_q, J_theta, J_c = (term.astype(whitened.dtype) for term in (*halves, further))
        if self.observe.prior_is_a_term:
            J_b, J_c = J_c, J_b
        return CostTerms(J_b, self.observed.cost_by_instrument(innovation, whitened), J_q, J_theta, J_c)

    def terms(self, control: PyTree[Array]) -> CostTerms:
        """The terms of J."""
        return self.terms_of_state(self.window_state(control), control)

    def terms_of_state(self, state: PyTree[Array], control: PyTree[Array]) -> CostTerms:
        """The terms of J, where the state of the control is at hand."""
        run = self.observe.run(state, self.observed)
        innovation = self.observed.innovation(run.predicted)
        further = penalty_costs(self.penalties, run.trajectory, self.observed)
        return self._terms_at(control, innovation, self.observed.whiten(innovation), further, run.error)

    def cost(self, control: PyTree[Array]) -> Float[Array, ""]:
        """J(chi)."""
        return self.terms(control).total

    def gradient(self, control: PyTree[Array]) -> PyTree[Array]:
        """∇J = chi - Gᵀ r."""
        return jax.grad(self.cost)(control)

    def linearise(self, control: PyTree[Array]) -> tuple[PyTree[Array], Callable, Callable]:
        """(r, G, Gᵀ) at chi, linearised once: products with G and Gᵀ do not run the nonlinear model again.

        G is the derivative of -r, for observations that of the whitened prediction, so r(chi + dchi) ≈ r - G dchi.
        """
        residual, _, G, GT = self.linearise_with_terms(control)
        return residual, G, GT

    def linearise_with_terms(self, control: PyTree[Array]) -> tuple[PyTree[Array], CostTerms, Callable, Callable]:
        """(r, the terms of J, G, Gᵀ) at chi, from one run of the model."""
        residual, tangent, innovation = jax.linearize(self._residual_and_innovation, control, has_aux=True)
        return residual, self._terms_of_residual(control, innovation, residual), *_negated(tangent, control)

    def linearise_increment(self, control: PyTree[Array]) -> tuple[Callable, Callable]:
        """(F, Fᵀ) with G = F B^{1/2}: the same derivative with respect to z = T^{-1}(x_b) + B^{1/2} chi."""
        z = self._untransformed(control)
        return _negated(jax.linearize(lambda z: self._residual_of(from_control(self.transform, z))[0], z)[1], z)

    def hessian_product(self, control: PyTree[Array], v: PyTree[Array]) -> PyTree[Array]:
        """Gauss-Newton: v + GᵀG v at chi."""
        _, G, GT = self.linearise(control)
        return jax.tree.map(jnp.add, self.observe.prior_part(v), GT(G(v)))

    def control_of(self, state: PyTree[Array]) -> PyTree[Array]:
        """The smallest chi whose state is closest to `state`: where a first guess in state space starts.

        A first guess outside the range of B^{1/2} is projected onto it.
        """
        z, z_b = (to_control(self.transform, x) for x in (self.observe.of_result(state), self.background))
        increment = cast_like(jax.tree.map(jnp.subtract, z, z_b), self.half.out_structure())
        return shortest_control(self.half, increment)

    def map_samples(self, fn: Callable, *arrays: PyTree) -> Any:
        """`fn(problem, *arrays)`: one sample is its own batch."""
        return fn(self, *arrays)


class BatchedProblem(eqx.Module):
    """The problems of B samples: the members of `ControlSpaceProblem` with a leading sample axis.

    Background and observations are per sample; B^{1/2}, the operators and the model are shared.
    """

    background: PyTree[Array]
    observed: ObservedEntries
    covariance: lx.AbstractLinearOperator
    half: lx.AbstractLinearOperator
    observe: AbstractObserving
    transform: PyTree
    penalties: tuple = ()

    @property
    def n_samples(self) -> int:
        return self.observed.value.shape[0]

    def map_samples(self, fn: Callable, *arrays: PyTree) -> Any:
        """`fn(problem, *arrays)` for every sample, with per-sample convergence; one sample is not vectorised."""

        def one(background: PyTree, observed: ObservedEntries, arguments: tuple) -> Any:
            shared = (self.covariance, self.half, starting(self.observe, observed.start), self.transform)
            penalties = tuple(around(penalty, background) for penalty in self.penalties)
            return fn(ControlSpaceProblem(background, observed, *shared, penalties), *arguments)

        per_sample = (self.background, self.observed, arrays)
        if self.n_samples == 1:
            alone = jax.tree.map(lambda a: a[0] if eqx.is_array(a) else a, per_sample)
            return jax.tree.map(lambda a: a[None] if eqx.is_array(a) else a, one(*alone))
        return eqx.filter_vmap(one)(*per_sample)

    def zero_control(self) -> PyTree[Array]:
        return self.map_samples(lambda problem: problem.zero_control())

    def control_to_state(self, control: PyTree[Array]) -> PyTree[Array]:
        return self.map_samples(lambda problem, chi: problem.control_to_state(chi), control)

    def predicted(self, control: PyTree[Array]) -> Array:
        return self.map_samples(lambda problem, chi: problem.predicted(chi), control)

    def residual(self, control: PyTree[Array]) -> PyTree[Array]:
        return self.map_samples(lambda problem, chi: problem.residual(chi), control)

    def terms(self, control: PyTree[Array]) -> CostTerms:
        return self.map_samples(lambda problem, chi: problem.terms(chi), control)

    def cost(self, control: PyTree[Array]) -> Float[Array, "B"]:
        return self.map_samples(lambda problem, chi: problem.cost(chi), control)

    def gradient(self, control: PyTree[Array]) -> PyTree[Array]:
        return self.map_samples(lambda problem, chi: problem.gradient(chi), control)

    def hessian_product(self, control: PyTree[Array], v: PyTree[Array]) -> PyTree[Array]:
        return self.map_samples(lambda problem, chi, u: problem.hessian_product(chi, u), control, v)
