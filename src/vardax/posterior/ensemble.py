"""The posterior that an ensemble is.

    mean = Σ_i x_i / n        cov = inflation² A Aᵀ / (n − 1),   A = (x_1 − mean, ..., x_n − mean)

Members come from an ensemble of analyses, an ensemble filter, or any program that gives equally likely states. The
covariance is of rank n − 1 at most and stays that way: products cost two passes over the members, and nothing of the
size of the state squared is built.
"""

import importlib.metadata
from typing import Any, SupportsIndex

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PyTree

from vardax.covariances.ensemble import LocalizedEnsembleCovariance
from vardax.posterior.posterior import Posterior
from vardax.posterior.provenance import LIBRARIES, provenance_of
from vardax.types import concrete_values, float_array

__all__ = ["EnsembleCovariance"]


class EnsembleCovariance(eqx.Module):
    """The posterior adapter of ensembles: mean and covariance of `n_members` states, without a batch axis.

    `inflation` multiplies the deviations from the mean, and so the standard deviations; the `samples` of the posterior
    are the members with inflated deviations. One member says nothing about its error: its covariance is zero.

    >>> members = jnp.array([[0.0, 1.0], [2.0, 1.0]])
    >>> posterior = EnsembleCovariance(n_members=2, inflation=2.0)(members)
    >>> posterior.mean.tolist(), posterior.cov.as_matrix().tolist()
    ([1.0, 1.0], [[8.0, 0.0], [0.0, 0.0]])
    """

    n_members: int = eqx.field(static=True)
    inflation: Float[Array, ""]

    def __init__(self, n_members: SupportsIndex, inflation: ArrayLike = 1.0):
        self.n_members, self.inflation = int(n_members), float_array(inflation)
        factor = concrete_values(self.inflation)
        if self.n_members < 1:
            raise ValueError(f"EnsembleCovariance: `n_members` is {self.n_members}, expected at least 1.")
        if factor is not None and not (np.isfinite(factor) and factor > 0):
            raise ValueError(f"EnsembleCovariance: `inflation` is {factor:g}, expected a positive number.")

    def __call__(self, members: PyTree[ArrayLike], model: Any = None, batch: Any = None) -> Posterior:
        """The posterior of `members`: (n, *state), or a pytree of arrays with the members along axis 0.

        `model` and `batch`, where the members come from a method, are for the provenance: its name, and how many
        observations of each instrument it used.
        """
        members = jax.tree.map(float_array, members)
        self._require_members(members)
        mean = jax.tree.map(lambda m: jnp.mean(m, axis=0), members)
        inflated = jax.tree.map(lambda m, x: m[None] + self.inflation.astype(x.dtype) * (x - m[None]), mean, members)
        record = {"n_members": self.n_members, "inflation": self.inflation, **self._provenance(mean, model, batch)}
        return Posterior(mean, LocalizedEnsembleCovariance(inflated, None), inflated, record)

    def _require_members(self, members: PyTree[Array]) -> None:
        for path, leaf in jax.tree_util.tree_flatten_with_path(members)[0]:
            if leaf.ndim == 0 or leaf.shape[0] != self.n_members:
                raise ValueError(
                    f"EnsembleCovariance: `members{jax.tree_util.keystr(path)}` has shape {leaf.shape}, expected "
                    f"({self.n_members}, *state): `n_members` along axis 0."
                )

    def _provenance(self, mean: PyTree[Array], model: Any, batch: Any) -> dict[str, Any]:
        """What is known of where the members come from."""
        method = "" if model is None else type(getattr(model, "method", model)).__name__
        if model is not None and batch is not None and hasattr(model, "problem"):
            return provenance_of(mean, model.problem(batch), self, method)
        versions = {name: importlib.metadata.version(name) for name in LIBRARIES}
        return {"method": method, "adapter": type(self).__name__, "versions": versions}
