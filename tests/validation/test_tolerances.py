"""Limits by float type, and overrides by name."""

import dataclasses

import pytest

from vardax.validation.tolerances import Tolerances, default_tolerances


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Tolerances)])
def test_float32_is_never_stricter_than_float64(field):
    assert getattr(default_tolerances("float32"), field) >= getattr(default_tolerances("float64"), field)


def test_the_adjoint_limit_in_float64_is_the_documented_one():
    assert default_tolerances("float64").adjoint == 1e-12


def test_an_override_replaces_one_limit():
    limits = default_tolerances("float64", {"psd": 1e-3})
    assert limits.psd == 1e-3
    assert limits.root == default_tolerances("float64").root


def test_an_unknown_limit_gives_the_nearest_name():
    with pytest.raises(ValueError, match=r"`tolerances` has no limit 'adjiont'; did you mean 'adjoint'\?"):
        default_tolerances("float64", {"adjiont": 1e-3})


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Tolerances)])
def test_every_limit_is_documented_with_its_values(field):
    import vardax.validation.tolerances as module

    (line,) = [line for line in module.__doc__.splitlines() if line.startswith(f"| `{field}`")]
    _, _, double, single, _ = (cell.strip() for cell in line.replace("|Au|", "").replace("|Aᵀv|", "").split("|", 4))
    assert float(double) == getattr(default_tolerances("float64"), field)
    assert float(single) == getattr(default_tolerances("float32"), field)
