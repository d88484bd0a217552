"""A posterior: the analysis and how sure it is.

`mean` is the analysis; `cov` its error covariance as a lazy operator (products, never a matrix), or `samples`, or both.
`std` and `sample` use whichever is there. All keep the sample axis of the batch: `std()` is (B, *state), `sample(key,
n)` is (B, n, *state).
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, PRNGKeyArray, PyTree

from vardax.covariances.functions import diagonal
from vardax.covariances.functions import sample as sample_covariance

__all__ = ["Posterior"]


class Posterior(eqx.Module):
    """N(mean, cov), or an empirical distribution given by `samples` (leading sample axis).

    `provenance` records the method, the adapter, iterations, cost, convergence and library versions.
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
        if self.samples is None:
            raise ValueError("Posterior.std needs `cov` or `samples`; this posterior has neither.")
        return jax.tree.map(lambda s: jnp.std(s, axis=0, ddof=1), self.samples)

    def sample(self, key: PRNGKeyArray, n: int) -> PyTree[Array]:
        """`n` states drawn from the posterior (drawn from `samples` with replacement where there is no `cov`)."""
        states: Any = getattr(self.cov, "sample_states", None)
        if states is not None:
            return states(key, n)
        if self.cov is not None:
            return jax.tree.map(lambda m, s: m[None] + s, self.mean, sample_covariance(self.cov, key, n))
        if self.samples is None:
            raise ValueError("Posterior.sample needs `cov` or `samples`; this posterior has neither.")
        count = jax.tree.leaves(self.samples)[0].shape[0]
        chosen = jax.random.randint(key, (n,), 0, count)
        return jax.tree.map(lambda s: s[chosen], self.samples)
