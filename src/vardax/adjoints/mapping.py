"""Which adjoint a specification means, at the two places where something is differentiated.

    to_optimistix_adjoint   the inner solve: slots `minimiser_adjoint` and `solver_adjoint`
    to_diffrax_adjoint      the model run: slots `forward_adjoint`

Native adjoints pass as they are. Others, of any package, are recognised by class name and fields, so that a
specification needs no import of vardax. What belongs to the other place is refused with the name of the slot for it.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import lineax as lx
import optimistix as optx

from vardax.adjoints.k_step import KStepAdjoint

if TYPE_CHECKING:
    import diffrax

__all__ = ["to_diffrax_adjoint", "to_optimistix_adjoint"]

_INNER_SOLVE: dict[str, Callable[[Any], optx.AbstractAdjoint]] = {
    "ImplicitAdjoint": lambda spec: _implicit(getattr(spec, "linear_solver", None)),
    "RecursiveCheckpointAdjoint": lambda spec: optx.RecursiveCheckpointAdjoint(getattr(spec, "checkpoints", None)),
    "TruncatedAdjoint": lambda spec: KStepAdjoint(spec.k),
}
_OF_THE_MODEL_RUN = {
    "DirectAdjoint": "vardax has one of its own that unrolls a solver",
    "BacksolveAdjoint": "it integrates a vector field backwards in time, and iterations have none",
    "ForwardMode": "here it is vardax.adjoints.DirectAdjoint() that has forward mode",
}
_EXPECTED_INSIDE = (
    "optimistix.ImplicitAdjoint(), optimistix.RecursiveCheckpointAdjoint(), vardax.adjoints.DirectAdjoint() or "
    "vardax.adjoints.KStepAdjoint(k)"
)
_OF_AN_INNER_SOLVE = {
    "ImplicitAdjoint": "it differentiates a converged solve, not a trajectory",
    "KStepAdjoint": "it truncates the iterations of an inner solver, not a trajectory",
    "OneStepAdjoint": "it truncates the iterations of an inner solver, not a trajectory",
    "TruncatedAdjoint": "it truncates the iterations of an inner solver, not a trajectory",
}
_EXPECTED_OUTSIDE = (
    "RecursiveCheckpointAdjoint(checkpoints), DirectAdjoint(), ForwardMode(), or BacksolveAdjoint() for a model with a "
    "vector field"
)


def _implicit(linear_solver: Any) -> optx.ImplicitAdjoint:
    if isinstance(linear_solver, lx.AbstractLinearSolver):
        return optx.ImplicitAdjoint(linear_solver)
    return optx.ImplicitAdjoint()


def _check_instance(spec: Any, slot: str) -> None:
    if isinstance(spec, type):
        raise TypeError(f"`{slot}` is the class {spec.__name__}, expected an instance: {spec.__name__}().")


def to_optimistix_adjoint(spec: Any) -> optx.AbstractAdjoint:
    """The adjoint of an inner solve that `spec` means; optimistix's and vardax's own pass as they are.

    `TruncatedAdjoint(k)` is `KStepAdjoint(k)`; `ImplicitAdjoint` and `RecursiveCheckpointAdjoint(checkpoints)` of other
    packages become optimistix's.

    >>> import diffrax
    >>> to_optimistix_adjoint(diffrax.RecursiveCheckpointAdjoint(checkpoints=3))
    RecursiveCheckpointAdjoint(checkpoints=3)
    """
    if isinstance(spec, optx.AbstractAdjoint):
        return spec
    _check_instance(spec, "minimiser_adjoint")
    name = type(spec).__name__
    if name in _INNER_SOLVE:
        return _INNER_SOLVE[name](spec)
    if name in _OF_THE_MODEL_RUN:
        package = type(spec).__module__.split(".")[0]
        raise ValueError(
            f"`minimiser_adjoint` is {package}.{name}, which does not apply at the inner-solve layer: "
            f"{_OF_THE_MODEL_RUN[name]}. Expected {_EXPECTED_INSIDE}; the adjoint of the model run goes in "
            "`forward_adjoint`."
        )
    raise ValueError(f"Unrecognised adjoint spec {name!r} as `minimiser_adjoint`; expected {_EXPECTED_INSIDE}.")


def to_diffrax_adjoint(spec: Any) -> "diffrax.AbstractAdjoint":
    """The adjoint of a model run that `spec` means; diffrax's own pass as they are.

    `DirectAdjoint`, `RecursiveCheckpointAdjoint(checkpoints)`, `BacksolveAdjoint` and `ForwardMode` of vardax,
    optimistix and other packages become diffrax's.

    >>> import optimistix
    >>> to_diffrax_adjoint(optimistix.RecursiveCheckpointAdjoint(checkpoints=3))
    RecursiveCheckpointAdjoint(checkpoints=3)
    """
    import diffrax

    if isinstance(spec, diffrax.AbstractAdjoint):
        return spec
    _check_instance(spec, "forward_adjoint")
    name = type(spec).__name__
    if name == "RecursiveCheckpointAdjoint":
        return diffrax.RecursiveCheckpointAdjoint(getattr(spec, "checkpoints", None))
    if name == "BacksolveAdjoint":
        return diffrax.BacksolveAdjoint(**getattr(spec, "kwargs", {}))
    if name in ("DirectAdjoint", "ForwardMode"):
        return getattr(diffrax, name)()
    if name in _OF_AN_INNER_SOLVE:
        raise ValueError(
            f"`forward_adjoint` is {name}, which does not apply to a model run: {_OF_AN_INNER_SOLVE[name]}; use it as "
            f"`minimiser_adjoint`. Expected {_EXPECTED_OUTSIDE}."
        )
    raise ValueError(f"Unrecognised adjoint spec {name!r} as `forward_adjoint`; expected {_EXPECTED_OUTSIDE}.")
