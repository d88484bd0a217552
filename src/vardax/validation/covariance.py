"""Is B a covariance, and is its square root one of B?

    u·Bv = v·Bu        u·Bu >= 0        L Lᵀ = B        B B⁻¹ = 1        B e_i: the response to a Dirac impulse

The Dirac responses are the columns of B. They have to be symmetric, to carry the variance at their own point, and to
stay below √(B_ii B_jj) everywhere else. Up to `DENSE_SIZE` cells every column is looked at and the eigenvalues are
computed; beyond, white-noise probes, a few impulses and a Lanczos iteration do the same without a matrix. Where the
variances are known, all is done in units of the standard deviations, so that small variances count as much as large
ones.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np

from vardax.covariances.functions import half as half_of
from vardax.validation.adjoint import adjoint_rows
from vardax.validation.linearised import Linearised, compiled, linearised, structure_check, title_of
from vardax.validation.report import Check, ValidationReport
from vardax.validation.spaces import Space, generator, relative_error
from vardax.validation.tolerances import Tolerances, default_tolerances

__all__ = ["DENSE_SIZE", "covariance_test", "lanczos"]

DENSE_SIZE = 512
"""Up to this many cells the matrix is formed, by one product per cell."""

IMPULSES = 8
SAMPLED_NUMBERS = 2**22
FEWEST_SAMPLES = 32


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
    title = title_of("covariance_test", covariance)
    if not structure.passed:
        return ValidationReport(title, (structure,))
    offers = _Offers(operator, half, inverse, diagonal, logdet, [])
    variances = offers.diagonal(space)
    subject = _Subject(space, lambda v: space.vector(product(space.tree(v))), _deviations(variances, space), variances)
    rows = (
        structure,
        *_product_rows(subject, rng, limits, n_probes, n_lanczos, offers),
        *_root_rows(subject, offers.half(), rng, limits, n_probes),
        *_inverse_rows(subject, offers.inverse(space), rng, limits, n_probes),
        *_sample_rows(subject, offers.sampler(space), rng, limits, n_probes),
        *_restriction_rows(subject, offers, rng, limits),
    )
    return ValidationReport(title, rows, tuple(offers.notes))


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
    """What the object promises beyond products, or what was given in its place; what is missing is noted."""

    operator: Any
    given_half: Any
    given_inverse: Any
    given_diagonal: Any
    given_logdet: Any
    notes: list[str]

    def _own(self, name: str) -> Callable | None:
        method = getattr(self.operator, name, None)
        return method if callable(method) else None

    def _attempt(self, what: str, call: Callable) -> Any:
        """The result, or None and a note with the reason."""
        try:
            return call()
        except ValueError as reason:
            self.notes.append(f"{what} not checked: {reason}")
            return None

    def diagonal(self, space: Space) -> np.ndarray | None:
        own = self._own("diagonal")
        if self.given_diagonal is None and own is None:
            return None
        found = self.given_diagonal if self.given_diagonal is not None else self._attempt("diagonal", own)
        if found is not None and (difference := space.mismatch(found)):
            raise ValueError(f"`diagonal` is not a field of the covariance: {difference}.")
        return None if found is None else space.vector(found)

    def half(self) -> Any:
        if self.given_half is not None:
            return self.given_half
        return self._attempt("square root", lambda: half_of(self.operator))

    def inverse(self, space: Space) -> Callable | None:
        solve = self.given_inverse or self._own("inv_mv")
        if solve is None:
            return None
        zero = space.tree(np.zeros(space.size))
        return solve if self._attempt("inverse", lambda: solve(zero)) is not None else None

    def logdet(self) -> float | None:
        found = self.given_logdet
        if found is None and (own := self._own("logdet")):
            found = self._attempt("log-determinant", own)
        return None if found is None else float(np.asarray(found).ravel()[0])

    def sampler(self, space: Space) -> Callable | None:
        if self._own("sample") is None or space.size * FEWEST_SAMPLES <= SAMPLED_NUMBERS:
            return self._own("sample")
        self.notes.append(f"samples not checked: {FEWEST_SAMPLES} fields of {space.size} cells are too many numbers.")
        return None

    def restriction(self, mask: Any) -> Any:
        own = self._own("restrict")
        return None if own is None else self._attempt("restriction to observed entries", lambda: own(mask))


@dataclass(frozen=True)
class _Subject:
    """B on vectors, with its standard deviations where they are known (1 otherwise)."""

    space: Space
    product: Callable[[np.ndarray], np.ndarray]
    deviations: np.ndarray
    variances: np.ndarray | None

    def noise(self, rng: np.random.Generator) -> np.ndarray:
        """White noise in inverse standard deviations."""
        return self.space.rounded(self.space.noise(rng) / self.deviations)

    def units(self, field: np.ndarray) -> np.ndarray:
        """A field in standard deviations."""
        return field / self.deviations

    def error(self, found: np.ndarray, expected: np.ndarray) -> float:
        """The relative error of a field in the worst array."""
        found, expected = self.units(found), self.units(expected)
        return max(relative_error(found[where], expected[where]) for where in self.space.slices)


def _deviations(variances: np.ndarray | None, space: Space) -> np.ndarray:
    if variances is None:
        return np.ones(space.size)
    usable = np.isfinite(variances) & (variances > 0)
    return np.sqrt(np.where(usable, variances, 1.0))


def _product_rows(
    subject: _Subject, rng: np.random.Generator, limits: Tolerances, n_probes: int, n_lanczos: int, offers: _Offers
) -> tuple[Check, ...]:
    """What products alone say: symmetry, positive semidefiniteness, Dirac responses, variances, log-determinant."""
    rows = [_symmetric_row(subject, rng, limits, n_probes)]
    size = subject.space.size
    points = np.arange(size) if size <= DENSE_SIZE else np.unique([size // 2, *rng.integers(size, size=IMPULSES - 1)])
    columns = np.stack([subject.product(impulse) for impulse in _impulses(size, points)])
    dense = size <= DENSE_SIZE
    if dense and subject.variances is None:
        subject = _Subject(subject.space, subject.product, _deviations(np.diagonal(columns), subject.space), None)
    responses = columns / subject.deviations / subject.deviations[points][:, None]
    if dense:
        eigenvalues = np.linalg.eigvalsh((responses + responses.T) / 2) if np.all(np.isfinite(responses)) else None
        smallest, largest = (np.nan, np.nan) if eigenvalues is None else (eigenvalues[0], eigenvalues[-1])
    else:
        smallest, largest = lanczos(lambda v: subject.units(subject.product(subject.units(v))), size, n_lanczos, rng)
        offers.notes.append(f"the smallest eigenvalue is the one that {n_lanczos} Lanczos steps reach.")
    rows.append(_semidefinite_row(smallest, largest, limits))
    rows.extend(_dirac_rows(subject, points, columns, responses, limits))
    logdet = offers.logdet()
    if logdet is not None and dense:
        rows.extend(_logdet_rows(subject, eigenvalues, logdet, limits, offers.notes))
    elif logdet is not None:
        offers.notes.append(f"log-determinant not checked: B has more than {DENSE_SIZE} cells.")
    return tuple(rows)


def _impulses(size: int, points: np.ndarray):
    for point in points:
        impulse = np.zeros(size)
        impulse[point] = 1.0
        yield impulse


def _symmetric_row(subject: _Subject, rng: np.random.Generator, limits: Tolerances, n_probes: int) -> Check:
    """|v·Bu - u·Bv| in units of what the two scatter by."""
    measured = 0.0
    for _ in range(n_probes):
        u, v = subject.noise(rng), subject.noise(rng)
        Bu, Bv = subject.product(u), subject.product(v)
        size = max(np.linalg.norm(subject.units(Bu)), np.linalg.norm(subject.units(Bv)))
        gap = abs(v @ Bu - u @ Bv)
        measured = np.maximum(measured, gap / size if size > 0 else gap)
    return Check("symmetric", float(measured), limits.adjoint, "u·Bv and v·Bu differ: B is not its own transpose")


def _semidefinite_row(smallest: float, largest: float, limits: Tolerances) -> Check:
    size = max(abs(smallest), abs(largest))
    measured = max(0.0, -smallest) / size if size > 0 else 0.0
    meaning = "B has a negative eigenvalue: some combination of cells has a negative variance"
    return Check("positive semidefinite", float(measured), limits.psd, meaning)


def lanczos(product: Callable, size: int, n_steps: int, rng: np.random.Generator) -> tuple[float, float]:
    """The smallest and largest eigenvalue (Ritz values) that `n_steps` Lanczos steps reach, with full reorthogonalisation.

    Reference: G. H. Golub and C. F. Van Loan (2013), Matrix Computations, section 10.1.
    """
    v = rng.standard_normal(size)
    basis, alphas, betas = [v / np.linalg.norm(v)], [], []
    for _ in range(min(n_steps, size)):
        w = product(basis[-1])
        if not np.all(np.isfinite(w)):
            return np.nan, np.nan
        alphas.append(float(basis[-1] @ w))
        for _ in range(2):
            for q in basis:
                w = w - (q @ w) * q
        betas.append(float(np.linalg.norm(w)))
        if betas[-1] <= 1e-12 * max(np.abs(alphas)):
            break
        basis.append(w / betas[-1])
    n = len(alphas)
    off = np.array(betas[: n - 1])
    values = np.linalg.eigvalsh(np.diag(alphas) + np.diag(off, 1) + np.diag(off, -1))
    return float(values[0]), float(values[-1])


def _dirac_rows(
    subject: _Subject, points: np.ndarray, columns: np.ndarray, responses: np.ndarray, limits: Tolerances
) -> list[Check]:
    """Columns of B: symmetric among themselves, largest where variances allow it, variances as promised."""
    among = responses[:, points]
    peaks = np.diagonal(among)
    size = np.max(np.abs(among), initial=0.0)
    asymmetry = np.max(np.abs(among - among.T), initial=0.0) / size if size > 0 else 0.0
    rows = [
        Check("Dirac, symmetric", float(asymmetry), limits.dirac, "B e_i at j and B e_j at i differ"),
        Check(
            "Dirac, peak",
            _excess(subject, points, responses, peaks),
            limits.dirac,
            "the response to an impulse is larger than √(B_ii B_jj) somewhere, or negative at its own point: it is not "
            "peaked where it should be",
        ),
    ]
    if subject.variances is not None:
        promised = subject.variances[points]
        error = np.max(
            np.abs(promised - np.diagonal(columns[:, points])) / subject.deviations[points] ** 2, initial=0.0
        )
        meaning = "`diagonal` is not what an impulse finds at its own point: wrong variances"
        rows.append(Check("diagonal", float(error), limits.dirac, meaning))
    return rows


def _excess(subject: _Subject, points: np.ndarray, responses: np.ndarray, peaks: np.ndarray) -> float:
    """How far |B_ij| exceeds √(B_ii B_jj), relative; over all cells j whose variance is known."""
    if subject.variances is None and len(points) < subject.space.size:
        responses, variances = responses[:, points], peaks
    else:
        dense = len(points) == subject.space.size
        variances = peaks if dense else np.maximum(subject.units(subject.units(subject.variances)), 0.0)
    bounds = np.sqrt(np.maximum(peaks, 0.0)[:, None] * np.maximum(variances, 0.0)[None, :])
    size = np.max(np.abs(responses), initial=0.0)
    excess = np.max(np.abs(responses) - bounds, initial=0.0) if np.all(np.isfinite(responses)) else np.nan
    return float(excess / size) if not size <= 0 else 0.0


def _logdet_rows(
    subject: _Subject, eigenvalues: np.ndarray | None, logdet: float, limits: Tolerances, notes: list[str]
) -> list[Check]:
    """log|B| against the eigenvalues, where rounding leaves them meaning something."""
    meaning = "`logdet` is not the sum of the logarithms of the eigenvalues of B"
    if eigenvalues is None:
        return [Check("log-determinant", np.nan, limits.logdet, meaning)]
    eps, size = float(np.finfo(subject.space.precision).eps), eigenvalues.size
    condition = eigenvalues[-1] / eigenvalues[0] if eigenvalues[0] > 0 else np.inf
    if condition * eps * size > 1e-2:
        notes.append("log-determinant not checked: the smallest eigenvalues of B are lost in rounding.")
        return []
    expected = np.sum(np.log(eigenvalues)) + 2 * np.sum(np.log(subject.deviations))
    limit = max(limits.logdet, 10 * eps * condition)
    return [Check("log-determinant", float(abs(logdet - expected) / size), limit, meaning)]


def _root_rows(
    subject: _Subject, half: Any, rng: np.random.Generator, limits: Tolerances, n_probes: int
) -> tuple[Check, ...]:
    """L Lᵀ = B, and Lᵀ is the transpose of L."""
    if half is None:
        return ()
    root = _root(half, subject.space)
    structure = structure_check("structure of half", root.function(root.inputs.tree(root.state)), subject.space)
    if not structure.passed:
        return (structure,)
    measured = 0.0
    for _ in range(n_probes):
        u = subject.noise(rng)
        measured = np.maximum(measured, subject.error(root.apply(root.apply_adjoint(u)), subject.product(u)))
    meaning = "L Lᵀ is not B: a factor, a normalisation or a column of the square root is wrong"
    square = Check("square root", float(measured), limits.root, meaning)
    return (structure, square, *adjoint_rows(root, rng, limits, n_probes, name="square root, adjoint"))


def _root(half: Any, space: Space) -> Linearised:
    """L as a linear map; the control of a pair of callables is what the transpose returns."""
    if isinstance(half, tuple) and len(half) == 2 and callable(half[1]):
        return linearised(half, half[1](space.tree(np.ones(space.size))))
    if not isinstance(half, lx.AbstractLinearOperator | np.ndarray | jax.Array):
        raise TypeError(
            f"`half` is {type(half).__name__}, expected a lineax operator, a matrix, or a pair of callables "
            "(L, L_transposed)."
        )
    return linearised(half)


def _inverse_rows(
    subject: _Subject, inverse: Callable | None, rng: np.random.Generator, limits: Tolerances, n_probes: int
) -> tuple[Check, ...]:
    """B B⁻¹ w = w for w in the range of B, where rounding is not amplified by the conditioning of B."""
    if inverse is None:
        return ()
    space, measured = subject.space, 0.0
    for _ in range(n_probes):
        w = space.rounded(subject.product(subject.noise(rng)))
        solution = inverse(space.tree(w))
        structure = structure_check("structure of inverse", solution, space)
        if not structure.passed:
            return (structure,)
        measured = np.maximum(measured, subject.error(subject.product(space.vector(solution)), w))
    return (Check("inverse", float(measured), limits.inverse, "B B⁻¹ w is not w: the inverse is of another matrix"),)


def _sample_rows(
    subject: _Subject, sampler: Callable | None, rng: np.random.Generator, limits: Tolerances, n_probes: int
) -> tuple[Check, ...]:
    """Mean and variance of p·x over samples x, for probes p, in standard errors."""
    if sampler is None:
        return ()
    space = subject.space
    n = int(np.clip(SAMPLED_NUMBERS // max(space.size, 1), FEWEST_SAMPLES, 1024))
    drawn = sampler(jax.random.key(int(rng.integers(2**31))), n)
    fields = np.stack([space.vector(jax.tree.map(lambda leaf, i=i: leaf[i], drawn)) for i in range(n)])
    measured = 0.0
    for _ in range(n_probes):
        p = subject.noise(rng)
        projections, variance = fields @ p, p @ subject.product(p)
        if variance > 0:
            spread = abs(np.mean(projections**2) / variance - 1) / np.sqrt(2 / n)
            centre = abs(np.mean(projections)) / np.sqrt(variance / n)
            measured = np.maximum(measured, max(spread, centre))
    meaning = f"{n} samples do not have mean 0 and covariance B (in standard errors)"
    return (Check("samples", float(measured), limits.sample, meaning),)


def _restriction_rows(
    subject: _Subject, offers: _Offers, rng: np.random.Generator, limits: Tolerances
) -> tuple[Check, ...]:
    """R between observed entries: missing entries do not count, and the inverse and the whitening belong together."""
    space = subject.space
    if len(space.names) > 1 or space.size < 2:
        return ()
    observed = rng.random(space.size) < 0.7
    observed[rng.permutation(space.size)[:2]] = (True, False)
    restricted = offers.restriction(space.tree(observed.astype(np.float64)))
    if restricted is None:
        return ()
    on_vectors = {
        name: (lambda r, member=getattr(restricted, name): space.vector(member(space.tree(r))))
        for name in ("whiten", "solve", "mv")
    }
    u = subject.noise(rng)
    r = space.rounded(on_vectors["mv"](u))
    whitened, solved = on_vectors["whiten"](r), on_vectors["solve"](r)
    expected = np.where(observed, subject.product(np.where(observed, u, 0.0)), 0.0)
    return (
        _masked_row(on_vectors, subject, observed, limits, rng),
        Check(
            "restriction, product",
            subject.error(r, expected),
            limits.root,
            "`restrict(mask).mv` is not R between the observed entries",
        ),
        Check(
            "restriction, inverse",
            subject.error(on_vectors["mv"](solved), r),
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


def _masked_row(
    members: Mapping[str, Callable],
    subject: _Subject,
    observed: np.ndarray,
    limits: Tolerances,
    rng: np.random.Generator,
) -> Check:
    """Other numbers at missing entries change nothing, and nothing comes back there."""
    r = subject.space.rounded(subject.space.noise(rng) * subject.deviations)
    other = subject.space.rounded(np.where(observed, r, 1e3 * subject.space.noise(rng) * subject.deviations))
    measured = 0.0
    for member in members.values():
        result = member(r)
        leaked = np.linalg.norm(result[~observed]) / max(np.linalg.norm(result), np.finfo(float).tiny)
        measured = np.maximum(measured, max(relative_error(member(other), result), leaked))
    meaning = "missing entries influence R restricted to the observed ones: the mask is ignored"
    return Check("restriction, mask", float(measured), limits.mask, meaning)
