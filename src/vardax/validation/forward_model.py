"""Is a forward model fit for a window?

One step has to return what it was given (tree, shapes, dtypes), finite and repeatable; its tangent has to be its
derivative and its adjoint the transpose of that, both zero for a zero perturbation; and a run of many steps has to stay
finite and of the size of its start. Models in JAX are differentiated by JAX. A model that brings `tangent(state,
dstate)` and `adjoint(state, costate)` of its own, an external program for instance, is tested with these.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from vardax.dynamics.discrete import DiscreteForward
from vardax.dynamics.rollout import rollout
from vardax.validation.adjoint import adjoint_rows, linear_row
from vardax.validation.conduct import conduct_rows
from vardax.validation.linearised import Linearised, linearised, linearised_step, step_of, structure_check, title_of
from vardax.validation.report import Check, ValidationReport
from vardax.validation.spaces import Space, generator
from vardax.validation.taylor import taylor_checks
from vardax.validation.tolerances import Tolerances, default_tolerances

__all__ = ["forward_model_test"]


def forward_model_test(
    model: Any,
    state: PyTree,
    *,
    dt: float | None = None,
    n_steps: int = 10,
    t0: float = 0.0,
    key: Any = None,
    n_probes: int = 2,
    step: float = 0.1,
    n_halvings: int | None = None,
    tolerances: Mapping[str, float] | None = None,
) -> ValidationReport:
    """One step of `model` from `state`, and a run of `n_steps` steps.

    `model` has `step(state, dt)` and `dt` (or give `dt` here), and may have `tangent(state, dstate)` and
    `adjoint(state, costate)` of its own; an adjoint or tangent that is None counts as absent. `t0` is handed to models
    whose step asks for the time. `step` and `n_halvings` belong to the Taylor test (see `taylor_test`).

    >>> import jax.numpy as jnp
    >>> from vardax.dynamics.lorenz96 import Lorenz96
    >>> forward_model_test(Lorenz96(), jnp.linspace(-1.0, 8.0, 40)).passed
    True
    """
    if n_steps < 1:
        raise ValueError(f"`n_steps` is {n_steps}, expected at least one step.")
    one_step = step_of(model, dt, t0)
    space = Space.of(state, "state")
    limits, rng = default_tolerances(space.precision, tolerances), generator(key)
    rows = conduct_rows(one_step, state, "the step")
    notes: tuple[str, ...] = ()
    if all(row.passed for row in rows):
        rows += (structure_check("structure", one_step(state), space),)
    if all(row.passed for row in rows):
        lin = linearised_step(model, state, dt, t0)
        rows += lin.structure_rows()
    if all(row.passed for row in rows):
        checks, table = taylor_checks(lin, rng, limits, n_probes, step, n_halvings)
        notes += () if all(check.passed for check in checks) else table
        rows += (_zero_row(lin), linear_row(lin, rng, limits), *checks)
        if lin.adjoint is None:
            notes += ("the model has a tangent of its own but no adjoint, so no adjoint was checked.",)
        else:
            rows += adjoint_rows(lin, rng, limits, n_probes)
        rows += _run_rows(model, lin, dt, t0, n_steps, rng, limits, n_probes)
    return ValidationReport(title_of("forward_model_test", model), rows, notes)


def _zero_row(lin: Linearised) -> Check:
    """No perturbation gives no perturbation, forwards and backwards, exactly."""
    largest = np.max(np.abs(lin.apply(np.zeros(lin.inputs.size))), initial=0.0)
    if lin.adjoint is not None:
        largest = max(largest, np.max(np.abs(lin.apply_adjoint(np.zeros(lin.outputs.size))), initial=0.0))
    meaning = "the tangent or the adjoint of a zero perturbation is not zero: part of the trajectory is in it"
    return Check("zero perturbation", float(largest), 0.0, meaning)


def _run_rows(
    model: Any,
    lin: Linearised,
    dt: float | None,
    t0: float,
    n_steps: int,
    rng: np.random.Generator,
    limits: Tolerances,
    n_probes: int,
) -> tuple[Check, ...]:
    """A run: finite, bounded, and (for models in JAX) with the right adjoint through `rollout`."""
    start = lin.inputs.tree(lin.state)
    if getattr(model, "tangent", None) is not None:  # perhaps not in JAX: step by step
        return _bounded_rows(_stepped(model, start, dt, t0, n_steps, lin.inputs), limits)
    forward = model if dt is None else DiscreteForward(model.step, dt)
    trajectory = rollout(forward, start, n_steps, t0=t0)
    entries = [lin.inputs.vector(jax.tree.map(lambda leaf, k=k: leaf[k], trajectory)) for k in range(n_steps + 1)]
    rows = _bounded_rows(entries, limits)
    if not all(row.passed for row in rows):
        return rows
    last = lambda x: jax.tree.map(lambda leaf: leaf[-1], rollout(forward, x, n_steps, t0=t0))  # noqa: E731
    return rows + adjoint_rows(linearised(last, start), rng, limits, n_probes, name="adjoint of the run")


def _stepped(model: Any, start: PyTree, dt: float | None, t0: float, n_steps: int, space: Space) -> list[np.ndarray]:
    """The run as a Python loop."""
    interval = model.dt if dt is None else dt
    entries, x = [space.vector(start)], start
    for k in range(n_steps):
        x = step_of(model, dt, t0 + k * interval)(x)
        entries.append(space.vector(x))
    return entries


def _bounded_rows(entries: list[np.ndarray], limits: Tolerances) -> tuple[Check, Check]:
    """Finite throughout, and never much larger than the start."""
    broken = [k for k, x in enumerate(entries) if not np.all(np.isfinite(x))]
    n_steps = len(entries) - 1
    where = f"from step {broken[0]} of {n_steps} on" if broken else f"in {n_steps} steps"
    start = np.max(np.abs(entries[0]), initial=0.0) or np.max(np.abs(entries[1]), initial=0.0)
    largest = max(float(np.max(np.abs(x), initial=0.0)) for x in entries)
    remedy = "check the stability limit of the scheme (CFL) and shorten `dt`"
    return (
        Check("run, finite", float(len(broken)), 0.0, f"values that are not finite {where}: {remedy}"),
        Check(
            "run, growth",
            largest / start if start > 0 else 0.0,
            limits.growth,
            f"the state grows without bound {where}: {remedy}, or raise the limit `growth` if that is right",
        ),
    )
