"""Dense autoencoders: the bilinear form against numpy, latent maps that an analysis runs in, training, bad input."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.covariances.diagonal import DiagonalCovariance
from vardax.latent.prior import LatentPrior
from vardax.models.latent_threedvar import LatentThreeDVar
from vardax.obs_operators.identity import MaskedIdentity
from vardax.primitives.costs import prior_cost
from vardax.priors.dense_autoencoders import BilinAEPrior1D, MLPAEPrior1D
from vardax.protocols import LatentMap, Prior
from vardax.types import Batch2D

RANDOM = np.random.default_rng(4)
T, N, L = 3, 4, 5
X = RANDOM.normal(size=(T, N))
CLOSE = 1e-10 if jax.config.jax_enable_x64 else 1e-5


def test_the_bilinear_form_is_the_one_of_the_paper():
    prior = BilinAEPrior1D(N, T, L)
    affine = lambda layer, v: np.asarray(layer.weight) @ v + np.asarray(layer.bias)  # noqa: E731
    z = np.maximum(affine(prior.A, X.ravel()), 0) * np.tanh(affine(prior.B, X.ravel()))
    np.testing.assert_allclose(prior.encode(jnp.asarray(X)), z, atol=CLOSE)
    np.testing.assert_allclose(prior(jnp.asarray(X)), affine(prior.C, z).reshape(T, N), atol=CLOSE)


@pytest.mark.x64
@pytest.mark.parametrize("prior", [MLPAEPrior1D(N, T, L, 6), BilinAEPrior1D(N, T, L)], ids=lambda p: type(p).__name__)
def test_the_gradient_of_the_cost_is_that_of_finite_differences(prior):
    cost = jax.jit(lambda x: prior_cost(x, prior_fn=prior))
    direction = jnp.asarray(RANDOM.normal(size=(T, N)))
    slope = jnp.vdot(jax.grad(cost)(jnp.asarray(X)), direction)
    differences = (cost(X + 1e-5 * direction) - cost(X - 1e-5 * direction)) / 2e-5
    np.testing.assert_allclose(slope, differences, rtol=1e-7)


def test_it_learns_states_on_a_curve():
    """Gradient steps on the weights bring ‖x - phi(x)‖² of states with one degree of freedom down."""
    angles = jnp.linspace(0, 6.0, 32)
    states = jnp.stack([jnp.cos(angles), jnp.sin(angles), jnp.cos(2 * angles), jnp.sin(2 * angles)], axis=1)
    prior = MLPAEPrior1D(4, None, 2, 16)
    loss = lambda p: jnp.mean(jax.vmap(lambda x: prior_cost(x, prior_fn=p))(states))  # noqa: E731

    @eqx.filter_jit
    def trained(prior):
        params, rest = eqx.partition(prior, eqx.is_inexact_array)
        slope = jax.grad(lambda p: loss(eqx.combine(p, rest)))

        def step(params, _):
            return jax.tree.map(lambda w, g: w - 0.1 * g, params, slope(params)), None

        return eqx.combine(jax.lax.scan(step, params, None, length=800)[0], rest)

    assert float(loss(trained(prior))) < 0.1 * float(loss(prior))


def test_an_analysis_runs_in_the_latent_space_of_a_window():
    prior = MLPAEPrior1D(N, T, 2, 6)
    assert isinstance(prior, Prior)
    assert isinstance(prior, LatentMap)
    truth = prior.decode(jnp.array([0.7, -0.4]))
    y = np.array(truth)
    y[1, 2] = np.nan
    latent = LatentPrior(prior, jnp.zeros(2), DiagonalCovariance(np.full(2, 100.0)))
    method = LatentThreeDVar(prior, MaskedIdentity(), latent, DiagonalCovariance(np.full((T, N), 1e-4)), max_steps=2000)
    analysis = method.analyse(Batch2D.from_observations(y[None, None]))
    assert analysis.converged.all()
    np.testing.assert_allclose(analysis.state[0], truth, atol=1e-3)
    np.testing.assert_allclose(analysis.latent[0], [0.7, -0.4], atol=2e-2)


@pytest.mark.parametrize("cls", [MLPAEPrior1D, BilinAEPrior1D])
def test_signature_time_axis_and_precision(cls):
    prior = cls(N, None, L, dtype="float16")
    assert prior.state_signature == jax.ShapeDtypeStruct((N,), "float16")
    x = jnp.asarray(X[0], "float32")
    assert (prior.encode(x).shape, prior(x).shape) == ((L,), (N,))
    assert prior.encode(x).dtype == prior(x).dtype == "float32"
    assert all(leaf.dtype == "float16" for leaf in jax.tree.leaves(eqx.filter(prior, eqx.is_array)))


def test_bad_input_is_refused_in_words():
    prior = BilinAEPrior1D(N, T, L)
    with pytest.raises(ValueError, match=r"BilinAEPrior1D: the state has shape \(2, 3, 4\), expected \(3, 4\): one"):
        prior(jnp.zeros((2, T, N)))
    with pytest.raises(ValueError, match=r"the latent vector has shape \(4,\), expected \(5,\)"):
        prior.decode(jnp.zeros(4))
    with pytest.raises(ValueError, match="BilinAEPrior1D: `state_dim` is 0"):
        BilinAEPrior1D(0, T)
    with pytest.raises(ValueError, match="MLPAEPrior1D: `hidden_dim` is 0"):
        MLPAEPrior1D(N, T, L, 0)
    with pytest.raises(ValueError, match="MLPAEPrior1D: `n_time` is 0"):
        MLPAEPrior1D(N, 0)
