"""What products with B alone say: symmetry, eigenvalues, and the responses to Dirac impulses.

The response B e_i is a column of B. Columns have to be symmetric among themselves, to carry the variance at their own
point, and to stay below √(B_ii B_jj) everywhere else. Up to `DENSE_SIZE` cells all columns are looked at and the
eigenvalues are computed from them; beyond, a few impulses and a Lanczos iteration do the same without a matrix.

Reference: G. H. Golub and C. F. Van Loan (2013), Matrix Computations, section 10.1 (Lanczos).
"""

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np

from vardax.validation.report import Check
from vardax.validation.standardised import Standardised, deviations_of
from vardax.validation.tolerances import Tolerances

__all__ = ["DENSE_SIZE", "lanczos", "product_rows"]

DENSE_SIZE = 512
"""Up to this many cells the matrix is formed, by one product per cell."""

IMPULSES = 8
"""How many impulses are looked at beyond `DENSE_SIZE`: one in the middle, the others at random."""


def product_rows(
    subject: Standardised,
    logdet: float | None,
    rng: np.random.Generator,
    limits: Tolerances,
    n_probes: int,
    n_lanczos: int,
) -> tuple[tuple[Check, ...], tuple[str, ...]]:
    """Rows, and notes on what was not looked at. `logdet` is the promised log|B|."""
    symmetric = _symmetric_row(subject, rng, limits, n_probes)
    size = subject.space.size
    if size > DENSE_SIZE:
        points = np.unique([size // 2, *rng.integers(size, size=IMPULSES - 1)])
        columns = _columns(subject, points)
        smallest, largest = lanczos(lambda v: subject.units(subject.product(subject.units(v))), size, n_lanczos, rng)
        rows = (symmetric, _semidefinite_row(smallest, largest, limits), *_dirac_rows(subject, points, columns, limits))
        notes = [f"the smallest eigenvalue is the one that {n_lanczos} Lanczos steps reach."]
        if logdet is not None:
            notes.append(f"log-determinant not checked: B has more than {DENSE_SIZE} cells.")
        return rows, tuple(notes)
    columns = _columns(subject, np.arange(size))
    if subject.variances is None:
        subject = dataclasses.replace(subject, deviations=deviations_of(np.diagonal(columns), size))
    correlations = subject.units(columns) / subject.deviations[:, None]
    finite = np.all(np.isfinite(correlations))
    eigenvalues = np.linalg.eigvalsh((correlations + correlations.T) / 2) if finite else np.full(size, np.nan)
    positive = _semidefinite_row(eigenvalues[0], eigenvalues[-1], limits)
    rows = (symmetric, positive, *_dirac_rows(subject, np.arange(size), columns, limits))
    if logdet is None:
        return rows, ()
    determinant, notes = _logdet_rows(subject, eigenvalues, logdet, limits)
    return rows + determinant, notes


def _columns(subject: Standardised, points: np.ndarray) -> np.ndarray:
    """B e_i, one row per point."""

    def impulses() -> Iterator[np.ndarray]:
        for point in points:
            impulse = np.zeros(subject.space.size)
            impulse[point] = 1.0
            yield impulse

    return np.stack([subject.product(impulse) for impulse in impulses()])


def _symmetric_row(subject: Standardised, rng: np.random.Generator, limits: Tolerances, n_probes: int) -> Check:
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
    measured = max(0.0, -smallest) / size if size != 0 else 0.0
    meaning = "B has a negative eigenvalue: some combination of cells has a negative variance"
    return Check("positive semidefinite", float(measured), limits.psd, meaning)


def lanczos(
    product: Callable[[np.ndarray], np.ndarray], size: int, n_steps: int, rng: np.random.Generator
) -> tuple[float, float]:
    """The smallest and largest eigenvalue (Ritz values) that `n_steps` Lanczos steps reach, reorthogonalised in full.

    >>> smallest, largest = lanczos(lambda v: np.array([-1.0, 1.0, 3.0]) * v, 3, 3, np.random.default_rng(0))
    >>> round(smallest, 9), round(largest, 9)
    (-1.0, 3.0)
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
    off = np.array(betas[: len(alphas) - 1])
    values = np.linalg.eigvalsh(np.diag(alphas) + np.diag(off, 1) + np.diag(off, -1))
    return float(values[0]), float(values[-1])


def _dirac_rows(
    subject: Standardised, points: np.ndarray, columns: np.ndarray, limits: Tolerances
) -> tuple[Check, ...]:
    """Columns of B: symmetric among themselves, bounded by the variances, variances as promised."""
    responses = subject.units(columns) / subject.deviations[points][:, None]
    among = responses[:, points]
    size = np.max(np.abs(among), initial=0.0)
    asymmetry = np.max(np.abs(among - among.T), initial=0.0) / size if size != 0 else 0.0
    peak = (
        "the response to an impulse is larger than √(B_ii B_jj) somewhere, or negative at its own point: it is not "
        "peaked where it should be"
    )
    rows = (
        Check("Dirac, symmetric", float(asymmetry), limits.dirac, "B e_i at j and B e_j at i differ"),
        Check("Dirac, peak", _excess(subject, points, responses), limits.dirac, peak),
    )
    if subject.variances is None:
        return rows
    found = np.diagonal(columns[:, points])
    error = np.max(np.abs(subject.variances[points] - found) / subject.deviations[points] ** 2, initial=0.0)
    meaning = "`diagonal` is not what an impulse finds at its own point: wrong variances"
    return (*rows, Check("diagonal", float(error), limits.dirac, meaning))


def _excess(subject: Standardised, points: np.ndarray, responses: np.ndarray) -> float:
    """How far |B_ij| exceeds √(B_ii B_jj), relative; over all cells j whose variance is known."""
    peaks = np.diagonal(responses[:, points])
    if subject.variances is None or len(points) == subject.space.size:
        responses, variances = responses[:, points], peaks
    else:
        variances = subject.units(subject.units(subject.variances))
    bounds = np.sqrt(np.maximum(peaks, 0.0)[:, None] * np.maximum(variances, 0.0)[None, :])
    size = np.max(np.abs(responses), initial=0.0)
    return float(np.max(np.abs(responses) - bounds, initial=0.0) / size) if size != 0 else 0.0


def _logdet_rows(
    subject: Standardised, eigenvalues: np.ndarray, logdet: float, limits: Tolerances
) -> tuple[tuple[Check, ...], tuple[str, ...]]:
    """log|B| against the eigenvalues, where rounding leaves the smallest of them meaning something."""
    eps, size = float(np.finfo(subject.space.precision).eps), eigenvalues.size
    if eigenvalues[0] <= 100 * eps * size * eigenvalues[-1]:
        return (), ("log-determinant not checked: the smallest eigenvalues of B are lost in rounding.",)
    expected = np.sum(np.log(eigenvalues)) + 2 * np.sum(np.log(subject.deviations))
    limit = max(limits.logdet, 10 * eps * eigenvalues[-1] / eigenvalues[0])
    meaning = "`logdet` is not the sum of the logarithms of the eigenvalues of B"
    return (Check("log-determinant", float(abs(logdet - expected) / size), limit, meaning),), ()
