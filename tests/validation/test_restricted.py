"""R between observed entries: what is missing must not count."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.covariances.dense import DenseCovariance
from vardax.covariances.diagonal import DiagonalCovariance
from vardax.validation import covariance_test
from vardax.validation.restricted import random_mask

R = 0.5 * np.exp(-np.abs(np.subtract.outer(np.arange(12), np.arange(12))) / 2.0)


class Restriction(eqx.Module):
    """A right restriction, with one member replaced."""

    inner: eqx.Module
    defect: str

    def whiten(self, r):
        return self.inner.whiten(r) * (0.99 if self.defect == "whiten factor" else 1.0)

    def solve(self, r):
        if self.defect == "full inverse":
            return jnp.linalg.solve(jnp.asarray(R, r.dtype), r)
        if self.defect == "conditioned":  # (R⁻¹ on the observed entries) is not (R on them)⁻¹
            return self.inner.mask * jnp.linalg.solve(jnp.asarray(R, r.dtype), self.inner.observed(r))
        return self.inner.solve(r)

    def mv(self, v):
        if self.defect == "output not masked":
            return jnp.asarray(R, v.dtype) @ self.inner.observed(v)
        return self.inner.mv(v) * (1.01 if self.defect == "mv factor" else 1.0)


class WithRestriction(eqx.Module):
    inner: DenseCovariance
    defect: str

    def in_structure(self):
        return self.inner.in_structure()

    def mv(self, v):
        return self.inner.mv(v)

    def restrict(self, mask):
        return Restriction(self.inner.restrict(mask), self.defect)


@pytest.mark.parametrize(
    ("defect", "row"),
    [
        ("whiten factor", "restriction, whitening"),
        ("full inverse", "restriction, mask"),
        ("conditioned", "restriction, inverse"),
        ("output not masked", "restriction, mask"),
        ("mv factor", "restriction, product"),
    ],
)
def test_each_defect_is_seen_in_its_row(defect, row):
    R32 = DenseCovariance(jnp.asarray(R, jnp.float32))
    report = covariance_test(WithRestriction(R32, "none"))
    assert report, str(report)
    assert not covariance_test(WithRestriction(R32, defect))[row].passed


def test_the_member_that_ignores_the_mask_is_named():
    report = covariance_test(WithRestriction(DenseCovariance(jnp.asarray(R, jnp.float32)), "full inverse"))
    assert "the mask is ignored by `solve`" in report["restriction, mask"].meaning


def test_our_restrictions_pass():
    for covariance in (DenseCovariance(jnp.asarray(R)), DiagonalCovariance(jnp.asarray(np.diagonal(R)))):
        report = covariance_test(covariance)
        assert report, str(report)
        assert "restriction, mask" in {row.name for row in report.rows}


@pytest.mark.parametrize("n", [2, 3, 50])
def test_a_random_mask_has_both_kinds_of_entries(n):
    for seed in range(20):
        mask = random_mask(n, np.random.default_rng(seed))
        assert mask.any()
        assert not mask.all()
