"""Is the tangent the derivative?

    F(x + h d) = F(x) + h F'(x) d + O(h²)

With h halved again and again, the relative remainder |F(x + hd) - F(x) - hF'd| / |hF'd| falls like h (order 1) and the
ratio |F(x + hd) - F(x)| / |hF'd| tends to 1. A tangent that is wrong by any fraction leaves a remainder that stops
falling (order 0). The sharpest number is a third one: central differences, extrapolated to h = 0 (Richardson), against
F'd, entry by entry. How well differences resolve the derivative depends on rounding and on the curvature of F; it is
estimated from the differences alone, without the tangent, and the limit is never below five times that estimate. Where
even an error of 1 % could pass, the row `resolution` fails, instead of letting the test pass without having looked.

Reference: C. J. F. Ridders (1982), Accurate computation of F'(x), Advances in Engineering Software 4, 75-76.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import PyTree

from vardax.validation.adjoint import coarsest
from vardax.validation.linearised import Linearised, linearised, title_of
from vardax.validation.report import Check, ValidationReport
from vardax.validation.spaces import Space, generator, rms
from vardax.validation.tolerances import Tolerances, default_tolerances

__all__ = ["Differences", "difference_quotients", "halved", "severity", "taylor_checks", "taylor_rows", "taylor_test"]

BLIND = 0.05
"""Where even an error of this size could pass, the test does not pass: it has not looked."""

SAFETY = 5
"""The tangent may differ from the differences by this many times their estimated error."""

HALVINGS = {"float64": 20, "float32": 10}
"""How often h is halved: to 1e-7 and 1e-4 of the first step, where rounding takes over."""


def taylor_test(
    op: Any,
    state: PyTree,
    direction: PyTree = None,
    *,
    key: Any = None,
    n_probes: int = 2,
    step: float = 0.1,
    n_halvings: int | None = None,
    tolerances: Mapping[str, float] | None = None,
) -> ValidationReport:
    """The tangent of `op` at `state` against differences F(x ± h d), h = step, step/2, step/4, ...

    `op` is anything that `adjoint_test` takes. The directions are white noise in units of each array's root-mean-square
    (so `step` is relative), all arrays together and then one at a time; `direction` gives one of your own instead.

    >>> import jax.numpy as jnp
    >>> report = taylor_test((lambda x: x**2, lambda x, dx: 2.02 * x * dx, lambda x, dy: 2 * x * dy), jnp.ones(3))
    >>> report.passed
    False
    """
    lin = linearised(op, state)
    limits = default_tolerances(coarsest(lin.inputs, lin.outputs), tolerances)
    rows = lin.structure_rows()[:1]
    notes: tuple[str, ...] = ()
    if all(row.passed for row in rows):
        own = None if direction is None else _own_direction(lin, direction)
        checks, notes = taylor_checks(lin, generator(key), limits, n_probes, step, n_halvings, own)
        rows += checks
    return ValidationReport(title_of("taylor_test", op), rows, notes)


def _own_direction(lin: Linearised, direction: PyTree) -> np.ndarray:
    if difference := lin.inputs.mismatch(direction):
        raise ValueError(f"`direction` does not fit `state`: {difference}.")
    return lin.inputs.vector(direction)


def taylor_checks(
    lin: Linearised,
    rng: np.random.Generator,
    limits: Tolerances,
    n_probes: int = 2,
    step: float = 0.1,
    n_halvings: int | None = None,
    direction: np.ndarray | None = None,
) -> tuple[tuple[Check, ...], tuple[str, ...]]:
    """The rows of the worst direction, and its table as a note."""
    if n_probes < 1:
        raise ValueError(f"`n_probes` is {n_probes}, expected at least 1.")
    precision = coarsest(lin.inputs, lin.outputs)
    steps = halved(step, n_halvings, precision)
    directions = [direction] if direction is not None else _directions(lin.inputs, lin.state, rng, n_probes)
    results = []
    for d in directions:
        quotients = difference_quotients(lin.evaluate, lin.state, d, steps, lin.outputs, precision)
        results.append(taylor_rows(quotients, lin.apply(d), lin.outputs, limits))
    return max(results, key=lambda result: severity(result[0]))


def halved(step: float, n_halvings: int | None, precision: str) -> np.ndarray:
    """step, step/2, step/4, ...; as many as the precision has use for by default."""
    if not step > 0:
        raise ValueError(f"`step` is {step}, expected a positive number: the first, relative size of a perturbation.")
    if n_halvings is not None and n_halvings < 4:
        raise ValueError(f"`n_halvings` is {n_halvings}, expected at least 4.")
    return step * 0.5 ** np.arange(HALVINGS[precision] if n_halvings is None else n_halvings)


def _directions(space: Space, state: np.ndarray, rng: np.random.Generator, n_probes: int) -> list[np.ndarray]:
    """White noise in the units of each array, all arrays together; then each array alone where there are several."""
    scale = space.leaf_scales(state)
    together = [space.rounded(space.noise(rng) * scale) for _ in range(n_probes)]
    several = len(space.names) > 1
    return together + [space.only(together[0], leaf) for leaf in range(len(space.names)) if several]


def severity(rows: tuple[Check, ...], name: str = "tangent") -> tuple[int, float]:
    """More failures first, then the row `name` nearest to its limit."""
    excess = next((row.measured / row.limit for row in rows if row.name == name), np.inf)
    return sum(not row.passed for row in rows), float(np.nan_to_num(excess, nan=np.inf))


@dataclass(frozen=True)
class Differences:
    """What differences say about F'(x) d, before the tangent is looked at.

    `derivative` is the extrapolated central difference, each array from the step that resolves it best; `resolution`
    is the estimated largest error of each array, `rounding` what plain rounding of F would give there. `changes` holds
    F(x + hd) - F(x) for the finite steps.
    """

    steps: np.ndarray
    derivative: np.ndarray
    resolution: np.ndarray
    rounding: np.ndarray
    noise: float
    changes: list[np.ndarray]
    base: np.ndarray
    eps: float


def difference_quotients(
    function: Callable[[np.ndarray], np.ndarray],
    x: np.ndarray,
    d: np.ndarray,
    steps: np.ndarray,
    space: Space,
    precision: str,
) -> Differences:
    """Central differences of `function` along `d`, extrapolated step by step."""
    eps, base = float(np.finfo(precision).eps), function(x)
    sizes = np.array([np.max(np.abs(base[where]), initial=0.0) for where in space.slices])
    best, derivative = np.full(len(space.slices), np.inf), np.full_like(base, np.nan)
    rounding, used, changes = np.zeros_like(best), [], []
    central: list[np.ndarray] = []
    extrapolated: list[np.ndarray] = []
    for h in steps:
        forward, backward = function(x + h * d), function(x - h * d)
        if not (np.all(np.isfinite(forward)) and np.all(np.isfinite(backward))):
            continue
        used.append(h)
        changes.append(forward - base)
        central = [*central[-1:], (forward - backward) / (2 * h)]
        if len(central) < 2:
            continue
        squared = (used[-2] / h) ** 2
        extrapolated = [*extrapolated[-1:], (squared * central[1] - central[0]) / (squared - 1)]
        if len(extrapolated) < 2:
            continue
        for leaf, where in enumerate(space.slices):
            change = np.max(np.abs(extrapolated[1][where] - extrapolated[0][where]), initial=0.0)
            floor = eps * sizes[leaf] / h
            if max(change, floor) < best[leaf]:
                best[leaf], rounding[leaf] = max(change, floor), floor
                derivative[where] = extrapolated[1][where]
    noise = max(used[-1] * rms(central[1] - central[0]) if len(central) == 2 else 0.0, eps * rms(base))
    return Differences(np.array(used), derivative, best, rounding, noise, changes, base, eps)


def taylor_rows(
    differences: Differences,
    tangent: np.ndarray,
    space: Space,
    limits: Tolerances,
    scale: float = 0.0,
    name: str = "tangent",
) -> tuple[tuple[Check, ...], tuple[str, ...]]:
    """The rows `resolution`, `tangent`, `order`, `ratio`, and the table of steps.

    `scale` is a size of F'd below which it only falls by chance (scalar costs); 0 to take F'd as it is.
    """
    if len(differences.steps) < 4:
        meaning = "F is not finite around the state; give a smaller `step` or a `direction` in which it is"
        return (Check(name, np.nan, limits.tangent, meaning),), ()
    rows = (
        *_derivative_rows(differences, tangent, space, limits, scale, name),
        _order_row(differences, tangent, limits),
        _ratio_row(differences, tangent, limits, scale),
    )
    return rows, (_step_table(differences, tangent),)


def _derivative_rows(
    differences: Differences, tangent: np.ndarray, space: Space, limits: Tolerances, scale: float, name: str
) -> tuple[Check, Check]:
    """Tangent against differences in the worst array, and how well the differences resolve.

    The limit of `resolution` gives way to rounding, which F cannot help, up to `BLIND`. An array that no step changes
    by more than rounding, and whose tangent says the same, has nothing to resolve.
    """
    worst, coarse = (-np.inf, 0.0, limits.tangent, ""), (-np.inf, 0.0, limits.resolution)
    for leaf, where in enumerate(space.slices):
        derivative, found = differences.derivative[where], tangent[where]
        size = float(np.nanmax([rms(found), rms(derivative), scale]))
        if not size > 0 or _is_still(differences, found, where, scale):
            continue
        error = float(np.max(np.abs(found - derivative), initial=0.0) / size)
        resolution, rounding = float(differences.resolution[leaf]), float(differences.rounding[leaf] / size)
        worst = max(worst, _against(error, max(limits.tangent, SAFETY * resolution / size), space.names[leaf]))
        rough = resolution > 30 * differences.rounding[leaf]
        resolved = resolution / (max(rms(derivative), scale) if rough else size)
        coarse = max(coarse, _against(resolved, max(limits.resolution, min(30 * rounding, BLIND)))[:3])
    where = f" (worst in result{worst[3]})" if worst[3] else ""
    return (
        Check(
            "resolution",
            coarse[1],
            coarse[2],
            "differences do not resolve the derivative, so this test cannot tell: F is too rough or too sensitive "
            "here; give a smaller `step`, a shorter run, or float64",
        ),
        Check(
            name,
            worst[1],
            worst[2],
            f"the {name} is not the derivative{where}: a term is missing, has a wrong factor, or is linearised at "
            "another state",
        ),
    )


def _is_still(differences: Differences, tangent: np.ndarray, where: slice, scale: float) -> bool:
    """Neither the differences nor the tangent change this array beyond rounding at the largest step."""
    h, rounding = differences.steps[0], 4 * differences.eps * np.max(np.abs(differences.base[where]), initial=0.0)
    found = max(np.max(np.abs(change[where]), initial=0.0) for change in differences.changes)
    return bool(found <= rounding and h * rms(tangent) <= rounding and h * scale <= rounding)


def _against(measured: float, limit: float, name: str = "") -> tuple[float, float, float, str]:
    """(measured/limit, measured, limit, name), to find the worst; NaN is the worst of all."""
    return (np.inf if np.isnan(measured) else measured / limit, measured, limit, name)


def _order_row(differences: Differences, tangent: np.ndarray, limits: Tolerances) -> Check:
    """The slope of log(relative remainder) against log(h) over the smallest steps whose remainder is above rounding.

    Means of absolute values: with a kink here and there (limiters, rectifiers) these still fall like h.
    """
    meaning = "the Taylor remainder stops falling with h: the tangent is not the derivative (1 is right, 0 is wrong)"
    steps = differences.steps
    remainders = np.array(
        [np.sum(np.abs(change - h * tangent)) for h, change in zip(steps, differences.changes, strict=True)]
    ) / max(tangent.size, 1)
    above = np.flatnonzero(remainders > 30 * differences.noise)[-6:]
    if above.size < 3:  # F is linear to rounding: nothing remains
        return Check("order", np.inf, limits.order, meaning, at_least=True)
    slope = np.polyfit(np.log(steps[above]), np.log(remainders[above] / steps[above]), 1)[0]
    return Check("order", float(slope), limits.order, meaning, at_least=True)


def _ratio_row(differences: Differences, tangent: np.ndarray, limits: Tolerances, scale: float) -> Check:
    """|F(x + hd) - F(x)| / |hF'd| nearest to 1, next to the same with the differences' own derivative."""
    meaning = "|F(x + hd) - F(x)| / |hF'd| does not tend to 1: the tangent has the wrong size"
    size = max(rms(tangent), scale)
    reference = max(rms(differences.derivative), scale)
    if not max(size, reference) > 0:
        return Check("ratio", 0.0, limits.ratio, meaning)
    changes = np.array([rms(change) / h for h, change in zip(differences.steps, differences.changes, strict=True)])
    best = np.argmin(np.abs(changes - rms(differences.derivative)))
    measured = np.abs(changes[best] - rms(tangent)) / max(size, reference)
    possible = np.abs(changes[best] - rms(differences.derivative)) / max(size, reference)
    possible += differences.noise / differences.steps[0] / max(size, reference)
    return Check("ratio", float(measured), float(max(limits.ratio, 5 * possible)), meaning)


def _step_table(differences: Differences, tangent: np.ndarray) -> str:
    size = rms(tangent)
    lines = ["ratio and relative remainder by step:"]
    every = max(1, len(differences.steps) // 7)
    for h, change in list(zip(differences.steps, differences.changes, strict=True))[::every]:
        if size > 0:
            ratio, remainder = rms(change) / (h * size), rms(change - h * tangent) / (h * size)
            lines.append(f"h = {h:.1e}  ratio {ratio:.9f}  remainder {remainder:.2e}")
    return "\n".join(lines)
