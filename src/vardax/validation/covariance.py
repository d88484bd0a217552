"""Is B a covariance, and is its square root one of B?

    u·Bv = v·Bu        u·Bu >= 0        L Lᵀ = B        B B⁻¹ = 1        B e_i: the response to a Dirac impulse

`dirac` looks at what products with B say, `square_root` at L, B⁻¹ and samples, `restricted` at R between observed
entries; all in units of the standard deviations where these are known (`standardised`). Nothing of a large side is ever
dense.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np

from vardax.covariances.functions import half as half_of
from vardax.validation.dirac import product_rows
from vardax.validation.linearised import compiled, structure_check, title_of
from vardax.validation.report import Check, ValidationReport
from vardax.validation.restricted import random_mask, restriction_rows
from vardax.validation.spaces import Space, generator
from vardax.validation.square_root import inverse_rows, root_rows, sample_rows
from vardax.validation.standardised import Standardised
from vardax.validation.tolerances import Tolerances, default_tolerances

__all__ = ["covariance_test"]


def covariance_test(
    covariance: Any,
    *,
    half: Any = None,
    inverse: Callable | None = None,
    diagonal: Any = None,
    logdet: Any = None,
    key: Any = None,
    n_probes: int = 3,
    n_lanczos: int = 30,
    tolerances: Mapping[str, float] | None = None,
) -> ValidationReport:
    """Symmetry, positive semidefiniteness, Dirac responses, square root, inverse, variances, log-determinant, samples.

    `covariance` is a lineax operator (ours or any other), a square matrix, or an object with `mv` and
    `in_structure()`, on arrays or pytrees. Its own `half`, `inv_mv`, `diagonal`, `logdet`, `sample` and `restrict` are
    checked where it has them; a remedy that one of them raises as `ValueError` becomes a note. What it does not have
    can be given: `half` (lineax operator, matrix, or a pair of callables (L, L_transposed)), `inverse` (callable),
    `diagonal` (a field), `logdet` (a number). Without a `half`, the square root that vardax would use is checked.

    >>> covariance_test(jnp.array([[2.0, 1.0], [1.0, 3.0]])).passed
    True
    >>> covariance_test(jnp.array([[2.0, 1.0], [1.1, 3.0]]))["symmetric"].passed
    False
    """
    if n_probes < 1 or n_lanczos < 1:
        raise ValueError(f"`n_probes` is {n_probes}, `n_lanczos` {n_lanczos}; expected at least 1 of each.")
    operator = _operator(covariance)
    space = Space.of(operator.in_structure(), "covariance.in_structure()")
    limits, rng = default_tolerances(space.precision, tolerances), generator(key)
    zero = space.tree(np.zeros(space.size))
    product = compiled(operator.mv, zero)
    structure = structure_check("structure", product(zero), space)
    rows: tuple[Check, ...] = (structure,)
    offers = _Offers(operator, space, half, inverse, diagonal, logdet, [])
    if structure.passed:
        subject = Standardised.of(space, lambda v: space.vector(product(space.tree(v))), offers.diagonal())
        of_products, notes = product_rows(subject, offers.logdet(), rng, limits, n_probes, n_lanczos)
        offers.notes.extend(notes)
        rows += of_products + _promised_rows(subject, offers, rng, limits, n_probes)
    return ValidationReport(title_of("covariance_test", covariance), rows, tuple(offers.notes))


def _promised_rows(
    subject: Standardised, offers: "_Offers", rng: np.random.Generator, limits: Tolerances, n_probes: int
) -> tuple[Check, ...]:
    """What is promised beyond products and looked at with probes."""
    rows: tuple[Check, ...] = ()
    if (root := offers.half()) is not None:
        rows += root_rows(subject, root, rng, limits, n_probes)
    if (inverse := offers.given_inverse or offers.own("inv_mv")) is not None:
        rows += offers.attempt("inverse", lambda: inverse_rows(subject, inverse, rng, limits)) or ()
    if (sampler := offers.own("sample")) is not None:
        checks, notes = sample_rows(subject, sampler, rng, limits, n_probes)
        offers.notes.extend(notes)
        rows += checks
    if len(subject.space.names) == 1 and subject.space.size > 1:
        observed = random_mask(subject.space.size, rng)
        if (restricted := offers.restriction(observed)) is not None:
            rows += restriction_rows(subject, restricted, observed, rng, limits)
    return rows


def _operator(covariance: Any) -> Any:
    if isinstance(covariance, np.ndarray | jax.Array):
        matrix = jnp.asarray(covariance)
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
            raise ValueError(f"`covariance` is an array of shape {matrix.shape}, expected a square matrix.")
        return lx.MatrixLinearOperator(matrix)
    if not (callable(getattr(covariance, "mv", None)) and callable(getattr(covariance, "in_structure", None))):
        raise TypeError(
            f"`covariance` is {type(covariance).__name__}, expected a lineax operator, a square matrix, or an object "
            "with `mv(v)` and `in_structure()`."
        )
    return covariance


@dataclass(frozen=True)
class _Offers:
    """What the object promises beyond products, or what was given in its place; why something is missing is noted."""

    operator: Any
    space: Space
    given_half: Any
    given_inverse: Any
    given_diagonal: Any
    given_logdet: Any
    notes: list[str]

    def own(self, name: str) -> Callable | None:
        method = getattr(self.operator, name, None)
        return method if callable(method) else None

    def attempt(self, what: str, call: Callable) -> Any:
        """The result, or None and a note with the reason."""
        try:
            return call()
        except ValueError as reason:
            self.notes.append(f"{what} not checked: {reason}")
            return None

    def diagonal(self) -> np.ndarray | None:
        found = self.given_diagonal
        if found is None and (own := self.own("diagonal")):
            found = self.attempt("diagonal", own)
        if found is None:
            return None
        if difference := self.space.mismatch(found):
            raise ValueError(f"`diagonal` is not a field of the covariance: {difference}.")
        return self.space.vector(found)

    def logdet(self) -> float | None:
        found = self.given_logdet
        if found is None and (own := self.own("logdet")):
            found = self.attempt("log-determinant", own)
        return None if found is None else float(np.asarray(found))

    def half(self) -> Any:
        if self.given_half is not None:
            return self.given_half
        if own := self.own("half"):
            return self.attempt("square root", own)
        operator = self.operator
        if not isinstance(operator, lx.AbstractLinearOperator):
            operator = lx.FunctionLinearOperator(operator.mv, operator.in_structure(), lx.positive_semidefinite_tag)
        return self.attempt("square root", lambda: half_of(operator))

    def restriction(self, observed: np.ndarray) -> Any:
        own, mask = self.own("restrict"), self.space.tree(observed.astype(np.float64))
        return None if own is None else self.attempt("restriction to observed entries", lambda: own(mask))
