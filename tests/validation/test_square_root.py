"""Square root, inverse and samples: the limits of what is looked at."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.covariances.diagonal import DiagonalCovariance
from vardax.validation import covariance_test
from vardax.validation.spaces import Space
from vardax.validation.square_root import inverse_rows, root_rows
from vardax.validation.standardised import Standardised
from vardax.validation.tolerances import default_tolerances


def identity(n=5):
    space = Space.of(jax.ShapeDtypeStruct((n,), jnp.float32), "field")
    return Standardised.of(space, lambda v: v, None)


def test_samples_of_a_very_large_field_are_left_out_with_a_note():
    report = covariance_test(DiagonalCovariance(jnp.ones(200_000, jnp.float32)), n_lanczos=2)
    assert report
    assert any("samples not checked: 32 fields of 200000 cells" in note for note in report.notes)


def test_a_root_into_another_space_is_a_failing_row():
    rows = root_rows(identity(), jnp.ones((4, 5)), np.random.default_rng(0), default_tolerances("float32"), 2)
    assert [row.name for row in rows if not row.passed] == ["structure of half"]


def test_an_inverse_into_another_space_is_a_failing_row():
    rows = inverse_rows(identity(), lambda v: v[:2], np.random.default_rng(0), default_tolerances("float32"))
    assert [row.name for row in rows if not row.passed] == ["structure of inverse"]


@pytest.mark.parametrize("factor", [1.0, 1.01])
def test_the_identity_is_its_own_root(factor):
    root = factor * jnp.eye(5, dtype=jnp.float32)
    rows = root_rows(identity(), root, np.random.default_rng(0), default_tolerances("float32"), 2)
    assert all(row.passed for row in rows) == (factor == 1.0)
