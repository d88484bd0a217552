"""R between the entries that were observed.

    W r with Wᵀ W = (M R M)⁺        (M R M)⁺ r        M R M v

Missing entries must not count in any of the three, and the three have to belong to the same matrix.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from vardax.validation.report import Check
from vardax.validation.spaces import relative_error
from vardax.validation.standardised import Standardised
from vardax.validation.tolerances import Tolerances

__all__ = ["random_mask", "restriction_rows"]


def random_mask(size: int, rng: np.random.Generator) -> np.ndarray:
    """About 70 % observed, at least one entry of each kind; `size` is at least 2."""
    observed = rng.random(size) < 0.7
    observed[rng.permutation(size)[:2]] = (True, False)
    return observed


def restriction_rows(
    subject: Standardised, restricted: Any, observed: np.ndarray, rng: np.random.Generator, limits: Tolerances
) -> tuple[Check, ...]:
    """`restricted` is what R's `restrict(mask)` returned, with `whiten`, `solve` and `mv`."""
    whiten, solve, mv = (_on_vectors(subject, getattr(restricted, name)) for name in ("whiten", "solve", "mv"))
    u = subject.noise(rng)
    r = subject.space.rounded(mv(u))
    whitened, solved = whiten(r), solve(r)
    expected = np.where(observed, subject.product(np.where(observed, u, 0.0)), 0.0)
    return (
        _mask_row({"whiten": whiten, "solve": solve, "mv": mv}, subject, observed, limits, rng),
        Check(
            "restriction, product",
            subject.error(r, expected),
            limits.root,
            "`restrict(mask).mv` is not R between the observed entries",
        ),
        Check(
            "restriction, inverse",
            subject.error(mv(solved), r),
            limits.inverse,
            "`restrict(mask).solve` is not the inverse of R between the observed entries",
        ),
        Check(
            "restriction, whitening",
            relative_error(np.array([whitened @ whitened]), np.array([r @ solved])),
            limits.inverse,
            "`restrict(mask).whiten` does not have |W r|² = r·R⁻¹r over the observed entries",
        ),
    )


def _on_vectors(subject: Standardised, member: Callable) -> Callable[[np.ndarray], np.ndarray]:
    return lambda r: subject.space.vector(member(subject.space.tree(r)))


def _mask_row(
    members: Mapping[str, Callable],
    subject: Standardised,
    observed: np.ndarray,
    limits: Tolerances,
    rng: np.random.Generator,
) -> Check:
    """Other numbers at missing entries change nothing, and nothing comes back there."""
    space = subject.space
    r = space.rounded(space.noise(rng) * subject.deviations)
    other = space.rounded(np.where(observed, r, 1e3 * space.noise(rng) * subject.deviations))
    worst, culprit = 0.0, ""
    for name, member in members.items():
        result = member(r)
        leaked = relative_error(np.where(observed, result, 0.0), result)
        measured = np.maximum(leaked, relative_error(member(other), result))
        if not measured <= worst:
            worst, culprit = measured, f" by `{name}`"
    meaning = f"missing entries influence R restricted to the observed ones: the mask is ignored{culprit}"
    return Check("restriction, mask", float(worst), limits.mask, meaning)
