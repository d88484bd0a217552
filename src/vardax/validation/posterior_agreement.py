"""Does a posterior agree with an oracle: a costlier one of the same problem?

    mean         max_i |m_i - m°_i| / s°_i                  in the oracle's standard deviations s°
    spread       max_i |s_i / s°_i - 1|
    covariance   max_v |vᵀP v / vᵀP° v - 1|                 along random directions v, white in units of s°

An oracle of samples is itself uncertain: each limit is widened by what the largest of so many entries may reach by
chance, so that the test is as sharp as the oracle allows and no sharper.
"""

import math
import statistics
from typing import Any

import jax
import numpy as np

from vardax.validation.report import Check, ValidationReport
from vardax.validation.spaces import Space, generator

__all__ = ["assert_posterior_agreement"]

FALSE_ALARM = 1e-3
"""How often a row fails by chance when the oracle is a sample of the very posterior."""

LISTED = 5


def assert_posterior_agreement(
    posterior: Any,
    oracle: Any,
    *,
    mean: float | int = 0.1,
    spread: float | int = 0.1,
    covariance: float | int | None = 0.1,
    n_effective: float | int | None = None,
    n_probes: int = 8,
    key: Any = None,
) -> ValidationReport:
    """Mean, standard deviations and covariance of `posterior` against those of `oracle`; raises where they differ.

    Both have `mean` and `std()`, and `cov` or `samples`, as a `Posterior` has; a sample axis of length 1 may be on
    either. `mean` is a tolerance in standard deviations of the oracle, `spread` and `covariance` (None: not looked at)
    are relative. `n_effective` is what the samples of the oracle are worth, where they are a Markov chain; by default
    they are independent.

    The report is returned where all agrees; otherwise it is the message of a `ValidationError`, an `AssertionError`.

    >>> import jax.numpy as jnp
    >>> from vardax.covariances.diagonal import DiagonalCovariance
    >>> from vardax.posterior.posterior import Posterior
    >>> narrow, right = (Posterior(jnp.zeros(3), DiagonalCovariance([v, v, v])) for v in (1.0, 1.5))
    >>> assert_posterior_agreement(narrow, right)
    Traceback (most recent call last):
        ...
    vardax.validation.report.ValidationError: assert_posterior_agreement of Posterior with Posterior
    ...
    """
    found, expected = _Moments(posterior, "posterior"), _Moments(oracle, "oracle")
    if found.shapes != expected.shapes:
        raise ValueError(
            f"`posterior.mean` has shapes {found.shapes}, expected {expected.shapes}, those of `oracle.mean`; compare "
            "one sample of a batch at a time."
        )
    per_sample = 1 / found.n_independent(None) + 1 / expected.n_independent(n_effective)
    chance = statistics.NormalDist().inv_cdf(1 - FALSE_ALARM / (2 * expected.mean.size)) * math.sqrt(per_sample)
    units = np.where(expected.std > 0, expected.std, 1.0)
    off, ratio = (found.mean - expected.mean) / units, np.where(expected.std > 0, found.std / units, 1 + found.std)
    rows = [
        Check("mean", float(np.max(np.abs(off))), mean + chance, "the mean is off" + expected.at(off)),
        Check("spread", float(np.max(np.abs(ratio - 1))), spread + chance / math.sqrt(2), _spread(ratio, expected)),
    ]
    if covariance is not None:
        rng = generator(key)
        white = [rng.standard_normal(units.size) for _ in range(n_probes)]
        forms = np.array([_ratio(found.form(v / units), expected.form(v / units)) for v in white])
        meaning = "variances along combinations of entries differ: the correlations are wrong where `spread` is right"
        error = float(np.max(np.abs(forms - 1)))
        rows.append(Check("covariance", error, covariance + chance * math.sqrt(2), meaning))
    notes = (_sampling(per_sample),) if per_sample else ()
    title = f"assert_posterior_agreement of {type(posterior).__name__} with {type(oracle).__name__}"
    return ValidationReport(title, tuple(rows), (*notes, expected.listed(off, ratio))).raise_if_failed()


class _Moments:
    """Mean, standard deviations and quadratic forms of a posterior, as numpy vectors in float64."""

    def __init__(self, posterior: Any, name: str):
        mean = getattr(posterior, "mean", None)
        if mean is None or callable(mean) or not callable(getattr(posterior, "std", None)):
            raise TypeError(
                f"`{name}` is {type(posterior).__name__}, expected an object with `mean` and `std()`, and `cov` or "
                "`samples`; make a `Posterior` of samples: `Posterior(mean, samples=samples)`."
            )
        self.cov, self.samples = (getattr(posterior, member, None) for member in ("cov", "samples"))
        self.space = Space.of(posterior.mean, f"{name}.mean")
        self.mean, self.std = self.space.vector(posterior.mean), self.space.vector(posterior.std())
        self.shapes = tuple(shape[1:] if shape[:1] == (1,) else shape for shape in self.space.shapes)

    def n_independent(self, given: float | int | None) -> float:
        """How many independent samples the moments come from; infinite where they come from a covariance."""
        if self.cov is not None or self.samples is None:
            return math.inf
        return float(jax.tree.leaves(self.samples)[0].shape[0]) if given is None else float(given)

    def form(self, v: np.ndarray) -> float:
        """vᵀP v."""
        if self.cov is not None:
            return float(v @ self.space.vector(self.cov.mv(self.space.tree(v))))
        n = jax.tree.leaves(self.samples)[0].shape[0]
        leaves = [np.asarray(leaf, np.float64).reshape(n, -1) for leaf in jax.tree.leaves(self.samples)]
        return float(np.var(np.concatenate(leaves, axis=1) @ v, ddof=1))

    def place(self, index: int) -> str:
        """The name of an entry: its array and its index there."""
        leaf = next(i for i, where in enumerate(self.space.slices) if index < where.stop)
        inside = np.unravel_index(index - self.space.slices[leaf].start, self.space.shapes[leaf])
        return f"{self.space.names[leaf]}[{', '.join(map(str, inside))}]"

    def at(self, errors: np.ndarray) -> str:
        worst = int(np.argmax(np.abs(errors)))
        return f", most at {self.place(worst)}: by {errors[worst]:+.3g} of the oracle's standard deviations"

    def listed(self, off: np.ndarray, ratio: np.ndarray) -> str:
        """The entries that are furthest off."""
        worst = np.argsort(-np.maximum(np.abs(off), np.abs(ratio - 1)))[:LISTED]
        lines = [f"{self.place(int(i))}  mean {off[i]:+.3f} sd  spread x {ratio[i]:.3f}" for i in worst]
        return "\n".join(["furthest from the oracle:", *lines])


def _spread(ratio: np.ndarray, moments: _Moments) -> str:
    worst = int(np.argmax(np.abs(ratio - 1)))
    word = "wide" if ratio[worst] > 1 else "narrow"
    return f"the posterior is too {word}, most at {moments.place(worst)}: {ratio[worst]:.3g} times the oracle's"


def _ratio(found: float, expected: float) -> float:
    return found / expected if expected else 1 + found


def _sampling(per_sample: float) -> str:
    return f"the limits allow for the sampling error of moments from {1 / per_sample:.0f} independent samples"
