"""Every exported prior is fit for a learned method: shapes, precision, transformations, derivatives, persistence.

A class joins by being exported from `vardax.priors`; the test of the recipes then asks for examples of it.
"""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vardax.priors
from vardax.covariances import DenseCovariance
from vardax.dynamics import DiscreteForward
from vardax.primitives import prior_cost
from vardax.priors import (
    BilinAEPrior1D,
    BilinAEPrior2D,
    BilinAEPrior2DMultivar,
    BilinAEPrior3D,
    CellCentred,
    ConvAEPrior,
    ConvAEPrior1D,
    CornerAligned,
    DynamicalPrior,
    DynIncrements,
    DynTrajectory,
    GaussianPrior,
    IdentityPrior,
    L63Prior,
    L96Prior,
    MLPAEPrior1D,
    Product,
    Square,
    UNetPrior2D,
)
from vardax.protocols import LatentMap, Prior

EXPORTED = [getattr(vardax.priors, name) for name in vardax.priors.__all__]
CLASSES = [cls for cls in EXPORTED if isinstance(cls, type) and not cls.__name__.startswith("Abstract")]
# What priors are made of, and their options.
PARTS = {"Block", "BilinearLayers", "GatedLayers", "GridAutoencoder", "Intervals", "PeriodicLayers", "Resampling"}
PARTS |= {"Window", "CellCentred", "CornerAligned", "Gated", "Product", "Square"}

X64 = jax.config.jax_enable_x64
RANDOM = np.random.default_rng(0)
ROOT = RANDOM.normal(size=(6, 6))


def noise(*shape):
    return RANDOM.normal(size=shape)


def swing(state):
    return {"x": state["x"] + 0.1 * state["v"], "v": state["v"] - 0.1 * jnp.sin(state["x"])}


# (prior, a state) of each exported class, by name; a state is one window, without a batch axis.
RECIPES = {
    "BilinAEPrior1D": {"small": lambda: (BilinAEPrior1D(4, 3, 2), noise(3, 4))},
    "BilinAEPrior2D": {
        "gated": lambda: (BilinAEPrior2D(2, 3), noise(2, 5, 6)),
        "as in PyTorch": lambda: (
            BilinAEPrior2D(2, 3, form=Product(), downsampling=2, upsampling=CornerAligned()),
            noise(2, 6, 4),
        ),
    },
    "BilinAEPrior2DMultivar": {
        "square": lambda: (
            BilinAEPrior2DMultivar(2, 2, 3, form=Square(), downsampling=2, upsampling=CellCentred()),
            noise(2, 2, 4, 4),
        ),
    },
    "BilinAEPrior3D": {"periodic": lambda: (BilinAEPrior3D(2, 2, padding="periodic"), noise(2, 3, 3, 4))},
    "ConvAEPrior": {
        "networks": lambda: (
            ConvAEPrior(
                *(eqx.nn.Conv1d(2, 2, 3, padding=1, key=key) for key in jax.random.split(jax.random.key(0))),
                latent_dim=5,
            ),
            noise(2, 5),
        ),
    },
    "ConvAEPrior1D": {"coarse": lambda: (ConvAEPrior1D(6, 2, 2, 3, kernel_size=3, downsampling=2), noise(2, 6))},
    "MLPAEPrior1D": {"small": lambda: (MLPAEPrior1D(4, 3, 2, 5), noise(3, 4))},
    "UNetPrior2D": {"odd": lambda: (UNetPrior2D(2, 2, depth=1), noise(2, 5, 6))},
    "IdentityPrior": {"any state": lambda: (IdentityPrior(), noise(3, 4))},
    "GaussianPrior": {
        "correlated": lambda: (GaussianPrior(noise(6), DenseCovariance(ROOT @ ROOT.T + np.eye(6))), noise(6)),
    },
    "DynamicalPrior": {
        "pytree": lambda: (DynamicalPrior(DiscreteForward(swing, 0.1), 2), {"x": noise(3, 2), "v": noise(3, 2)}),
        "depends on time": lambda: (
            DynamicalPrior(DiscreteForward(lambda x, dt, *, t: x + dt * jnp.cos(t) * x, 0.1), 2, t0=1.0),
            noise(3, 2),
        ),
    },
    "DynIncrements": {"a function": lambda: (DynIncrements(DiscreteForward(jnp.sin, 1.0)), noise(3, 3))},
    "DynTrajectory": {"a function": lambda: (DynTrajectory(DiscreteForward(jnp.sin, 1.0), 2), noise(3, 3))},
    "L63Prior": {"default": lambda: (L63Prior(), noise(3, 3))},
    "L96Prior": {"small": lambda: (L96Prior(5), noise(2, 5))},
}
EXAMPLES = [
    pytest.param(recipe, id=f"{cls}-{name}") for cls, recipes in RECIPES.items() for name, recipe in recipes.items()
]


made = functools.cache(lambda recipe: recipe())


def example(recipe, dtype=None):
    prior, x = made(recipe)
    return prior, jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype or jnp.result_type(float)), x)


def cost(prior, x):
    return prior.cost(x) if hasattr(prior, "cost") else prior_cost(x, prior_fn=prior)


def described(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype.name), tree)


def test_every_exported_class_has_examples():
    assert {cls.__name__ for cls in CLASSES} - PARTS == set(RECIPES)


@pytest.mark.parametrize("recipe", EXAMPLES)
@pytest.mark.parametrize("dtype", ["float32", "float64"] if X64 else ["float32"])
def test_a_reconstruction_is_a_state_in_the_dtype_of_the_state(recipe, dtype):
    prior, x = example(recipe, dtype)
    assert isinstance(prior, Prior)
    assert described(jax.eval_shape(prior, x)) == described(x)
    assert jax.eval_shape(lambda s: cost(prior, s), x).dtype == dtype
    if prior.state_signature is not None:
        assert jax.tree.map(lambda s: s.shape, prior.state_signature) == jax.tree.map(jnp.shape, x)


@pytest.mark.parametrize("recipe", EXAMPLES)
def test_a_latent_map_reconstructs_by_encoding_and_decoding(recipe):
    prior, x = example(recipe)
    if not isinstance(prior, LatentMap):
        return
    both = jax.eval_shape(lambda s: prior.decode(prior.encode(s)), x)
    assert described(both) == described(x)
    assert isinstance(prior.latent_dim, int)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", EXAMPLES)
def test_a_prior_goes_through_jit_and_vmap_and_its_gradients_are_finite(recipe):
    """The gradient is also differentiated again: a learned method is trained through it."""
    prior, x = example(recipe)
    stack = jax.tree.map(lambda leaf: jnp.stack([leaf, 0.5 * leaf]), x)

    @eqx.filter_jit
    def through(prior, states):
        gradient = jax.vmap(jax.grad(lambda s: cost(prior, s)))(states)
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(gradient)), gradient

    (value, gradient), outer = eqx.filter_value_and_grad(lambda p: through(p, stack), has_aux=True)(prior)
    assert described(gradient) == described(stack)
    for leaf in jax.tree.leaves((value, gradient, eqx.filter(outer, eqx.is_inexact_array))):
        assert np.all(np.isfinite(leaf))
    together = eqx.filter_jit(lambda p, states: jax.vmap(p)(states))(prior, stack)
    alone = eqx.filter_jit(prior)(jax.tree.map(lambda leaf: leaf[1], stack))
    for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(together), strict=True):
        np.testing.assert_allclose(a, b[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("recipe", EXAMPLES)
def test_it_comes_back_from_a_registry(recipe, comes_back):
    comes_back(lambda: made(recipe)[0])
