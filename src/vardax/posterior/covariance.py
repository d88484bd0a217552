"""The covariance of a posterior as a lazy operator.

    P = f' (I + GᵀG)⁻¹ f'ᵀ

at the analysis chi*, with G the derivative of the whitened prediction and f the quantity that is asked about: the
state, with f' = dx/dchi, or the state at another entry of the window. For an affine observation operator and model
this is exact, (B⁻¹ + HᵀR⁻¹H)⁻¹; otherwise it is the Gauss-Newton form of Laplace's approximation. G is the true
control-to-observation map: masks, R, averaging in time and the model are in it. What stands for (I + GᵀG)⁻¹ is one of
`vardax.posterior.inverses`.

Samples are exact at any size. Variances are exact where the inverse knows them; beyond, they are the
`local_variances` of a field that is observed at single cells, or the variance of `n_samples` samples (relative
standard error of the standard deviation: 1 / sqrt(2 n_samples)).
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from vardax.covariances.base import register_semidefinite
from vardax.covariances.functions import logdet
from vardax.covariances.sizes import TooLarge
from vardax.minimisers.problem import BatchedProblem, ControlSpaceProblem
from vardax.minimisers.transforms import from_control
from vardax.posterior.inverses import AbstractInverse, IterativeInverse, Linearised
from vardax.posterior.local_variances import is_cellwise, looks_at_cells, untransformed_variances
from vardax.posterior.quantities import AbstractQuantity, Entry, State, Trajectory, Untransformed
from vardax.types import is_traced

__all__ = ["PosteriorCovariance", "gaussian_quantiles"]


class PosteriorCovariance(lx.AbstractLinearOperator):
    """P as a lazy operator on (B, *state), block diagonal over the samples; on (*state) for one sample."""

    problem: BatchedProblem | ControlSpaceProblem
    control: PyTree[Array]
    inverse: AbstractInverse
    n_samples: int = eqx.field(static=True, default=200)
    quantity: AbstractQuantity = State()

    def mv(self, vector: PyTree[Array]) -> PyTree[Array]:
        """P v = f' (I + GᵀG)⁻¹ f'ᵀ v."""
        return _product(self, vector)

    def mean(self) -> PyTree[Array]:
        """The quantity at the analysis."""
        return _mean(self)

    def diagonal(self) -> PyTree[Array]:
        """The posterior variances, (B, *state)."""
        try:
            return _variances(self)
        except TooLarge:
            return self._local_variances() if self._is_local() else _sampled_variances(self)

    def _is_local(self) -> bool:
        """Whether the variances follow from the observations near each cell; under tracing that cannot be seen."""
        wanted = isinstance(self.inverse, IterativeInverse) and isinstance(self.quantity, State | Untransformed)
        if not wanted or not is_cellwise(self.problem):
            return False
        local = looks_at_cells(self.problem, self.control)
        return not is_traced(local) and bool(jnp.all(local))

    def _local_variances(self) -> Float[Array, "..."]:
        variances = untransformed_variances(self.problem, self.control)
        return variances if isinstance(self.quantity, Untransformed) else _carried(self, variances)

    def sample(self, key: PRNGKeyArray, n: int) -> PyTree[Array]:
        """n increments from N(0, P) for each sample: (B, n, *state)."""
        return _draw_increments(self, self._keys(key), n)

    def sample_states(self, key: PRNGKeyArray, n: int) -> PyTree[Array]:
        """n states around the analysis: (B, n, *state); drawn in control space, so a positive state stays positive, and
        a later entry of a window is where the model takes the sample."""
        return _draw_states(self, self._keys(key), n)

    def quantile(self, q: Float[Array, "..."]) -> PyTree[Array]:
        """The quantiles of each entry, the axes of `q` first; those of a state go through the control transform."""
        gaussian = self.of(Untransformed()) if isinstance(self.quantity, State) else self
        spread = jax.tree.map(lambda v: jnp.sqrt(jnp.maximum(v, 0)), gaussian.diagonal())
        quantiles = gaussian_quantiles(q, gaussian.mean(), spread)
        return quantiles if gaussian is self else from_control(self.problem.transform, quantiles)

    def information_gain(self) -> Float[Array, "..."]:
        """½ log|I + GᵀG| of each sample, in nats: by how much the observations lowered the entropy."""
        if not self.problem.observe.proper:
            raise ValueError(
                "information_gain: part of the control has no prior that the observations could improve on; take "
                "sub-windows one after another, `parallel=False`."
            )
        return _information_gain(self)

    def logdet(self) -> Float[Array, "..."]:
        """log|P| of each sample: log|B| + 2 Σ log(dT/dz) - 2 × the information gain. Needs a log|B|."""
        if not isinstance(self.quantity, State):
            raise ValueError(
                f"logdet: that of {type(self.quantity).__name__} is not known without its matrix; ask the posterior of "
                "the control (`method.posterior(batch).logdet()`), or `as_matrix()` of a small state."
            )
        return _prior_logdet(self) - 2 * self.information_gain()

    def of(self, quantity: AbstractQuantity) -> "PosteriorCovariance":
        """The covariance of another quantity of the same control."""
        return PosteriorCovariance(self.problem, self.control, self.inverse, self.n_samples, quantity)

    def at(self, t: int) -> "PosteriorCovariance":
        """That of the state at entry `t` of the window."""
        n_entries = self._n_entries("at")
        if not -n_entries <= t < n_entries:
            raise ValueError(f"Posterior.at: `t` is {t}, expected an entry of the window, 0 to {n_entries - 1}.")
        return self.of(Entry(jnp.asarray(t % n_entries)))

    def trajectory(self) -> "PosteriorCovariance":
        """That of all entries of the window."""
        self._n_entries("trajectory")
        return self.of(Trajectory())

    def _n_entries(self, member: str) -> int:
        entries = jax.eval_shape(lambda: self.of(Trajectory()).mean())
        if entries is None:
            raise ValueError(f"Posterior.{member} needs a window; this is the posterior of one time (see `std`).")
        return jax.tree.leaves(entries)[0].shape[1 if isinstance(self.problem, BatchedProblem) else 0]

    def _keys(self, key: PRNGKeyArray) -> Array:
        return jax.random.split(key, self.problem.n_samples) if isinstance(self.problem, BatchedProblem) else key

    def views(self, fn: Callable, *arrays: PyTree[Array]) -> Any:
        """`fn(inverse, at, *arrays)` for every sample, linearised at its analysis."""

        def one(problem: ControlSpaceProblem, control: PyTree, inverse: AbstractInverse, *rest: PyTree) -> Any:
            return fn(inverse, Linearised(problem, control, self.quantity, inverse.needs_products), *rest)

        return self.problem.map_samples(one, self.control, self.inverse, *arrays)

    def as_matrix(self) -> Float[Array, "n n"]:
        """The dense matrix, for small states."""
        flat, unravel = ravel_pytree(jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), self.in_structure()))
        return jax.lax.map(lambda e: ravel_pytree(self.mv(unravel(e)))[0], jnp.eye(flat.size, dtype=flat.dtype))

    def transpose(self) -> "PosteriorCovariance":
        return self

    def in_structure(self) -> PyTree[jax.ShapeDtypeStruct]:
        if isinstance(self.quantity, State):
            return jax.eval_shape(lambda: self.problem.background)
        return jax.eval_shape(self.mean)

    def out_structure(self) -> PyTree[jax.ShapeDtypeStruct]:
        return self.in_structure()


register_semidefinite(PosteriorCovariance)


@eqx.filter_jit
def _carried(covariance: PosteriorCovariance, variances: Array) -> Array:
    """The variances of z as those of x = T(z)."""
    slopes = covariance.problem.map_samples(lambda p, control: p.transform_slopes(control), covariance.control)
    return slopes**2 * variances


def gaussian_quantiles(q: Float[Array, "..."], mean: PyTree[Array], std: PyTree[Array]) -> PyTree[Array]:
    """mean + Φ⁻¹(q) std, entry by entry, the axes of `q` first."""
    scores = jax.scipy.special.ndtri(q)

    def of_leaf(m: Array, s: Array) -> Array:
        return jnp.expand_dims(m, tuple(range(q.ndim))) + jnp.multiply.outer(scores.astype(s.dtype), s)

    return jax.tree.map(of_leaf, mean, std)


@eqx.filter_jit
def _product(covariance: PosteriorCovariance, vector: PyTree[Array]) -> PyTree[Array]:
    return covariance.views(lambda inverse, at, v: at.S(inverse.solve(at, at.ST(v))), vector)


@eqx.filter_jit
def _mean(covariance: PosteriorCovariance) -> PyTree[Array]:
    return covariance.problem.map_samples(covariance.quantity, covariance.control)


@eqx.filter_jit
def _variances(covariance: PosteriorCovariance) -> PyTree[Array]:
    return covariance.views(lambda inverse, at: inverse.variances(at))


@eqx.filter_jit
def _information_gain(covariance: PosteriorCovariance) -> Float[Array, "..."]:
    return covariance.views(lambda inverse, at: inverse.information_gain(at))


@eqx.filter_jit
def _prior_logdet(covariance: PosteriorCovariance) -> Float[Array, "..."]:
    """log|dT/dz B dT/dz|."""
    log_B = logdet(covariance.problem.covariance)

    def one(problem: ControlSpaceProblem, control: PyTree[Array]) -> Array:
        slopes = problem.transform_slopes(control)
        return log_B + 2 * sum(jnp.sum(jnp.log(slope)) for slope in jax.tree.leaves(slopes))

    return covariance.problem.map_samples(one, covariance.control)


def _sampled_variances(covariance: PosteriorCovariance) -> PyTree[Array]:
    draws = covariance.sample(jax.random.key(0), covariance.n_samples)
    axis = 1 if isinstance(covariance.problem, BatchedProblem) else 0
    return jax.tree.map(lambda s: jnp.mean(s**2, axis=axis), draws)


@eqx.filter_jit
def _draw_increments(covariance: PosteriorCovariance, keys: Array, n: int) -> PyTree[Array]:
    def increments(inverse: AbstractInverse, at: Linearised, key: PRNGKeyArray) -> PyTree[Array]:
        return _map_draws(lambda d: at.S(inverse.draw(at, d)), key, n)

    return covariance.views(increments, keys)


@eqx.filter_jit
def _draw_states(covariance: PosteriorCovariance, keys: Array, n: int) -> PyTree[Array]:
    def states(inverse: AbstractInverse, at: Linearised, key: PRNGKeyArray) -> PyTree[Array]:
        around = lambda d: jax.tree.map(jnp.add, at.control, inverse.draw(at, d))  # noqa: E731
        return _map_draws(lambda d: at.quantity(at.problem, around(d)), key, n)

    return covariance.views(states, keys)


def _map_draws(fn: Callable, key: PRNGKeyArray, n: int) -> PyTree[Array]:
    """One draw after another: a solve each, so that no more than one is in memory."""
    return jax.lax.map(fn, jax.random.split(key, n))
