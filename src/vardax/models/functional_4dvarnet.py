"""The learned solver as functions: a prior, a modulator and a batch in, states out.

    solve_4dvarnet_1d/2d              differentiated through all iterations
    one_step_solve_4dvarnet_1d/2d     differentiated through the last one (`OneStepAdjoint`)
    solve_4dvarnet_1d_fixedpoint      differentiated at the fixed point (`ImplicitAdjoint`)

All give the same value, that of `FourDVarNet` with the same parts; they are for training loops of one's own.
"""

from typing import Any

import optimistix as optx
from jaxtyping import Array, Float

from vardax.adjoints.one_step import OneStepAdjoint
from vardax.minimisers.solver_config import SolverConfig
from vardax.models.fourdvarnet import FourDVarNet
from vardax.obs_operators.identity import MaskedIdentity
from vardax.types import Batch1D, Batch2D, Batch2DMultivar

__all__ = [
    "one_step_solve_4dvarnet_1d",
    "one_step_solve_4dvarnet_2d",
    "solve_4dvarnet_1d",
    "solve_4dvarnet_1d_fixedpoint",
    "solve_4dvarnet_2d",
]

_UNROLLED, _ONE_STEP, _FIXED_POINT = optx.RecursiveCheckpointAdjoint(), OneStepAdjoint(), optx.ImplicitAdjoint()


def _solve(
    name: str,
    kinds: tuple[type, ...],
    adjoint: optx.AbstractAdjoint,
    batch: Any,
    prior: Any,
    grad_mod: Any,
    config: SolverConfig,
    obs_op: Any,
    first_guess: Any,
) -> Array:
    if not isinstance(batch, kinds):
        expected = " or ".join(kind.__name__ for kind in kinds)
        raise TypeError(f"{name}: `batch` is {type(batch).__name__}, expected {expected}.")
    model = FourDVarNet(prior, obs_op, grad_mod, config, adjoint)
    return model.analyse(batch, first_guess=first_guess).state


def solve_4dvarnet_1d(
    batch: Any,
    prior: Any,
    grad_mod: Any,
    config: SolverConfig = SolverConfig(),  # noqa: B008  (an immutable value)
    *,
    obs_op: Any = MaskedIdentity(),  # noqa: B008  (an immutable value)
    first_guess: Float[Array, "..."] | None = None,
) -> Float[Array, "B ..."]:
    """The reconstructions of windows (B, T, N), differentiable through all iterations.

    >>> import jax.numpy as jnp
    >>> from vardax.grad_mod.identity import IdentityGradMod
    >>> from vardax.priors.identity import IdentityPrior
    >>> batch = Batch1D.from_observations(jnp.full((1, 2, 3), 2.0))
    >>> solve_4dvarnet_1d(batch, IdentityPrior(), IdentityGradMod(0.5)).tolist()
    [[[2.0, 2.0, 2.0], [2.0, 2.0, 2.0]]]
    """
    return _solve("solve_4dvarnet_1d", (Batch1D,), _UNROLLED, batch, prior, grad_mod, config, obs_op, first_guess)


def one_step_solve_4dvarnet_1d(
    batch: Any,
    prior: Any,
    grad_mod: Any,
    config: SolverConfig = SolverConfig(),  # noqa: B008  (an immutable value)
    *,
    obs_op: Any = MaskedIdentity(),  # noqa: B008  (an immutable value)
    first_guess: Float[Array, "..."] | None = None,
) -> Float[Array, "B ..."]:
    """`solve_4dvarnet_1d`, differentiated through the last iteration only."""
    name = "one_step_solve_4dvarnet_1d"
    return _solve(name, (Batch1D,), _ONE_STEP, batch, prior, grad_mod, config, obs_op, first_guess)


def solve_4dvarnet_1d_fixedpoint(
    batch: Any,
    prior: Any,
    grad_mod: Any,
    config: SolverConfig = SolverConfig(),  # noqa: B008  (an immutable value)
    *,
    obs_op: Any = MaskedIdentity(),  # noqa: B008  (an immutable value)
    first_guess: Float[Array, "..."] | None = None,
) -> Float[Array, "B ..."]:
    """`solve_4dvarnet_1d`, differentiated at the fixed point of its step: for iterations that converge."""
    name = "solve_4dvarnet_1d_fixedpoint"
    return _solve(name, (Batch1D,), _FIXED_POINT, batch, prior, grad_mod, config, obs_op, first_guess)


def solve_4dvarnet_2d(
    batch: Any,
    prior: Any,
    grad_mod: Any,
    config: SolverConfig = SolverConfig(),  # noqa: B008  (an immutable value)
    *,
    obs_op: Any = MaskedIdentity(),  # noqa: B008  (an immutable value)
    first_guess: Float[Array, "..."] | None = None,
) -> Float[Array, "B ..."]:
    """The reconstructions of windows (B, T, H, W) or (B, T, C, H, W), differentiable through all iterations."""
    kinds = (Batch2D, Batch2DMultivar)
    return _solve("solve_4dvarnet_2d", kinds, _UNROLLED, batch, prior, grad_mod, config, obs_op, first_guess)


def one_step_solve_4dvarnet_2d(
    batch: Any,
    prior: Any,
    grad_mod: Any,
    config: SolverConfig = SolverConfig(),  # noqa: B008  (an immutable value)
    *,
    obs_op: Any = MaskedIdentity(),  # noqa: B008  (an immutable value)
    first_guess: Float[Array, "..."] | None = None,
) -> Float[Array, "B ..."]:
    """`solve_4dvarnet_2d`, differentiated through the last iteration only."""
    name, kinds = "one_step_solve_4dvarnet_2d", (Batch2D, Batch2DMultivar)
    return _solve(name, kinds, _ONE_STEP, batch, prior, grad_mod, config, obs_op, first_guess)
