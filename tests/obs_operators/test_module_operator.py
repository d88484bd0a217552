"""ModuleLinearOperator: a linear module with every lineax hook."""

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

from vardax.obs_operators.module_operator import ModuleLinearOperator

MATRIX = np.random.default_rng(4).standard_normal((4, 4))


class Product(eqx.Module):
    matrix: jax.Array

    def __call__(self, state):
        return self.matrix @ jnp.concatenate([state["u"], state["v"]])


@pytest.fixture
def operator():
    structure = {
        "u": jax.ShapeDtypeStruct((3,), jnp.result_type(float)),
        "v": jax.ShapeDtypeStruct((1,), jnp.result_type(float)),
    }
    return ModuleLinearOperator(Product(jnp.asarray(MATRIX)), structure)


def test_matrix_and_its_transpose(operator):
    np.testing.assert_allclose(operator.as_matrix(), MATRIX, rtol=1e-5)
    np.testing.assert_allclose(operator.T.as_matrix(), MATRIX.T, rtol=1e-5)
    assert operator.T.T is operator


def test_is_accepted_by_lineax_algebra_and_hooks(operator):
    gram = operator @ operator.T
    np.testing.assert_allclose(gram.as_matrix(), MATRIX @ MATRIX.T, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(lx.diagonal(operator), np.diagonal(MATRIX), rtol=1e-5)
    np.testing.assert_allclose(lx.tridiagonal(operator)[0], np.diagonal(MATRIX), rtol=1e-5)
    assert lx.linearise(operator) is operator
    np.testing.assert_allclose(lx.conj(operator).as_matrix(), MATRIX, rtol=1e-5)
    for claim in (
        lx.is_symmetric,
        lx.is_diagonal,
        lx.is_tridiagonal,
        lx.has_unit_diagonal,
        lx.is_lower_triangular,
        lx.is_upper_triangular,
        lx.is_positive_semidefinite,
        lx.is_negative_semidefinite,
    ):
        assert claim(operator) is False


def test_solves_normal_equations(operator):
    gram = lx.TaggedLinearOperator(operator @ operator.T, lx.positive_semidefinite_tag)
    y = jnp.arange(4.0)
    solution = lx.linear_solve(gram, y, lx.CG(rtol=1e-6, atol=1e-6), throw=False).value
    np.testing.assert_allclose(MATRIX @ MATRIX.T @ np.asarray(solution), y, atol=1e-3)


def test_parameters_stay_differentiable(operator):
    state = {"u": jnp.ones(3), "v": jnp.ones(1)}
    gradient = eqx.filter_grad(lambda op: jnp.sum(op.T.mv(op.mv(state))["u"]))(operator)
    assert gradient.fn.matrix.shape == (4, 4)
    assert np.all(np.isfinite(gradient.fn.matrix))
