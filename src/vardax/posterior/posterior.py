"""A posterior: the analysis and how sure it is.

`mean` is the analysis; `cov` its error covariance as a lazy operator (products, never a matrix), or `samples`, or both.
`std`, `quantile` and `sample` use whichever is there. All keep the sample axis of the batch: `std()` is (B, *state),
`sample(key, n)` is (B, n, *state).

The posterior of a method knows more: `information_gain`, `logdet`, and for a window the state `at` any entry of it and
the whole `trajectory`.
"""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray, PyTree

from vardax.covariances.functions import diagonal, logdet
from vardax.covariances.functions import sample as sample_covariance
from vardax.posterior.covariance import PosteriorCovariance, gaussian_quantiles
from vardax.types import concrete_values

__all__ = ["Posterior"]


class Posterior(eqx.Module):
    """N(mean, cov), or an empirical distribution given by `samples` (leading sample axis).

    `provenance` records the method, the adapter, iterations, cost, convergence, instruments and library versions.
    """

    mean: PyTree[Array]
    cov: lx.AbstractLinearOperator | None = None
    samples: PyTree[Array] | None = None
    provenance: dict[str, Any] = eqx.field(default_factory=dict)

    def __check_init__(self) -> None:
        if self.cov is None:
            return
        acts_on, mean = (jax.tree.map(jnp.shape, tree) for tree in (self.cov.out_structure(), self.mean))
        if acts_on != mean:
            raise ValueError(f"Posterior: `cov` acts on {acts_on}, expected {mean}, the shape of `mean`.")

    def std(self) -> PyTree[Array]:
        """The standard deviation of each entry of the state."""
        if self.cov is not None:
            return jax.tree.map(lambda v: jnp.sqrt(jnp.maximum(v, 0)), diagonal(self.cov))
        return jax.tree.map(lambda s: jnp.std(s, axis=0, ddof=1), self._samples("std"))

    def quantile(self, q: ArrayLike | Sequence[float]) -> PyTree[Array]:
        """The quantiles `q` (from 0 to 1, a number or an array) of each entry; the axes of `q` come first.

        Of a positive or bounded state they are those of the Gaussian before the control transform, carried through it:
        exact for the posterior that `sample` draws from, never outside the range, and its median is the analysis.
        """
        q = jnp.asarray(q, jnp.result_type(float))
        values = concrete_values(q)
        if values is not None and not np.all((values >= 0) & (values <= 1)):
            raise ValueError(f"Posterior.quantile: `q` is {values}, expected numbers from 0 to 1.")
        if isinstance(self.cov, PosteriorCovariance):
            return self.cov.quantile(q)
        if self.cov is None:
            samples = self._samples("quantile")
            return jax.tree.map(lambda s: jnp.quantile(s, q.astype(s.dtype), axis=0), samples)
        return gaussian_quantiles(q, self.mean, self.std())

    def sample(self, key: PRNGKeyArray, n: int) -> PyTree[Array]:
        """`n` states drawn from the posterior (drawn from `samples` with replacement where there is no `cov`)."""
        states: Any = getattr(self.cov, "sample_states", None)
        if states is not None:
            return states(key, n)
        if self.cov is not None:
            return jax.tree.map(lambda m, s: m[None] + s, self.mean, sample_covariance(self.cov, key, n))
        samples = self._samples("sample")
        count = jax.tree.leaves(samples)[0].shape[0]
        chosen = jax.random.randint(key, (n,), 0, count)
        return jax.tree.map(lambda s: s[chosen], samples)

    def logdet(self) -> Float[Array, "..."]:
        """log|cov|, of each sample for the posterior of a method: the entropy is ½ (log|cov| + n log 2πe).

        Exact where a side of the problem is small. With `GaussNewtonHessian` it is that of the covariance its vectors
        give, an upper bound; beyond, an estimate (see `information_gain`). It needs the log-determinant of B.
        """
        if self.cov is None:
            raise ValueError("Posterior.logdet needs `cov`; the covariance of samples may be singular.")
        return self.cov.logdet() if isinstance(self.cov, PosteriorCovariance) else logdet(self.cov)

    def information_gain(self) -> Float[Array, "B"]:
        """½ log|I + GᵀG| in nats: how far the observations lowered the entropy of the control. 0 without observations.

        Exact where a side of the problem is small. With `GaussNewtonHessian` a lower bound, which rises with
        `n_krylov`; beyond, a stochastic Lanczos estimate, usually good to a few percent. B may be singular.
        """
        return self._of_method("information_gain").information_gain()

    def at(self, t: int) -> "Posterior":
        """The posterior of the state at entry `t` of the window, the model's error included in a weak constraint.

        Linearised around the analysis; `sample` runs the model from samples of the control.
        """
        return self._of(self._of_method("at").at(t))

    def trajectory(self) -> "Posterior":
        """The posterior of the states at all entries of the window, (B, T+1, *state)."""
        return self._of(self._of_method("trajectory").trajectory())

    def _of(self, cov: PosteriorCovariance) -> "Posterior":
        return Posterior(cov.mean(), cov, provenance=self.provenance)

    def _samples(self, member: str) -> PyTree[Array]:
        if self.samples is None:
            raise ValueError(f"Posterior.{member} needs `cov` or `samples`; this posterior has neither.")
        return self.samples

    def _of_method(self, member: str) -> PosteriorCovariance:
        if not isinstance(self.cov, PosteriorCovariance):
            raise ValueError(
                f"Posterior.{member} needs the posterior of a method, `method.posterior(batch)`, which knows the map "
                f"from control to observations; the covariance here is {type(self.cov).__name__}."
            )
        return self.cov
