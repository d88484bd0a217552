"""Every kind of value goes to JSON and comes back; what cannot is named."""

import dataclasses
import enum
import functools
import json
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.dynamics.lorenz63 import Lorenz63
from vardax.persist.decoding import MISSING, as_leaf, decode
from vardax.persist.differences import first_difference
from vardax.persist.encoding import Encoded
from vardax.persist.weights import stored
from vardax.types import Status


class Holder(eqx.Module):
    content: Any
    fixed: Any = eqx.field(static=True, default=None)


class Pair(NamedTuple):
    left: Any
    right: Any


class Colour(enum.Enum):
    RED = 1


def through_json(model, skeleton=MISSING):
    encoded = Encoded(model)
    tree = json.loads(json.dumps(encoded.tree, allow_nan=False))
    assert tree == encoded.tree
    leaves = {n: as_leaf(stored(n, a), encoded.described[n]) for n, a in encoded.arrays.items()}
    return decode(tree, "", leaves, skeleton)


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        3,
        0.1,
        float("inf"),
        1 - 2.5j,
        "text",
        ...,
        slice(1, None, 2),
        [1, (2.5, None)],
        {"a": 1, 2: [3], (1, "b"): {}},
        frozenset({1, "a"}),
        np.float32(0.1),
        np.dtype("float32"),
        jax.ShapeDtypeStruct((2, 3), jnp.bfloat16),
        jax.nn.relu,
        jnp.float32,
        Lorenz63,
        Status.MAX_STEPS,
    ],
)
def test_a_value_comes_back(value):
    found = through_json(value)
    assert type(found) is type(value)
    assert found == value


def test_nan_comes_back():
    assert np.isnan(through_json([float("nan")])[0])


@pytest.mark.parametrize(
    "array",
    [jnp.arange(3.0), jnp.ones((2,), jnp.bfloat16), np.array(2.5), np.array(["a", "bcd"]), np.arange(3, dtype=">i2")],
)
def test_an_array_comes_back_as_what_it_was(array):
    found = through_json({"x": array})["x"]
    assert type(found) is type(array)
    assert found.dtype.name == array.dtype.name  # of another byte order comes back in that of the machine
    assert np.array_equal(found, array)


def test_a_weakly_typed_number_stays_weak():
    assert through_json(jnp.asarray(2.0)).weak_type
    assert not through_json(jnp.ones(())).weak_type


def test_a_model_that_was_loaded_is_the_one_that_was_saved():
    model = {"weak": jnp.full(4, 2.3), "number": jnp.asarray(3)}
    assert Encoded(through_json(model)).described == Encoded(model).described


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_a_key_draws_the_same_numbers(impl):
    key = jax.random.key(7, impl=impl)
    found = through_json(key)
    assert found.dtype == key.dtype
    assert jax.random.key_data(found).tolist() == jax.random.key_data(key).tolist()


def test_a_bound_method_and_a_partial_come_back():
    model = Lorenz63(dt=0.02)
    method, partial = through_json([model.tendency, functools.partial(jnp.sum, axis=0)])
    x = jnp.array([1.0, 2.0, 3.0])
    assert method(x).tolist() == model.tendency(x).tolist()
    assert partial(jnp.ones((4, 2))).tolist() == [4.0, 4.0]


def test_a_default_without_a_name_comes_back():
    net = eqx.nn.MLP(2, 2, 4, 1, key=jax.random.key(0))
    found = through_json(net)
    assert found.final_activation is net.final_activation
    assert eqx.tree_equal(found, net)


@pytest.mark.parametrize(
    "value", [Holder(1), Pair(1, 2), Colour.RED, [lambda x: x], dataclasses.make_dataclass("D", "a")(1)]
)
def test_code_of_others_needs_a_skeleton(value):
    with pytest.raises(ValueError, match="skeleton"):
        through_json(value)
    found = through_json(value, value)
    assert type(found) is type(value)


def test_a_skeleton_supplies_code_and_the_file_the_numbers():
    net = lambda x: x  # noqa: E731
    saved = Holder({"f": [net, jnp.arange(3.0)]}, Pair(1, "a"))
    like = Holder({"f": [net, jnp.zeros(3)]}, Pair(1, "a"))
    found = through_json(saved, like)
    assert found.content["f"][0] is net
    assert found.content["f"][1].tolist() == [0.0, 1.0, 2.0]
    assert found.fixed == Pair(1, "a")


@pytest.mark.parametrize(
    ("saved", "here", "message"),
    [
        (Holder(1), Holder(2), "`content` is 1, 2"),
        (Holder(1), Holder(1.0), "`content` is 1, 1.0"),
        (Holder([1, {"a": 2}]), Holder([1, {"a": 3}]), "`content[1]['a']` is 2, 3"),
        (Holder([1, {"a": 2}]), Holder([1, {"b": 2}]), "`content[1]['a']` is missing, or in another place"),
        (Holder((1, 2)), Holder([1, 2]), "`content` is {'tuple': [1, 2]}, {'list': [1, 2]}"),
        (Holder(Lorenz63()), Holder(3), "`content` is vardax.dynamics.lorenz63:Lorenz63, 3"),
        (Holder(Lorenz63(dt=0.01)), Holder(Lorenz63(dt=0.02)), "`content.dt` is 0.01, 0.02"),
    ],
)
def test_the_first_difference_is_named(saved, here, message):
    assert first_difference(Encoded(saved).tree, Encoded(here).tree) == message
    assert first_difference(Encoded(saved).tree, Encoded(saved).tree) is None


@pytest.mark.x64
def test_numbers_of_64_bits_are_not_shortened_silently():
    encoded = Encoded(jnp.arange(3.0))
    with jax.enable_x64(False), pytest.raises(ValueError, match="64-bit numbers disabled"):
        as_leaf(encoded.arrays["model"], encoded.described["model"])


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="unknown kind 'later'"):
        decode({"later": 1}, "", {})
