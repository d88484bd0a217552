"""Field losses: Sobel gradients as SciPy's, gaps left out with their neighbours, and the sum of the published terms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from vardax.training.field_losses import field_loss, gradient_loss, prior_loss
from vardax.training.losses import reconstruction_loss
from vardax.types import Batch1D, Batch2D


def magnitude(field):
    """SciPy's Sobel filters of an n-dimensional field, scaled to derivatives."""
    parts = [scipy.ndimage.sobel(field, axis, mode="nearest") for axis in range(field.ndim)]
    return np.sqrt(sum((part / (2 * 4 ** (field.ndim - 1))) ** 2 for part in parts) + 1e-6)


slope = jax.jit(jax.grad(gradient_loss))
value = jax.jit(gradient_loss, static_argnames="n_space")


@pytest.mark.parametrize("n_space", [1, 2, 3])
def test_the_gradient_is_the_sobel_filter(n_space):
    pred, target = np.random.default_rng(n_space).normal(size=(2, 3, *(5, 4, 6)[:n_space]))
    expected = np.mean([(magnitude(p) - magnitude(t)) ** 2 for p, t in zip(pred, target, strict=True)])
    assert float(value(pred, target, n_space=n_space)) == pytest.approx(expected, rel=1e-5)


def test_a_gap_is_left_out_with_its_neighbours():
    pred, target = np.random.default_rng(0).normal(size=(2, 1, 6, 7))
    difference = (magnitude(pred[0]) - magnitude(target[0])) ** 2
    known = np.ones((6, 7), bool)
    known[1:4, 3:6] = False
    target[0, 2, 4] = np.nan
    pred[0, 2, 4] = np.inf
    assert float(value(pred, target)) == pytest.approx(difference[known].mean(), rel=1e-5)
    assert np.all(np.isfinite(slope(pred[:, :4, :4], target[:, :4, :4])))


def test_a_constant_field_has_a_finite_gradient():
    assert np.all(np.isfinite(slope(np.ones((1, 4, 4)), np.zeros((1, 4, 4)))))


class Model:
    """x = a fixed multiple of the input, with a prior phi(x) = x / 2."""

    prior = staticmethod(lambda x: 0.5 * x)

    def __call__(self, batch):
        return 3.0 * batch.input


def test_the_field_loss_is_the_weighted_sum_of_its_terms():
    y, t = np.random.default_rng(0).normal(size=(2, 2, 3, 4, 5))
    batch = Batch2D(y, np.ones_like(y), t)
    states = 3.0 * batch.input
    terms = float(reconstruction_loss(states, t)), float(value(states, t)), float(jnp.mean((0.5 * states) ** 2))
    total = jax.jit(lambda batch: field_loss(Model(), batch))(batch)
    assert float(total) == pytest.approx(50 * terms[0] + 1000 * terms[1] + terms[2], rel=1e-6)
    one_term = field_loss(Model(), batch, error=2.0, gradient=0.0, prior=0.0)
    assert float(one_term) == pytest.approx(2 * terms[0], rel=1e-6)


def test_space_is_what_the_batch_says():
    y, t = np.random.default_rng(0).normal(size=(2, 2, 3, 4))
    batch = Batch1D(y, np.ones_like(y), t)
    expected = value(3.0 * batch.input, t, n_space=1)
    found = jax.jit(lambda batch: field_loss(Model(), batch, error=0.0, gradient=1.0, prior=0.0))(batch)
    assert float(found) == pytest.approx(float(expected), rel=1e-6)


def test_a_prior_with_a_cost_counts_by_it():
    class Costly:
        cost = staticmethod(lambda x: jnp.sum(x))

    assert prior_loss(Costly(), jnp.full((2, 5), 3.0)) == 3.0


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match=r"`target` has shape \(4,\), expected \(3,\)"):
        gradient_loss(jnp.ones(3), jnp.ones(4), n_space=1)
    with pytest.raises(ValueError, match="at least `n_space` = 2 axes"):
        gradient_loss(jnp.ones(3), jnp.ones(3))
    with pytest.raises(ValueError, match=r"field_loss: `batch.target` is None"):
        field_loss(Model(), Batch1D(jnp.ones((1, 1, 2)), jnp.ones((1, 1, 2))))
