"""A covariance under test, as products with vectors in units of its standard deviations.

With D = diag(σ), all checks look at D⁻¹ B D⁻¹, the correlations, so that a defect among small variances is as visible
as one among large ones. Where the variances are not known, σ = 1.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from vardax.validation.spaces import Space, relative_error

__all__ = ["Standardised"]


@dataclass(frozen=True)
class Standardised:
    """`product` is v -> B v on vectors of `space`; `variances` are the promised ones, `deviations` the units."""

    space: Space
    product: Callable[[np.ndarray], np.ndarray]
    variances: np.ndarray | None
    deviations: np.ndarray

    @classmethod
    def of(
        cls, space: Space, product: Callable[[np.ndarray], np.ndarray], variances: np.ndarray | None
    ) -> "Standardised":
        """Units from the variances where these are usable."""
        return cls(space, product, variances, deviations_of(variances, space.size))

    def noise(self, rng: np.random.Generator) -> np.ndarray:
        """White noise in inverse standard deviations: what B is applied to."""
        return self.space.rounded(self.space.noise(rng) / self.deviations)

    def units(self, field: np.ndarray) -> np.ndarray:
        """A field in standard deviations."""
        return field / self.deviations

    def error(self, found: np.ndarray, expected: np.ndarray) -> float:
        """The relative error of a field, in its worst array."""
        found, expected = self.units(found), self.units(expected)
        return max(relative_error(found[where], expected[where]) for where in self.space.slices)


def deviations_of(variances: np.ndarray | None, size: int) -> np.ndarray:
    """Standard deviations, 1 where there is no positive variance."""
    if variances is None:
        return np.ones(size)
    usable = np.isfinite(variances) & (variances > 0)
    return np.sqrt(np.where(usable, variances, 1.0))
