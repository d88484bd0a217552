"""The latent costs against dense algebra, with gaps in a correlated R."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np

from vardax.covariances.dense import DenseCovariance
from vardax.latent.identity import IdentityLatentMap
from vardax.primitives.latent import (
    decode_jacobian,
    identity_latent_map,
    latent_incremental_cost,
    obs_misfit_latent_seq,
    variational_cost_latent,
)

RTOL = 1e-10 if jax.config.jax_enable_x64 else 1e-4
RANDOM = np.random.default_rng(8)
K, M = 3, 4
A = RANDOM.normal(size=(M, K))


def covariance(n):
    root = RANDOM.normal(size=(n, n))
    return root @ root.T / n + 0.3 * np.eye(n)


B, R = covariance(K), covariance(M)
B_op, R_op = DenseCovariance(B), DenseCovariance(R)
Y, MASK = RANDOM.normal(size=(2, M)), np.array([[1, 0, 1, 1], [1, 1, 0, 0]])
Z, Z_B = RANDOM.normal(size=(2, K))


def misfit(gap, mask):
    seen = mask != 0
    return 0.5 * gap[seen] @ np.linalg.solve(R[np.ix_(seen, seen)], gap[seen])


def background(dz):
    return 0.5 * dz @ np.linalg.solve(B, dz)


def predict(z):
    return jnp.sin(jnp.asarray(A, z.dtype) @ z)


def test_the_cost_of_one_time():
    predicted = predict(jnp.asarray(Z))
    expected = background(Z - Z_B) + misfit(Y[0] - np.asarray(predicted), MASK[0])
    rest = (jnp.asarray(np.where(MASK[0], Y[0], np.nan)), MASK[0], R_op)
    found = variational_cost_latent(jnp.asarray(Z), jnp.asarray(Z_B), B_op, predicted, *rest)
    np.testing.assert_allclose(found, expected, rtol=RTOL)
    again = variational_cost_latent(jnp.asarray(Z), jnp.asarray(Z_B), B_op, predict, *rest)
    np.testing.assert_allclose(again, expected, rtol=RTOL)


def test_the_gradient_is_that_of_the_cost():
    cost = lambda z: variational_cost_latent(z, jnp.asarray(Z_B), B_op, predict, jnp.asarray(Y[0]), MASK[0], R_op)  # noqa: E731
    seen = MASK[0] != 0
    H = np.asarray(jax.jacobian(predict)(jnp.asarray(Z)))[seen]
    gap = (Y[0] - np.asarray(predict(jnp.asarray(Z))))[seen]
    expected = np.linalg.solve(B, Z - Z_B) - H.T @ np.linalg.solve(R[np.ix_(seen, seen)], gap)
    np.testing.assert_allclose(jax.grad(cost)(jnp.asarray(Z)), expected, rtol=10 * RTOL)


def test_a_sequence_is_the_sum_over_its_times():
    predicted = RANDOM.normal(size=(2, M))
    expected = sum(misfit(y - p, m) for y, p, m in zip(Y, predicted, MASK, strict=True))
    found = obs_misfit_latent_seq(jnp.asarray(predicted), jnp.asarray(Y), MASK, R_op)
    np.testing.assert_allclose(found, expected, rtol=RTOL)


def test_the_incremental_cost_is_the_quadratic_at_the_point_of_linearisation():
    dz, z_ref, d = RANDOM.normal(size=K), RANDOM.normal(size=K), RANDOM.normal(size=M)
    arrays = [jnp.asarray(a) for a in (dz, Z_B)]
    for tangent in (lx.MatrixLinearOperator(jnp.asarray(A)), lambda v: jnp.asarray(A, v.dtype) @ v):
        found = latent_incremental_cost(*arrays, B_op, jnp.asarray(d), R_op, tangent)
        np.testing.assert_allclose(found, background(dz) + misfit(d - A @ dz, np.ones(M)), rtol=RTOL)
    elsewhere = latent_incremental_cost(
        *arrays, B_op, jnp.asarray(np.where(MASK[1], d, np.nan)), R_op, tangent, z_ref=jnp.asarray(z_ref)
    )
    expected = background(z_ref + dz - Z_B) + misfit(d - A @ dz, MASK[1])
    np.testing.assert_allclose(elsewhere, expected, rtol=RTOL)


def test_without_a_map_it_is_the_cost_of_states_and_with_a_linear_one_the_increment_is_exact():
    z, z_b = jnp.asarray(Z), jnp.asarray(Z_B)
    linear = lambda v: jnp.asarray(A, v.dtype) @ v  # noqa: E731
    whole = variational_cost_latent(z, z_b, B_op, linear, jnp.asarray(Y[0]), MASK[0], R_op)
    innovation = jnp.asarray(np.where(MASK[0], Y[0] - A @ Z_B, np.nan))
    np.testing.assert_allclose(latent_incremental_cost(z - z_b, z_b, B_op, innovation, R_op, linear), whole, rtol=RTOL)


def test_the_jacobian_of_a_decoder_and_the_identity_map():
    class Curved:
        encode = staticmethod(jnp.sinh)
        decode = staticmethod(predict)

    found = decode_jacobian(Curved(), jnp.asarray(Z))
    np.testing.assert_allclose(found.as_matrix(), jax.jacobian(predict)(jnp.asarray(Z)), rtol=RTOL)
    assert isinstance(identity_latent_map(3), IdentityLatentMap)
    np.testing.assert_array_equal(decode_jacobian(identity_latent_map(3), jnp.zeros(3)).as_matrix(), np.eye(3))
