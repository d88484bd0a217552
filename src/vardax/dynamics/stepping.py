"""How a model is called: which of dt and the model time its step asks for.

A step moves a state by one interval, x(t + dt) = M_t(x(t)). Some steps are written `step(state)`, some
`step(state, dt)`, and a model that depends on time also wants to know it, as `t`, as `t0`, or as the pair `t0, t1`.
The signature is read once (`step_convention`), never probed by calling; from then on every step is called through its
`StepConvention`, with all arguments after the state by name where names exist.
"""

import dataclasses
import inspect
import math
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

__all__ = [
    "StepConvention",
    "checked_count",
    "checked_dt",
    "checked_pair",
    "checked_shape",
    "in_state_dtype",
    "step_convention",
]

TIME_NAMES = ("t", "t0", "t1")


@dataclasses.dataclass(frozen=True)
class StepConvention:
    """Which arguments a step takes after the state.

    - `dt_name`: the name under which dt is passed, "" for by position, None for not at all.
    - `time_names`: those of `t`, `t0` (time at the start of the step) and `t1` (at its end) that it asks for.
    """

    dt_name: str | None
    time_names: tuple[str, ...]

    @property
    def takes_time(self) -> bool:
        return bool(self.time_names)

    def __call__(self, step: Callable[..., Any], state: Any, dt: Any, t0: Any) -> Any:
        """One step of length `dt` from time `t0`."""
        named = {name: t0 + dt if name == "t1" else t0 for name in self.time_names}
        if self.dt_name:
            named[self.dt_name] = dt
        return step(state, dt, **named) if self.dt_name == "" else step(state, **named)


def step_convention(step: Any, name: str) -> StepConvention:
    """Read how `step` is to be called from its signature; `name` is what error messages call it.

    >>> step_convention(lambda state, dt, *, t0: state, "step_fn")
    StepConvention(dt_name='dt', time_names=('t0',))
    """
    if not callable(step):
        raise TypeError(f"`{name}` is {step!r}, expected a function `(state)` or `(state, dt)`.")
    try:
        parameters = list(inspect.signature(step).parameters.values())
    except (TypeError, ValueError):
        return StepConvention(dt_name="", time_names=())
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if not positional and any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return StepConvention(dt_name="", time_names=())
    if not positional or positional[0].name in TIME_NAMES:
        raise _unusable(step, name)
    rest = [p for p in parameters if p is not positional[0] and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    by_name = [p for p in rest if p.kind is not p.POSITIONAL_ONLY]
    times = tuple(p.name for p in by_name if p.name in TIME_NAMES)
    wants_dt = [p for p in rest if p.name == "dt" or (p.default is p.empty and p.name not in times)]
    if len(wants_dt) > 1:
        raise _unusable(step, name)
    if not wants_dt:
        return StepConvention(dt_name=None, time_names=times)
    return StepConvention(dt_name=wants_dt[0].name if wants_dt[0] in by_name else "", time_names=times)


def _unusable(step: Callable[..., Any], name: str) -> TypeError:
    return TypeError(
        f"`{name}` has the signature {inspect.signature(step)}; expected (state), (state, dt), or one of these with "
        "the model time as `t`, `t0` or `t0, t1`. Bind further arguments with functools.partial."
    )


def in_state_dtype(number: Any, state: Any) -> Any:
    """`number` (dt or a time) ready to meet the leaves of `state`: arrays in their float dtype, Python numbers as is.

    A Python number stays weakly typed, so a float32 state stays float32 also when 64-bit mode is on.
    """
    if isinstance(number, int | float):
        return float(number)
    dtypes = [jnp.finfo(leaf.dtype).dtype for leaf in jax.tree.leaves(state) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return jnp.asarray(number, dtype=dtypes[0] if dtypes else None)


def checked_dt(dt: Any, owner: str) -> float | Array:
    """`dt` as a Python float, or as the JAX array that it is (traced, so that it can be differentiated)."""
    if isinstance(dt, jax.Array):
        if dt.shape != ():
            raise ValueError(f"{owner}: `dt` has shape {dt.shape}, expected a scalar.")
        return dt
    try:
        number = float(dt)
    except (TypeError, ValueError):
        raise TypeError(f"{owner}: `dt` is {dt!r}, expected a number.") from None
    if not math.isfinite(number) or number == 0.0:
        raise ValueError(f"{owner}: `dt` is {number}, expected a finite time step other than zero.")
    return number


def checked_count(value: Any, name: str, owner: str, *, least: int, meaning: str = "") -> int:
    """`value` as a Python integer of at least `least`; `meaning` ends the message.

    >>> checked_count(3, "n", "Model", least=1)
    3
    """
    if isinstance(value, bool) or not hasattr(value, "__index__") or operator.index(value) < least:
        raise ValueError(f"{owner}: `{name}` is {value!r}, expected an integer of at least {least}{meaning}.")
    return operator.index(value)


def checked_shape(shape: Any, owner: str, *, least: int) -> tuple[int, int]:
    """`shape` as (ny, nx), each at least `least`."""
    sizes = tuple(shape) if hasattr(shape, "__iter__") else (shape,)
    if len(sizes) != 2:
        raise ValueError(f"{owner}: `shape` is {shape!r}, expected (ny, nx).")
    ny, nx = (checked_count(size, "shape", owner, least=least, meaning=" cells each way") for size in sizes)
    return ny, nx


def checked_pair(value: Any, name: str, owner: str) -> tuple[float, float]:
    """`value`, one positive number or (y, x), as (y, x).

    >>> checked_pair(2.0, "lengths", "Model")
    (2.0, 2.0)
    """
    numbers = tuple(value) if hasattr(value, "__iter__") else (value, value)
    if len(numbers) != 2 or not all(math.isfinite(number) and number > 0 for number in numbers):
        raise ValueError(f"{owner}: `{name}` is {value!r}, expected a positive number, or two of them, (y, x).")
    return float(numbers[0]), float(numbers[1])
