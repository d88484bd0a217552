"""Only public names of vardax and of the libraries under it are written and found."""

import functools
import os

import equinox as eqx
import jax
import lineax as lx
import optimistix as optx
import pytest

from vardax.models.strong_fourdvar import StrongFourDVar
from vardax.persist.names import full_name, is_known, named, public_name


def own_function(x):
    return x


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (jax.nn.relu, "jax.nn:relu"),
        (jax.numpy.tanh, "jax.numpy:tanh"),
        (eqx.nn.Linear, "equinox.nn:Linear"),
        (optx.BFGS, "optimistix:BFGS"),
        (lx.positive_semidefinite_tag, "lineax:positive_semidefinite_tag"),
        (StrongFourDVar, "vardax.models.strong_fourdvar:StrongFourDVar"),
    ],
)
def test_a_name_leads_back_to_what_it_names(value, name):
    assert public_name(value) == name
    assert named(name) is value


@pytest.mark.parametrize("value", [own_function, os.system, lambda x: x, functools.partial(own_function), print])
def test_other_code_has_no_name(value):
    assert public_name(value) is None


@pytest.mark.parametrize(
    "name",
    [
        "os:system",
        "builtins:eval",
        "vardax.persist.registry:os",
        "vardax.persist.registry:os.system",
        "vardax.persist.registry:shutil.rmtree",
        "vardax.no_such_module:x",
        "jax.numpy:__builtins__",
        "jax.numpy:no_such_name",
        "subprocess",
        3,
        None,
    ],
)
def test_a_manifest_reaches_nothing_else(name):
    assert not is_known(name)
    with pytest.raises(ValueError, match="not a public name"):
        named(name)


def test_other_code_has_a_name_for_messages():
    assert full_name(own_function).endswith(":own_function")
