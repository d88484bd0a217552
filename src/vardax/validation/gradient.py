"""Is the gradient the derivative of the cost, and does the cost look only at what was observed?

    J(x + h d) = J(x) + h <∇J, d> + O(h²)

along random directions d, in units of what <∇J, d> scatters by, so that one wrong component counts. For a control-space
problem, its parts are held against each other as well:

    J = ½|χ|² + ½|r|²        v·Hv = |v|² + |r'v|²        u·Hv = v·Hu

with r the whitened residual and H the Gauss-Newton product. |χ|² and |v|² are without those parts of a control whose
prior is among the r: states with a learned prior, later sub-windows. With a batch, entries that the mask calls missing
get other numbers: neither the cost nor the gradient may change.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from vardax.validation.linearised import compiled, structure_check, title_of
from vardax.validation.report import Check, ValidationReport
from vardax.validation.spaces import Space, generator, relative_error, rms
from vardax.validation.taylor import difference_quotients, halved, severity, taylor_rows
from vardax.validation.tolerances import Tolerances, default_tolerances

__all__ = ["gradient_test"]


def gradient_test(
    cost: Any,
    x: PyTree = None,
    batch: Any = None,
    *,
    key: Any = None,
    n_probes: int = 2,
    step: float = 0.1,
    n_halvings: int | None = None,
    tolerances: Mapping[str, float] | None = None,
) -> ValidationReport:
    """The gradient of a cost at `x` against differences, and what missing observations do to it.

    `cost` is one of
    - a function `cost(x)`, or `cost(x, batch)` when a batch is given: differentiated by `jax.grad`;
    - a pair `(cost, gradient)` of such functions;
    - a control-space problem (`cost`, `gradient`, and `residual`, `hessian_product` where it has them); `x` is then a
      control, by default a random one;
    - a method, with its `batch`: the problem that `method.problem(batch)` poses.

    With a `batch` (anything with `input` and `mask`, or `Observations`), a random part of its entries is masked and
    then filled with other numbers; cost and gradient must stay.

    >>> gradient_test((lambda x: jnp.sum(x**2), lambda x: 2.02 * x), jnp.ones(3)).passed
    False
    """
    subject = _subject(cost, x, batch, generator(key))
    rng = generator(key)
    limits = default_tolerances(subject.space.precision, tolerances)
    structure = structure_check("structure of gradient", subject.gradient(subject.space.tree(subject.x)), subject.space)
    rows: tuple[Check, ...] = (structure,)
    notes: tuple[str, ...] = ()
    if structure.passed:
        taylor, notes = _gradient_rows(subject, rng, limits, n_probes, step, n_halvings)
        rows += taylor
        rows += _problem_rows(subject, rng, limits, step, n_halvings)
        rows += _missing_rows(subject, rng, limits)
    return ValidationReport(title_of("gradient_test", cost[0] if isinstance(cost, tuple) else cost), rows, notes)


@dataclass(frozen=True)
class _Cost:
    """J and ∇J at x, on pytrees; `remade` gives both for another batch; `problem` is a control-space problem."""

    cost: Callable[[PyTree], Any]
    gradient: Callable[[PyTree], PyTree]
    x: np.ndarray
    space: Space
    batch: Any = None
    remade: Callable[[Any], tuple[Callable, Callable]] | None = None
    problem: Any = None

    def value(self, x: np.ndarray) -> np.ndarray:
        return np.array([_total(self.cost(self.space.tree(x)))])

    def slope(self, x: np.ndarray) -> np.ndarray:
        return self.space.vector(self.gradient(self.space.tree(x)))


def _total(values: Any) -> float:
    """The cost of all samples."""
    return float(np.sum(np.asarray(values, dtype=np.float64)))


def _subject(cost: Any, x: PyTree, batch: Any, rng: np.random.Generator) -> _Cost:
    for one in batch if isinstance(batch, list | tuple) else [batch]:
        if one is not None:
            _entries(one)
    if hasattr(cost, "problem"):
        if batch is None:
            raise ValueError(f"`batch` is missing; {type(cost).__name__} poses its problem for a batch.")
        remade = lambda other: _of_problem(cost.problem(other))  # noqa: E731
        return _posed(cost.problem(batch), x, batch, remade, rng)
    if hasattr(cost, "cost") and hasattr(cost, "gradient"):
        return _posed(cost, x, None, None, rng)
    pair = cost if isinstance(cost, tuple) else (cost, None)
    if len(pair) != 2 or not callable(pair[0]) or not (pair[1] is None or callable(pair[1])):
        raise TypeError(
            f"`cost` is {type(cost).__name__}, expected a function, a pair (cost, gradient), a control-space problem, "
            "or a method."
        )
    if x is None:
        raise ValueError("`x` is missing; give the state at which the gradient of the function is to be checked.")
    remade = lambda other: _of_functions(pair[0], pair[1], other)  # noqa: E731
    value, gradient = remade(batch)
    return _Cost(*_compiled(value, gradient, x), batch=batch, remade=remade)


def _posed(problem: Any, x: PyTree, batch: Any, remade: Callable | None, rng: np.random.Generator) -> _Cost:
    if x is None:
        start = problem.zero_control()
        space = Space.of(start, "problem.zero_control()")
        x = space.tree(space.noise(rng))
    return _Cost(*_compiled(*_of_problem(problem), x), batch=batch, remade=remade, problem=problem)


def _of_problem(problem: Any) -> tuple[Callable, Callable]:
    return problem.cost, problem.gradient


def _of_functions(cost: Callable, gradient: Callable | None, batch: Any) -> tuple[Callable, Callable]:
    value = cost if batch is None else lambda x: cost(x, batch)
    if gradient is None:
        return value, jax.grad(lambda x: jnp.sum(value(x)))
    return value, gradient if batch is None else lambda x: gradient(x, batch)


def _compiled(value: Callable, gradient: Callable, x: PyTree) -> tuple[Callable, Callable, np.ndarray, Space]:
    space = Space.of(x, "x")
    vector = space.vector(x)
    start = space.tree(vector)
    return compiled(value, start), compiled(gradient, start), vector, space


def _gradient_rows(
    subject: _Cost, rng: np.random.Generator, limits: Tolerances, n_probes: int, step: float, n_halvings: int | None
) -> tuple[tuple[Check, ...], tuple[str, ...]]:
    """The Taylor rows along the worst direction: all arrays together, and one at a time where there are several."""
    space, precision = subject.space, subject.space.precision
    scale, slope = space.leaf_scales(subject.x), subject.slope(subject.x)
    number = Space.of(jax.ShapeDtypeStruct((), jnp.dtype(precision)), "cost")
    steps = halved(step, n_halvings, precision)
    directions = [space.rounded(space.noise(rng) * scale) for _ in range(max(n_probes, 1))]
    if len(space.names) > 1:
        directions += [space.only(directions[0], leaf) for leaf in range(len(space.names))]
    results = []
    for d in directions:
        quotients = difference_quotients(subject.value, subject.x, d, steps, number, precision)
        scatter = float(np.linalg.norm(slope * scale * (d != 0)))
        results.append(taylor_rows(quotients, np.array([slope @ d]), number, limits, scatter, name="gradient"))
    return max(results, key=lambda result: severity(result[0], "gradient"))


def _problem_rows(
    subject: _Cost, rng: np.random.Generator, limits: Tolerances, step: float, n_halvings: int | None
) -> tuple[Check, ...]:
    """The parts of a control-space problem against each other."""
    problem, space = subject.problem, subject.space
    if problem is None or not hasattr(problem, "residual"):
        return ()
    start = space.tree(subject.x)
    residual = compiled(problem.residual, start)
    misfits = Space.of(residual(start), "problem.residual(x)")
    r, total = misfits.vector(residual(start)), subject.value(subject.x)[0]
    measured = _measured(problem, space)
    chi = measured(subject.x)
    terms = 0.5 * float(chi @ chi + r @ r)
    meaning = "J is not ½|χ|² + ½|r|²: a term is missing or counted twice"
    rows = [Check("cost = its terms", abs(terms - total) / max(abs(total), terms), limits.linear, meaning)]
    if not hasattr(problem, "hessian_product"):
        return tuple(rows)
    product = compiled(problem.hessian_product, start, start)
    u, v = space.noise(rng), space.noise(rng)
    Hu, Hv = (space.vector(product(start, space.tree(w))) for w in (u, v))
    size = max(np.linalg.norm(Hu), np.linalg.norm(Hv))
    rows.append(Check("Hessian, symmetric", float(abs(v @ Hu - u @ Hv) / size), limits.adjoint, "u·Hv and v·Hu differ"))
    precision = space.precision
    steps = halved(step, n_halvings, precision)
    through = lambda x: misfits.vector(residual(space.tree(x)))  # noqa: E731
    quotients = difference_quotients(through, subject.x, v, steps, misfits, precision)
    expected = measured(v) @ measured(v) + quotients.derivative @ quotients.derivative
    change = max(rms(quotients.derivative), np.finfo(float).tiny)
    limit = max(limits.tangent, 10 * float(np.max(quotients.resolution)) / change)
    meaning = "v·Hv is not |v|² + |r'v|²: the tangent or the adjoint in the Gauss-Newton product is wrong"
    rows.append(Check("Hessian = 1 + GᵀG", float(abs(v @ Hv - expected) / expected), limit, meaning))
    return tuple(rows)


def _measured(problem: Any, space: Space) -> Callable[[np.ndarray], np.ndarray]:
    """The part of a control that ½|χ|² measures: all of it, unless the problem says otherwise."""
    if not hasattr(problem, "observe") or problem.observe.proper:
        return lambda chi: chi
    part = lambda chi: problem.map_samples(lambda sample, c: sample.observe.prior_part(c), chi)  # noqa: E731
    return lambda chi: space.vector(part(space.tree(chi)))


def _missing_rows(subject: _Cost, rng: np.random.Generator, limits: Tolerances) -> tuple[Check, ...]:
    """Other numbers at missing entries change neither the cost nor the gradient."""
    if subject.batch is None or subject.remade is None:
        return ()
    masked, filled = _two_fillings(subject.batch, rng)
    x = subject.space.tree(subject.x)
    values, slopes = [], []
    for batch in (masked, filled):
        value, gradient = subject.remade(batch)
        values.append(np.array([_total(value(x))]))
        slopes.append(subject.space.vector(gradient(x)))
    meaning = "numbers at entries that the mask calls missing influence the {}: the mask is ignored"
    return (
        Check("mask, cost", relative_error(values[1], values[0]), limits.mask, meaning.format("cost")),
        Check("mask, gradient", relative_error(slopes[1], slopes[0]), limits.mask, meaning.format("gradient")),
    )


def _two_fillings(batch: Any, rng: np.random.Generator) -> tuple[Any, Any]:
    """The batch with a random third of its entries masked, twice: zero there, and other numbers there."""
    if isinstance(batch, list | tuple):
        pairs = [_two_fillings(one, rng) for one in batch]
        return [first for first, _ in pairs], [second for _, second in pairs]
    names = _entries(batch)
    values, mask = (np.asarray(getattr(batch, name)) for name in names)
    kept = (mask != 0) & (rng.random(mask.shape) < 2 / 3)
    observed = np.where(kept, values, 0).astype(values.dtype)
    garbage = 1e3 * max(rms(np.asarray(observed, np.float64).ravel()), 1.0) * rng.standard_normal(values.shape)
    filled = np.where(kept, values, garbage).astype(values.dtype)
    replace = lambda numbers: _replaced(batch, names, numbers, kept.astype(mask.dtype))  # noqa: E731
    return replace(observed), replace(filled)


def _entries(batch: Any) -> tuple[str, str]:
    """Where a batch keeps its values and its mask."""
    for names in (("input", "mask"), ("value", "valid")):
        if all(hasattr(batch, name) for name in names):
            return names
    raise TypeError(f"`batch` is {type(batch).__name__}, expected `input` and `mask`, or `value` and `valid`.")


def _replaced(batch: Any, names: tuple[str, str], values: np.ndarray, mask: np.ndarray) -> Any:
    """The batch with other arrays, past its constructor, which would clean them."""
    return eqx.tree_at(
        lambda b: tuple(getattr(b, name) for name in names), batch, (jnp.asarray(values), jnp.asarray(mask))
    )
