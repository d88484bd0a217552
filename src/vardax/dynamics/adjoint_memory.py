"""What a `forward_adjoint` slot asks for, recognised by class name whichever package it is from.

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
import optimistix as optx

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


_REFUSED = {
    "ImplicitAdjoint": "it differentiates a steady state or a converged solve, not a trajectory",
    "KStepAdjoint": "it truncates the iterations of an inner solver, not a trajectory: use it as `minimiser_adjoint`",
    "OneStepAdjoint": "it truncates the iterations of an inner solver, not a trajectory: use it as `minimiser_adjoint`",
    "TruncatedAdjoint": "it truncates the iterations of an inner solver, not a trajectory: use it as "
    "`minimiser_adjoint`",
}
_ACCEPTED = (
    "RecursiveCheckpointAdjoint(checkpoints=None), DirectAdjoint(), ForwardMode(), or BacksolveAdjoint() for a model "
    "with a vector field"
)


def forward_memory(forward_adjoint: Any, forward: Any = None) -> StoreLinearisation | Rematerialise | Backwards:
    """What a `forward_adjoint` slot asks to keep, recognised by class name whichever package it is from.

    `forward` is the model, for adjoints that not every model can have.

    >>> forward_memory(optx.RecursiveCheckpointAdjoint(checkpoints=4))
    Rematerialise(checkpoints=4)
    """
    if isinstance(forward_adjoint, type):
        name = forward_adjoint.__name__
        raise TypeError(f"`forward_adjoint` is the class {name}, expected an instance: {name}().")
    name = type(forward_adjoint).__name__
    if name in ("DirectAdjoint", "ForwardMode"):
        return StoreLinearisation()
    if name == "RecursiveCheckpointAdjoint":
        return Rematerialise(_checked_checkpoints(getattr(forward_adjoint, "checkpoints", None)))
    if name == "BacksolveAdjoint":
        _check_vector_field(forward)
        return backwards_of(forward_adjoint)
    if name in _REFUSED:
        raise ValueError(
            f"`forward_adjoint` is {name}, which does not apply to a rollout: {_REFUSED[name]}. Expected {_ACCEPTED}."
        )
    raise ValueError(f"Unrecognised adjoint spec {name!r} as `forward_adjoint`; expected {_ACCEPTED}.")


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

    >>> check_tangents(None, optx.RecursiveCheckpointAdjoint(), "GaussNewton")
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
    constant = isinstance(getattr(forward, "stepsize_controller", None), dfx.ConstantStepSize)
    if isinstance(forward, DiffraxForward) and type(forward.adjoint).__name__ == "ForwardMode" and not constant:
        raise ValueError(
            f"`forward` is a DiffraxForward with adaptive steps and adjoint=ForwardMode(), which has no adjoint: {user} "
            "needs one. Make it with adjoint=DirectAdjoint()."
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
