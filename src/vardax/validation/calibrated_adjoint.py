"""Are the gradients of an approximate adjoint those of an exact one?

    cosine   <g, g°> / (|g| |g°|)        does it point the same way?
    norm     | |g| / |g°| - 1 |          is it as long?

array by array, so that a small array does not hide behind a large one. Adjoints that truncate (`OneStepAdjoint`,
`KStepAdjoint(k)`), that assume convergence (`ImplicitAdjoint`), or that were written by hand are cheaper than
differentiating through every step; this says what they cost in accuracy.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import PyTree

from vardax.validation.report import Check, ValidationReport
from vardax.validation.spaces import Space

__all__ = ["assert_adjoint_calibrated"]


def assert_adjoint_calibrated(
    gradient: PyTree | Callable[..., PyTree],
    oracle: PyTree | Callable[..., PyTree],
    *at: Any,
    cosine: float | int = 0.99,
    norm: float | int = 0.05,
) -> ValidationReport:
    """The gradient of one choice of adjoint against that of an `oracle`; raises where direction or length differ.

    Both are gradients (arrays or pytrees), or functions that give them `at` the same arguments. Every array has to
    have at least this `cosine` with the oracle's, and its length up to this relative difference (`norm`). Arrays of
    which both lengths are rounding errors beside the others are equal.

    The report is returned where all agrees; otherwise it is the message of a `ValidationError`, an `AssertionError`.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> loss = lambda x: jnp.sum(x**2)
    >>> assert_adjoint_calibrated(jax.grad(loss), lambda x: 2 * x, jnp.arange(3.0)).passed
    True
    """
    found, expected = (_gradient(one, at) for one in (gradient, oracle))
    space = Space.of(expected, "oracle")
    if difference := space.mismatch(found):
        raise ValueError(f"`gradient` is not like that of `oracle`: {difference}.")
    g, exact = space.vector(found), space.vector(expected)
    sizes = [(float(np.linalg.norm(g[where])), float(np.linalg.norm(exact[where]))) for where in space.slices]
    negligible = 100 * float(np.finfo(space.precision).eps) * max(size for _, size in sizes)
    rows = [Check("finite", float(np.sum(~np.isfinite(g))), 0.0, "the gradient has entries that are not finite")]
    for name, where, (size, true_size) in zip(space.names, space.slices, sizes, strict=True):
        if max(size, true_size) <= negligible:
            size, true_size, along = 1.0, 1.0, 1.0
        else:
            along = float(g[where] @ exact[where]) / (size * true_size) if size * true_size else 0.0
        ratio = size / true_size if true_size else np.inf
        rows.append(Check(f"cosine{name}", along, cosine, f"the gradient{name} points elsewhere", at_least=True))
        word = "long" if ratio > 1 else "short"
        meaning = f"the gradient{name} is too {word}: {ratio:.3g} times the oracle's"
        rows.append(Check(f"norm{name}", abs(ratio - 1), norm, meaning))
    return ValidationReport(f"assert_adjoint_calibrated of {_name(gradient)}", tuple(rows)).raise_if_failed()


def _gradient(given: Any, at: tuple) -> PyTree:
    """The gradient itself; where functions are given, `at` says so."""
    return given(*at) if at else given


def _name(gradient: Any) -> str:
    return getattr(gradient, "__name__", None) or type(gradient).__name__
