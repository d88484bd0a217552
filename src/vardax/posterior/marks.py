"""A posterior as one event of a population: a Gaussian mark with what is known of the event.

    log p(x | event) = −½ Σ_i [ (x_i − mean_i)² / v_i + log(2π v_i) ]

Population models (hierarchical inversions, marked point processes) take many posteriors, each the result of one
analysis, and need of each its mean, its variances, perhaps samples, and when and where the event was. This is that
record. It goes to another program as JSON and comes back bit for bit.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array, Float, PyTree

from vardax.covariances.functions import diagonal
from vardax.posterior.json_form import from_json_form, to_json_form
from vardax.posterior.posterior import Posterior
from vardax.types import concrete_values

__all__ = ["GaussianMarkLikelihood"]

KEYS = ("mean", "cov_diag", "samples", "provenance", "event_metadata")


class GaussianMarkLikelihood(eqx.Module):
    """The diagonal Gaussian of a posterior, with the metadata of its event.

    - `posterior`: any; its correlations are left out, its samples are kept where it has them.
    - `event_metadata`: what belongs to the event, such as its time and place: strings, numbers, arrays, and dicts and
      lists of these.

    >>> from vardax.covariances.diagonal import DiagonalCovariance
    >>> mark = GaussianMarkLikelihood(Posterior(jnp.array([1.5]), DiagonalCovariance([4.0])), {"basin": "Permian"})
    >>> mark.to_dict()["cov_diag"]["values"], mark.to_dict()["event_metadata"]
    ([4.0], {'basin': 'Permian'})
    >>> float(GaussianMarkLikelihood.from_dict(mark.to_dict()).log_prob(jnp.array([1.5]))) == float(
    ...     mark.log_prob(jnp.array([1.5]))
    ... )
    True
    """

    posterior: Posterior
    event_metadata: dict[str, Any]

    def __init__(self, posterior: Posterior, event_metadata: dict[str, Any] | None = None):
        if posterior.cov is None and posterior.samples is None:
            raise ValueError("GaussianMarkLikelihood: `posterior` has neither `cov` nor `samples`, so no variances.")
        self.posterior = posterior
        self.event_metadata = {} if event_metadata is None else dict(event_metadata)
        to_json_form(self.event_metadata, "event_metadata")

    @property
    def mean(self) -> PyTree[Array]:
        """The mean of the posterior."""
        return self.posterior.mean

    @property
    def cov_diag(self) -> PyTree[Array]:
        """The variances, with the structure of the mean: of the covariance, or where there is none of the samples."""
        if self.posterior.cov is not None:
            return jax.tree.map(lambda v: jnp.maximum(v, 0), diagonal(self.posterior.cov))
        return jax.tree.map(lambda s: jnp.var(s, axis=0, ddof=1), self.posterior.samples)

    def log_prob(self, x: PyTree[Array]) -> Float[Array, ""]:
        """The log-density at `x`, which has the structure and shapes of the mean; `jax.vmap` for several."""
        shapes, variances = jax.tree.map(jnp.shape, (x, self.mean)), self.cov_diag
        if shapes[0] != shapes[1]:
            raise ValueError(f"GaussianMarkLikelihood.log_prob: `x` has shape {shapes[0]}, expected {shapes[1]}.")
        values = [concrete_values(v) for v in jax.tree.leaves(variances)]
        if bad := sum(int(np.sum(~(v > 0))) for v in values if v is not None):
            raise ValueError(
                f"GaussianMarkLikelihood.log_prob: {bad} variances are not positive, so there is no density; leave "
                "those entries out of the state, or give a posterior that is spread in all."
            )
        term = lambda a, m, v: jnp.sum((a - m) ** 2 / v + jnp.log(2 * jnp.pi * v))  # noqa: E731
        return -0.5 * jax.tree.reduce(jnp.add, jax.tree.map(term, x, self.mean, variances))

    def to_dict(self) -> dict[str, Any]:
        """The keys `mean`, `cov_diag`, `samples`, `provenance` and `event_metadata`, ready for `json.dumps`.

        An array is {"__type__": "array", "dtype", "shape", "values"}, with nested lists of numbers that JSON keeps
        exactly; entries that are not finite are the strings "NaN", "Infinity" and "-Infinity".
        """
        parts = (self.mean, self.cov_diag, self.posterior.samples, self.posterior.provenance, self.event_metadata)
        return {key: to_json_form(part, key) for key, part in zip(KEYS, parts, strict=True)}

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> "GaussianMarkLikelihood":
        """The mark that `to_dict` wrote down, with a diagonal covariance. Arrays of the provenance are numpy's."""
        if missing := [key for key in KEYS if key not in record]:
            raise ValueError(f"GaussianMarkLikelihood.from_dict: `record` lacks {missing}, expected {list(KEYS)}.")
        mean, variances, samples = (_on_device(from_json_form(record[key], key), key) for key in KEYS[:3])
        provenance, metadata = (from_json_form(record[key], key) for key in KEYS[3:])
        covariance = lx.DiagonalLinearOperator(variances)
        return cls(Posterior(mean, covariance, samples, provenance), metadata)


def _on_device(tree: PyTree, name: str) -> PyTree[Array]:
    """JAX arrays of the dtypes that were written down."""

    def one(leaf: np.ndarray) -> Array:
        array = jnp.asarray(leaf)
        if array.dtype != leaf.dtype:
            raise ValueError(
                f"GaussianMarkLikelihood.from_dict: `{name}` was written in {leaf.dtype}, which this process rounds to "
                f"{array.dtype}; set `jax_enable_x64`."
            )
        return array

    return jax.tree.map(one, tree)
