"""The systems of E. N. Lorenz as priors of their trajectories.

    phi(x)_0 = x_0,   phi(x)_t = M^n(x_{t-1}),        M one Runge-Kutta step of Lorenz-63 or Lorenz-96

`DynamicalPrior` with the models of `vardax.dynamics`. Their parameters are leaves: they can be trained together with
what else a method learns, or replaced.

Reference: R. Fablet et al., "Learning variational data assimilation models and solvers", JAMES 13 (2021), which takes
both as the priors of its experiments.
"""

from typing import Any, SupportsIndex

import optimistix as optx
from jaxtyping import Array, ArrayLike, Float

from vardax.dynamics.lorenz63 import Lorenz63
from vardax.dynamics.lorenz96 import Lorenz96
from vardax.priors.dynamical import AbstractDynamicalPrior, checked_intervals
from vardax.priors.intervals import Intervals

__all__ = ["L63Prior", "L96Prior"]


class L63Prior(AbstractDynamicalPrior):
    """Lorenz-63, for trajectories (T, 3) with `n_steps` steps of `dt` from one entry to the next.

    >>> import equinox as eqx
    >>> import jax.numpy as jnp
    >>> prior = L63Prior(rho=20.0)
    >>> prior = eqx.tree_at(lambda p: p.forward.rho, prior, jnp.array(28.0))
    >>> float(prior.forward.rho), prior(jnp.ones((4, 3))).shape
    (28.0, (4, 3))
    """

    intervals: Intervals

    def __init__(
        self,
        sigma: ArrayLike = 10.0,
        rho: ArrayLike = 28.0,
        beta: ArrayLike = 8.0 / 3.0,
        dt: ArrayLike = 0.01,
        *,
        n_steps: SupportsIndex = 1,
        forward_adjoint: Any = optx.RecursiveCheckpointAdjoint(),  # noqa: B008  (an immutable value)
    ):
        model = Lorenz63(sigma, rho, beta, dt)
        self.intervals = checked_intervals(model, n_steps, forward_adjoint, 0.0, "L63Prior")

    def __call__(self, x: Float[Array, "T n"]) -> Float[Array, "T n"]:
        return self.intervals.entry_by_entry(x)


class L96Prior(AbstractDynamicalPrior):
    """Lorenz-96, for trajectories (T, n) with `n_steps` steps of `dt` from one entry to the next.

    >>> import jax.numpy as jnp
    >>> L96Prior()(jnp.full((3, 40), 8.0))[2, 0].item()  # a fixed point
    8.0
    """

    intervals: Intervals

    def __init__(
        self,
        n: SupportsIndex = 40,
        forcing: ArrayLike = 8.0,
        dt: ArrayLike = 0.05,
        *,
        n_steps: SupportsIndex = 1,
        forward_adjoint: Any = optx.RecursiveCheckpointAdjoint(),  # noqa: B008  (an immutable value)
    ):
        model = Lorenz96(n, forcing, dt)
        self.intervals = checked_intervals(model, n_steps, forward_adjoint, 0.0, "L96Prior")

    def __call__(self, x: Float[Array, "T n"]) -> Float[Array, "T n"]:
        return self.intervals.entry_by_entry(x)
