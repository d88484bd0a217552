"""A convolution is the sum that its docstring says, at every edge, and so are its derivatives."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.networks.convolution import Convolution

SHAPES = {1: (7,), 2: (4, 6), 3: (3, 5, 4)}
DTYPE = jnp.result_type(float)
TOLERANCE = 1e-12 if jax.config.jax_enable_x64 else 1e-5


PAST_THE_EDGE = {
    "zeros": lambda p, n: p if 0 <= p < n else None,
    "periodic": lambda p, n: p % n,
    "reflect": lambda p, n: n - 1 - abs(n - 1 - abs(p)),
}


def field(n_channels, space, seed=0):
    return np.random.default_rng(seed).standard_normal((n_channels, *space))


def oracle(convolution, x):
    """The sum over channels and kernel cells, cell by cell; past the edges by index arithmetic."""
    weight, bias = np.asarray(convolution.weight, float), np.asarray(convolution.bias, float)
    space, size = x.shape[1:], weight.shape[-1]
    out = np.zeros((len(weight), *space))
    for cell in itertools.product(*map(range, space)):
        out[(slice(None), *cell)] = bias
        for shift in itertools.product(range(size), repeat=len(space)):
            place = [c + s - size // 2 for c, s in zip(cell, shift, strict=True)]
            place = [PAST_THE_EDGE[e](p, n) for p, n, e in zip(place, space, convolution.padding, strict=True)]
            if None in place:
                continue
            out[(slice(None), *cell)] += weight[(slice(None), slice(None), *shift)] @ x[(slice(None), *place)]
    return out


@pytest.mark.parametrize("padding", ["zeros", "periodic", "reflect"])
@pytest.mark.parametrize(("n_spatial", "size"), [(1, 1), (1, 7), (2, 5), (3, 3)])
def test_it_is_the_sum_over_the_kernel(n_spatial, size, padding):
    convolution = Convolution(n_spatial, 3, 2, size, padding=padding)
    x = field(3, SHAPES[n_spatial])
    found = eqx.filter_jit(convolution)(jnp.asarray(x, DTYPE))

    np.testing.assert_allclose(found, oracle(convolution, x), atol=TOLERANCE * 10)


@pytest.mark.parametrize("padding", [("reflect", "periodic"), ("zeros", "reflect"), ["periodic", "zeros"]])
def test_each_axis_may_have_its_own_edges(padding):
    convolution, x = Convolution(2, 3, 2, 5, padding=padding), field(3, (4, 6))
    assert convolution.padding == tuple(padding)
    np.testing.assert_allclose(convolution(jnp.asarray(x, DTYPE)), oracle(convolution, x), atol=TOLERANCE * 10)


def test_periodic_convolution_commutes_with_translation():
    convolution = Convolution(2, 2, 3, 3, padding="periodic")
    x = jnp.asarray(field(2, (4, 6)), DTYPE)

    moved = convolution(jnp.roll(x, (1, 2), (1, 2)))

    np.testing.assert_allclose(moved, jnp.roll(convolution(x), (1, 2), (1, 2)), atol=TOLERANCE)


@pytest.mark.parametrize("padding", ["zeros", "periodic", "reflect"])
def test_the_gradient_is_the_adjoint(padding):
    """<C x, y> = <x, C' y> for the linear part, and for the weights as well: the map is linear in each."""
    convolution = Convolution(2, 3, 2, 5, padding=padding, use_bias=False)
    x, y = jnp.asarray(field(3, (4, 6)), DTYPE), jnp.asarray(field(2, (4, 6), 1), DTYPE)

    def product(weight, x):
        return jnp.vdot(eqx.tree_at(lambda c: c.weight, convolution, weight)(x), y)

    value, (by_weight, by_x) = jax.jit(jax.value_and_grad(product, (0, 1)))(convolution.weight, x)

    np.testing.assert_allclose(jnp.vdot(by_weight, convolution.weight), value, rtol=TOLERANCE * 10)
    np.testing.assert_allclose(jnp.vdot(by_x, x), value, rtol=TOLERANCE * 10)


def test_channels_may_be_the_last_axis():
    convolution = Convolution(2, 3, 2, 3)
    x = jnp.asarray(field(3, (4, 6)), DTYPE)

    last = convolution.channels_last(jnp.moveaxis(x, 0, -1))

    np.testing.assert_allclose(jnp.moveaxis(last, -1, 0), convolution(x), atol=TOLERANCE)


def test_it_computes_in_the_dtype_of_its_weights():
    convolution = Convolution(1, 1, 1, dtype=jnp.bfloat16)
    assert convolution(jnp.ones((1, 4), jnp.float32)).dtype == jnp.bfloat16


def test_other_keys_draw_other_weights():
    drawn = [Convolution(1, 2, 2, key=key).weight for key in (None, jax.random.key(0), jax.random.key(1))]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert not np.allclose(drawn[0], drawn[2])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Convolution(4, 1, 1), "`n_spatial` is 4"),
        (lambda: Convolution(1, 0, 1), "`in_channels` is 0"),
        (lambda: Convolution(1, 1, 1, 4), "`kernel_size` is 4, expected an odd number"),
        (lambda: Convolution(2, 1, 1, padding=("zeros",)), r"or one of these for each of 2 axes of space"),
    ],
)
def test_bad_settings_are_named(make, words):
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize(
    ("padding", "shape", "words"),
    [
        ("reflect", (2, 3, 2), r"the grid \(3, 2\) is smaller than the kernel needs.*need 3 or more"),
        ("periodic", (2, 1, 4), r"the grid \(1, 4\) is smaller than the kernel needs.*need 2 or more"),
        ("zeros", (2, 0, 4), r"the grid \(0, 4\) is smaller"),
        (("zeros", "reflect"), (2, 1, 2), r"the grid \(1, 2\) is smaller.*'reflect' need 3"),
        ("zeros", (3, 4, 4), r"shape \(3, 4, 4\), expected 2 channels on 2 axes"),
        ("zeros", (2, 4), r"shape \(2, 4\), expected 2 channels on 2 axes"),
    ],
)
def test_fields_that_do_not_fit_are_named(padding, shape, words):
    with pytest.raises(ValueError, match=words):
        Convolution(2, 2, 1, 5, padding=padding)(jnp.zeros(shape, DTYPE))
