"""A correlation and the gradient of its kernel are what JAX's own convolution gives, in every derivative and layout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.networks.correlation import _by_convolution, correlate, kernels

TOLERANCE = {"float32": 3e-5, "float64": 1e-12}
DTYPES = ["float32", pytest.param("float64", marks=pytest.mark.x64)]
CASES = {
    "1-D": ((7,), (3,), ((1, 1),)),
    "2-D, uneven": ((9, 6), (3, 5), ((0, 2), (1, 0))),
    "2-D, in bands of rows, the last one cut": ((37, 70), (3, 3), ((1, 1), (1, 1))),
    "3-D": ((4, 5, 3), (3, 3, 1), ((1, 1), (0, 0), (0, 0))),
}


def draw(*shape, dtype, seed):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def derivatives(correlation):
    """x, w -> value, both gradients, and both gradients of a function of the gradients, in one program."""

    def value(x, w):
        return jnp.sum(jnp.sin(correlation(x, w)))

    def of_gradients(x, w):
        return sum(jnp.sum(jnp.cos(g) * g) for g in jax.grad(value, (0, 1))(x, w))

    return jax.jit(
        lambda x, w: (correlation(x, w), *jax.grad(value, (0, 1))(x, w), *jax.grad(of_gradients, (0, 1))(x, w))
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_value_and_derivatives_are_those_of_the_convolution(case, dtype):
    space, kernel, padding = CASES[case]
    x, w = draw(2, *space, 3, dtype=dtype, seed=0), draw(*kernel, 3, 2, dtype=dtype, seed=1)

    found = derivatives(lambda x, w: correlate(x, w, padding))(x, w)
    expected = derivatives(lambda x, w: _by_convolution(x, w, padding=padding))(x, w)

    for mine, jaxs in zip(found, expected, strict=True):
        assert mine.dtype == dtype
        np.testing.assert_allclose(mine, jaxs, atol=TOLERANCE[dtype] * float(jnp.max(jnp.abs(jaxs))))


def test_the_gradient_of_the_kernel_is_its_sum():
    """Cell by cell; everything else follows from it by bilinearity."""
    x, g = draw(2, 5, 4, 3, dtype="float32", seed=0), draw(2, 5, 4, 2, dtype="float32", seed=1)
    wide = np.pad(np.asarray(x), ((0, 0), (1, 1), (1, 1), (0, 0)))
    expected = [
        [np.einsum("nhwi,nhwo->io", wide[:, i : i + 5, j : j + 4], np.asarray(g)) for j in range(3)] for i in range(3)
    ]
    np.testing.assert_allclose(kernels(x, g, ((1, 1), (1, 1))), expected, atol=1e-5)


def test_the_three_are_one_bilinear_form():
    """<correlate(x, w), g> = <w, kernels(x, g)>, and forward mode is the product rule."""
    padding = ((2, 1), (0, 1))
    x, w = draw(2, 6, 5, 3, dtype="float32", seed=0), draw(3, 2, 3, 2, dtype="float32", seed=1)
    y = correlate(x, w, padding)
    g, dx, dw = (draw(*a.shape, dtype="float32", seed=i) for i, a in enumerate((y, x, w)))

    np.testing.assert_allclose(jnp.vdot(y, g), jnp.vdot(w, kernels(x, g, padding)), rtol=1e-4)
    tangent = jax.jvp(lambda x, w: correlate(x, w, padding), (x, w), (dx, dw))[1]
    np.testing.assert_allclose(tangent, correlate(dx, w, padding) + correlate(x, dw, padding), atol=1e-5)


@pytest.mark.parametrize("axes", [(0, None), (None, 0), (1, 0)])
def test_a_batch_is_its_members(axes):
    """Also one with a kernel for each member, and the gradients of both kinds."""
    padding, n = ((1, 1),), 3
    shapes = [(2, 6, 3), (3, 3, 2)]
    batched = [shape if a is None else (*shape[:a], n, *shape[a:]) for shape, a in zip(shapes, axes, strict=True)]
    x, w = (draw(*shape, dtype="float32", seed=i) for i, shape in enumerate(batched))

    def outputs(x, w):
        value = lambda x, w: jnp.sum(correlate(x, w, padding) ** 2)  # noqa: E731
        return correlate(x, w, padding), *jax.grad(value, (0, 1))(x, w)

    found = jax.jit(jax.vmap(outputs, axes))(x, w)
    one = jax.jit(outputs)
    for i in range(n):
        member = [a if axis is None else jnp.take(a, i, axis) for a, axis in zip((x, w), axes, strict=True)]
        for mine, alone in zip(found, one(*member), strict=True):
            np.testing.assert_allclose(mine[i], alone, rtol=2e-5, atol=2e-5)


def test_a_loop_runs_the_fast_convolution():
    """In the body of a scan, where XLA rewrites no layouts, all convolutions have the channels last."""
    x, w = draw(2, 8, 8, 3, dtype="float32", seed=0), draw(3, 3, 3, 3, dtype="float32", seed=1)

    def loss(w):
        step = lambda x, _: (jnp.tanh(correlate(x, w, ((1, 1), (1, 1)))), None)  # noqa: E731
        return jnp.sum(jax.lax.scan(step, x, length=2)[0])

    text = jax.jit(jax.grad(loss)).lower(w).as_text()
    layouts = [
        line.split("dim_numbers = ")[1].split(",  window")[0] for line in text.splitlines() if "dim_numbers" in line
    ]
    assert len(layouts) >= 3
    assert all("[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]" in layout for layout in layouts)
