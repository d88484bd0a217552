r"""Two-level Lorenz-96: K slow variables on a circle, each coupled to J fast ones.

    dX_k/dt = (X_{k+1} - X_{k-2}) X_{k-1} - X_k + F - (h c / b) Σ_j Y_{j,k}
    dY_{j,k}/dt = c b (Y_{j-1,k} - Y_{j+2,k}) Y_{j+1,k} - c Y_{j,k} + (h c / b) X_k

All fast variables form one circle of K J: Y_{J+1,k} is Y_{1,k+1}. They are c times as fast and b times as small as the
slow ones. A model that has only the X_k is wrong by the sum over the Y: the standard test of methods that allow for
model error. The advection of the fast circle is that of the slow one, read backwards, so its derivative is the
hand-written one of `lorenz96`. Time stepping is the classical fourth-order Runge-Kutta scheme.

Reference: E. N. Lorenz, "Predictability: a problem partly solved", ECMWF seminar (1996); notation of D. S. Wilks,
Q. J. R. Meteorol. Soc. 131 (2005), 389-407.
"""

from typing import Any, SupportsIndex

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from vardax.dynamics.lorenz96 import advection
from vardax.dynamics.lorenz96 import largest_stable_dt as largest_stable_dt_of_one_level
from vardax.dynamics.runge_kutta import beyond_limit, rk4
from vardax.dynamics.stepping import checked_count, checked_dt, in_state_dtype
from vardax.types import concrete_values, float_array

__all__ = ["TwoLevelLorenz96", "largest_stable_dt"]


def largest_stable_dt(forcing: float, h: float, c: float) -> float:
    """The longest time step that is accepted: that of one level, or 0.85 / (c (4 + 0.3 |h F|)) of the fast level.

    Fitted below the steps at which runs first blow up (c dt = 0.137 for h F = 10, 0.104 for 20, 0.064 for 40; J from 8
    to 32, c from 4 to 20, b from 5 to 20).

    >>> largest_stable_dt(20.0, 1.0, 10.0)
    0.0085
    """
    fast = 0.85 / (abs(c) * (4.0 + 0.3 * abs(h * forcing))) if c else 0.5
    return min(largest_stable_dt_of_one_level(forcing), fast)


class TwoLevelLorenz96(eqx.Module):
    """The two-level Lorenz-96 model as a `ForwardModel`.

    The last axis of the state has the K slow variables, then the K J fast ones, those of X_0 first. `slow` and `fast`
    take them out. `forcing`, `h`, `c` and `b` are scalars and traced leaves: they can be estimated. `dt` beyond
    `largest_stable_dt` is refused instead of returning NaN.

    >>> model = TwoLevelLorenz96(K=8, J=8)
    >>> model.n, model.fast(jnp.arange(72.0))[1, 0].item()
    (72, 16.0)
    """

    K: int = eqx.field(static=True)
    J: int = eqx.field(static=True)
    forcing: Float[Array, ""]
    h: Float[Array, ""]
    c: Float[Array, ""]
    b: Float[Array, ""]
    dt: float | Array

    def __init__(
        self,
        K: SupportsIndex = 8,
        J: SupportsIndex = 8,
        forcing: ArrayLike = 20.0,
        h: ArrayLike = 1.0,
        c: ArrayLike = 10.0,
        b: ArrayLike = 10.0,
        dt: ArrayLike = 0.005,
    ):
        owner = "TwoLevelLorenz96"
        self.K = checked_count(K, "K", owner, least=4, meaning=", the stencil's points")
        self.J = checked_count(J, "J", owner, least=1)
        for name, value in (("forcing", forcing), ("h", h), ("c", c), ("b", b)):
            if jnp.shape(value) != ():
                raise ValueError(f"{owner}: `{name}` has shape {jnp.shape(value)}, expected a scalar.")
            setattr(self, name, float_array(value))
        if (value := concrete_values(self.b)) is not None and value == 0:
            raise ValueError(f"{owner}: `b` is 0, expected the ratio of the amplitudes, which divides the coupling.")
        self.dt = checked_dt(dt, owner)
        self._check_stable(self.dt)

    @property
    def n(self) -> int:
        """The size of the state, K (J + 1)."""
        return self.K * (self.J + 1)

    @property
    def state_signature(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((self.n,), self.forcing.dtype)

    def slow(self, state: Float[Array, "*batch n"]) -> Float[Array, "*batch K"]:
        """X_k."""
        return state[..., : self.K]

    def fast(self, state: Float[Array, "*batch n"]) -> Float[Array, "*batch K J"]:
        """Y_{j,k}, those of each slow variable on the last axis."""
        return state[..., self.K :].reshape(*state.shape[:-1], self.K, self.J)

    def tendency(self, state: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
        """dX/dt and dY/dt."""
        forcing, h, c, b = (p.astype(state.dtype) for p in (self.forcing, self.h, self.c, self.b))
        X, Y = self.slow(state), self.fast(state)
        coupling = h * c / b
        circle = state[..., self.K :]
        backwards = jnp.flip(advection(jnp.flip(circle, axis=-1)), axis=-1)
        from_slow = jnp.broadcast_to(X[..., None], Y.shape).reshape(circle.shape)
        dX = advection(X) - X + jnp.broadcast_to(forcing, X.shape) - coupling * jnp.sum(Y, axis=-1)
        dY = c * b * backwards - c * circle + coupling * from_slow
        return jnp.concatenate([dX, dY], axis=-1)

    def vector_field(self, t: Any, y: Float[Array, "*batch n"], args: Any) -> Float[Array, "*batch n"]:
        """The tendency as diffrax asks for it; the system does not depend on `t`, and takes no `args`."""
        return self.tendency(y)

    def step(self, state: Float[Array, "*batch n"], dt: ArrayLike) -> Float[Array, "*batch n"]:
        """One Runge-Kutta step of length `dt`, in the dtype of `state`."""
        if state.shape[-1:] != (self.n,):
            raise ValueError(f"TwoLevelLorenz96.step: `state` has shape {state.shape}, expected (..., {self.n}).")
        self._check_stable(dt)
        return rk4(self.tendency, state, in_state_dtype(dt, state))

    def _check_stable(self, dt: ArrayLike) -> None:
        values = [concrete_values(value) for value in (self.forcing, self.h, self.c, dt)]
        if any(value is None for value in values):
            return
        forcing, h, c, step = (float(value) for value in values if value is not None)
        limit = largest_stable_dt(forcing, h, c)
        if beyond_limit(step, limit):
            raise ValueError(
                f"TwoLevelLorenz96: `dt` is {step:g}, beyond the stability limit {limit:.3g} of the Runge-Kutta scheme "
                f"for forcing {forcing:g}, h {h:g}, c {c:g}; take a shorter `dt` and more steps (`n_substeps`)."
            )
