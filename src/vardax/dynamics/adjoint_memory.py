"""What a `forward_adjoint` slot asks for, recognised by `to_diffrax_adjoint`.

| specification | what `rollout` keeps for the adjoint |
|---|---|
| `DirectAdjoint()`, `ForwardMode()` | `StoreLinearisation`: what every step needs |
| `RecursiveCheckpointAdjoint(checkpoints)` | `Rematerialise`: the starts of blocks, whose steps are run again |
| `BacksolveAdjoint(...)` | `Backwards`: the trajectory, from which the adjoint equation is integrated |

Anything else is refused with the reason, and so is a combination that cannot work: a continuous adjoint of a model
without a vector field, or of one whose tangent-linear model is asked for (`check_tangents`).
"""

import dataclasses
from typing import Any

import diffrax as dfx

from vardax.adjoints.mapping import to_diffrax_adjoint
from vardax.dynamics.backsolve import Backwards, backwards_of
from vardax.dynamics.diffrax_forward import DiffraxForward
from vardax.types import is_traced

__all__ = ["Rematerialise", "StoreLinearisation", "check_count", "check_reverse", "check_tangents", "forward_memory"]


@dataclasses.dataclass(frozen=True)
class StoreLinearisation:
    """Keep what the adjoint needs of every step."""


@dataclasses.dataclass(frozen=True)
class Rematerialise:
    """Keep the states at the starts of `checkpoints` blocks, and compute the rest again.

    None leaves the choice to `rollout`: keep everything within the budget, sqrt(K) blocks beyond.
    """

    checkpoints: int | None = None


def forward_memory(forward_adjoint: Any, forward: Any = None) -> StoreLinearisation | Rematerialise | Backwards:
    """What a `forward_adjoint` slot asks to keep, recognised by class name whichever package it is from.

    `forward` is the model, for adjoints that not every model can have.

    >>> forward_memory(dfx.RecursiveCheckpointAdjoint(checkpoints=4))
    Rematerialise(checkpoints=4)
    """
    native = to_diffrax_adjoint(forward_adjoint)
    if isinstance(native, dfx.DirectAdjoint | dfx.ForwardMode):
        return StoreLinearisation()
    if isinstance(native, dfx.RecursiveCheckpointAdjoint):
        return Rematerialise(_checked_checkpoints(native.checkpoints))
    if isinstance(native, dfx.BacksolveAdjoint):
        _check_vector_field(forward)
        return backwards_of(native)
    raise ValueError(
        f"`forward_adjoint` is {type(native).__name__}, which does not apply to a rollout: it differentiates a steady "
        "state, not a trajectory. Take RecursiveCheckpointAdjoint()."
    )


def _check_vector_field(forward: Any) -> None:
    if not callable(getattr(forward, "vector_field", None)):
        raise ValueError(
            "`forward_adjoint` is BacksolveAdjoint, which does not apply to this rollout: it integrates a vector field "
            f"backwards in time, and a discrete step has none. {type(forward).__name__} offers no "
            "`vector_field(t, x, args)`; make the model a DiffraxForward(vector_field, dt), or take "
            "RecursiveCheckpointAdjoint()."
        )


def check_tangents(forward: Any, forward_adjoint: Any, user: str) -> None:
    """Refuse, by name, a model run that can only be differentiated one way where `user` needs its tangent and adjoint.

    >>> check_tangents(None, dfx.RecursiveCheckpointAdjoint(), "GaussNewton")
    """
    if type(forward_adjoint).__name__ == "BacksolveAdjoint":
        raise ValueError(
            f"`forward_adjoint` is BacksolveAdjoint, which has no tangent-linear model: {user} needs one. Take "
            "RecursiveCheckpointAdjoint(checkpoints) for little memory, or a minimiser that needs gradients only, such "
            "as the default L-BFGS."
        )
    check_reverse(forward, user)


def check_reverse(forward: Any, user: str) -> None:
    """Refuse a model that was made for jvp only where `user` needs its adjoint."""
    if not isinstance(forward, DiffraxForward) or forward.steps_are_constant:
        return
    if isinstance(forward.adjoint, dfx.ForwardMode):
        raise ValueError(
            "`forward` is a DiffraxForward with adaptive steps and adjoint=ForwardMode(), which has no adjoint: "
            f"{user} needs one. Make it with adjoint=DirectAdjoint()."
        )


def check_count(name: str, count: Any, least: int) -> None:
    """Refuse what is no Python integer of at least `least`."""
    if is_traced(count):
        raise TypeError(f"`{name}` is traced; it fixes a shape, so it must be a Python integer (static under jit).")
    if isinstance(count, bool) or not hasattr(count, "__index__"):
        raise TypeError(f"`{name}` is {count!r}, expected an integer.")
    if count < least:
        raise ValueError(f"`{name}` is {count}, expected at least {least}.")


def _checked_checkpoints(checkpoints: Any) -> int | None:
    if checkpoints is None:
        return None
    check_count("checkpoints", checkpoints, 1)
    return int(checkpoints)
