"""Weights of the PyTorch programs: the same output as theirs, whatever the names are prefixed with."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.priors.bilinear_forms import Gated, Product, Square
from vardax.priors.bilinear_grid import BilinAEPrior2D
from vardax.priors.torch_weights import bilinear_weights

SHAPES = {
    "conv_in": (3, 2),
    "conv_hidden": (3, 3),
    "bilin_1": (3, 3),
    "bilin_21": (3, 3),
    "bilin_22": (3, 3),
    "conv_out": (2, 6),
}

# ocean4dvarnet 1.0.6 with PyTorch 2.13 in float64, with the weights and the input below: the sum of phi(x), and four of
# its cells. (form, downsamp, grid, values)
TORCH = [
    (Product(), 2, (4, 6), [111.5347491717, 5.4323958155, 7.2687290822, -7.9052302836, 0.8566714926]),
    (Square(), 3, (6, 9), [942.3615081831, -11.1346957264, -7.281786132, 8.4530904319, 7.3445637529]),
    (Product(), 1, (4, 6), [30.0981298013, 12.1021383586, 33.0875081573, 0.4332304202, 16.9756016041]),
]


def wave(shape, k):
    return (0.5 * np.cos(0.7 * np.arange(np.prod(shape)) + k)).reshape(shape)


def state_dict(prefix="", dot="."):
    names = [(layer, part) for layer in SHAPES for part in ("weight", "bias")]
    shape = {"weight": lambda sizes: (*sizes, 3, 3), "bias": lambda sizes: sizes[:1]}
    return {f"{prefix}{layer}{dot}{part}": wave(shape[part](SHAPES[layer]), k) for k, (layer, part) in enumerate(names)}


@pytest.mark.parametrize(("form", "factor", "grid", "expected"), TORCH)
def test_the_output_is_that_of_the_torch_program(form, factor, grid, expected):
    prior = BilinAEPrior2D.from_torch(state_dict(), form=form, downsampling=factor)
    phi = np.asarray(prior(jnp.asarray(wave((2, *grid), 0.3))))
    found = [phi.sum(), *phi[0, 0, :2], phi[0, -1, -1], phi[1, 2, 3]]
    np.testing.assert_allclose(found, expected, rtol=1e-9 if jax.config.jax_enable_x64 else 1e-4)


def test_names_may_have_a_prefix_and_lie_among_others():
    plain = bilinear_weights(state_dict())
    others = {"grad_mod__conv_out__weight": np.ones(1), "prior_cost__down__unused": np.ones(1)}
    found = bilinear_weights(state_dict("prior_cost__", "__") | others)
    assert set(found) == set(plain)
    for name, array in found.items():
        np.testing.assert_array_equal(array, plain[name])


def test_what_does_not_fit_is_refused_in_words():
    with pytest.raises(ValueError, match="has 0 names that end in conv_in.weight, expected one"):
        BilinAEPrior2D.from_torch({"encoder.weight": np.ones(1)})
    with pytest.raises(ValueError, match="has 2 names that end in conv_in.weight"):
        bilinear_weights(state_dict("a.") | state_dict("b."))
    lacking = {name: value for name, value in state_dict("p.").items() if "bilin_21" not in name}
    with pytest.raises(ValueError, match="`state_dict` lacks p.bilin_21.weight, p.bilin_21.bias"):
        bilinear_weights(lacking)
    wrong = state_dict() | {"conv_out.weight": np.ones((2, 5, 3, 3))}
    with pytest.raises(ValueError, match=r"conv_out have a weight of shape \(2, 5, 3, 3\), expected \(2, 6, 3, 3\)"):
        BilinAEPrior2D.from_torch(wrong)
    with pytest.raises(TypeError, match=r"`form` is Gated\(\), expected Product\(\) or Square\(\)"):
        BilinAEPrior2D.from_torch(state_dict(), form=Gated())
