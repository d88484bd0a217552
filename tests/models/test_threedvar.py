"""3DVar: nonlinear observations, positive states, foreign parts, the reference costs of OOPS, precision."""

import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest
import scipy.optimize

from vardax.covariances.dense import DenseCovariance
from vardax.covariances.diagonal import DiagonalCovariance
from vardax.dynamics.lorenz96 import Lorenz96
from vardax.dynamics.rollout import rollout
from vardax.minimisers.transforms import Exp, Identity, Softplus
from vardax.models.threedvar import ThreeDVar
from vardax.obs_operators.callable import CallableObs
from vardax.obs_operators.identity import MaskedIdentity
from vardax.obs_operators.point import PointObs
from vardax.posterior.inverses import IterativeInverse
from vardax.types import Batch1D, Batch2D, Batch2DMultivar, Batch3D

pytestmark = pytest.mark.slow  # compiles many programs

X64 = jax.config.jax_enable_x64
TIGHT = {"rtol": 1e-5, "atol": 1e-5} if X64 else {"rtol": 5e-3, "atol": 5e-3}
B = np.array([[0.4, 0.2, 0.0], [0.2, 0.5, 0.1], [0.0, 0.1, 0.3]])
R = np.array([[0.2, 0.05, 0.0], [0.05, 0.3, 0.1], [0.0, 0.1, 0.2]])
MEAN = np.array([0.8, 1.5, 0.6])
Y = np.array([[1.2, 2.0, np.nan], [0.5, 1.0, 1.5]])


def oops_gaussian(n=40):
    """B = 0.36 exp(-d²/2), d the cyclic distance in cells."""
    distance = np.minimum(np.arange(n), n - np.arange(n))
    row = 0.36 * np.exp(-0.5 * distance**2)
    return np.stack([np.roll(row, shift) for shift in range(n)])


def six_digits(values):
    """Rounded as the observation files of OOPS are."""
    return np.array([float(f"{value:.6g}") for value in np.ravel(values)]).reshape(np.shape(values))


def oops_runs(steps=48):
    """(truth, background model): 8 everywhere but 9 at index 9, 7 at index 19; steps of 0.0125."""
    model = Lorenz96(dt=0.0125)
    starts = [jnp.full(40, 8.0).at[cell].set(value) for cell, value in ((9, 9.0), (19, 7.0))]
    return [
        np.asarray(rollout(model, start, steps, forward_adjoint=optx.RecursiveCheckpointAdjoint())) for start in starts
    ]


@pytest.mark.x64
def test_the_reference_costs_of_oops():
    """JCSDA/oops, l95/test, 3D-Var: J 114.53536836501502 at the background, 15.470586973556744 at the minimum.

    Each of the 40 cells is observed three times, with the truth at steps 15, 16 and 17.
    """
    truth, background = oops_runs()
    statistics = [(np.min, 6.5589469828665576), (np.max, 9.2781169031407753), (np.mean, 8.0114870375908573)]
    for statistic, expected in statistics:
        np.testing.assert_allclose(statistic(truth[16]), expected, rtol=1e-12)
    sigma = float(np.float32(0.4))
    model = ThreeDVar(
        PointObs(np.tile(np.arange(40), 3)),
        background[16],
        DenseCovariance(oops_gaussian()),
        DiagonalCovariance(np.full(120, sigma**2)),
        tol=1e-10,
    )
    analysis = model.analyse(Batch1D.from_observations(six_digits(truth[15:18].reshape(1, 120))))
    np.testing.assert_allclose(analysis.cost.first.total[0], 114.53536836501502, rtol=1e-9)
    np.testing.assert_allclose(analysis.cost.last.total[0], 15.470586973556744, rtol=1e-9)
    assert analysis.converged.all()


# -- nonlinear observations ------------------------------------------------------------------------------------------


def squares(x):
    return x**2 + jnp.roll(x, 1)


def numpy_minimum(observed_cost, B=B, mean=MEAN, to_state=lambda z: z, to_control=lambda x: x):
    """argmin ½‖z - z_b‖²_{B⁻¹} + observed_cost(T(z)), as a state, by scipy in the space of z."""
    z_b, inverse = to_control(mean), np.linalg.inv(B)
    cost = lambda z: 0.5 * (z - z_b) @ inverse @ (z - z_b) + observed_cost(to_state(z))  # noqa: E731
    found = scipy.optimize.minimize(cost, z_b, method="BFGS", options={"gtol": 1e-9})
    found = scipy.optimize.minimize(cost, found.x, method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-13})
    return to_state(found.x), found.fun


def observation_cost(y, H, R=R):
    seen = np.isfinite(y)
    inverse = np.linalg.inv(R[np.ix_(seen, seen)])

    def cost(x):
        misfit = (y - np.asarray(H(x)))[seen]
        return 0.5 * misfit @ inverse @ misfit

    return cost


@pytest.mark.parametrize("minimiser", [None, optx.GaussNewton(1e-8, 1e-8)], ids=["default", "GaussNewton"])
def test_a_nonlinear_minimum_is_that_of_scipy(minimiser):
    model = ThreeDVar(CallableObs(squares), MEAN, DenseCovariance(B), DenseCovariance(R), minimiser)
    analysis = model.analyse(Batch1D.from_observations(Y))
    for sample in range(2):
        state, cost = numpy_minimum(observation_cost(Y[sample], lambda x: x**2 + np.roll(x, 1)))
        np.testing.assert_allclose(analysis.state[sample], state, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(analysis.cost.last.total[sample], cost, rtol=1e-4)


# -- positive states -------------------------------------------------------------------------------------------------

TRANSFORMS = {
    "Exp": (Exp(), np.exp, np.log),
    "Softplus": (Softplus(), lambda z: np.logaddexp(0, z), lambda x: np.log(np.expm1(x))),
}
each_transform = pytest.mark.parametrize("transform", TRANSFORMS)
LOW = np.array([[-3.0, 0.1, np.nan], [-1.0, -2.0, 5.0]])


def positive(transform, **options):
    return ThreeDVar(
        MaskedIdentity(),
        MEAN,
        DenseCovariance(B),
        DenseCovariance(R),
        control_transform=TRANSFORMS[transform][0],
        **options,
    )


@each_transform
def test_a_positive_state_is_the_minimum_in_transformed_space(transform):
    """J = ½‖z - T⁻¹(x_b)‖²_{B⁻¹} + ½‖y - T(z)‖²_{R⁻¹}, x = T(z), by scipy; the data would make the state negative."""
    _, to_state, to_control = TRANSFORMS[transform]
    analysis = positive(transform).analyse(Batch1D.from_observations(LOW))
    assert (analysis.state > 0).all()
    for sample in range(2):
        cost = observation_cost(LOW[sample], lambda x: x)
        state, value = numpy_minimum(cost, to_state=to_state, to_control=to_control)
        np.testing.assert_allclose(analysis.state[sample], state, rtol=2e-3, atol=1e-3)
        np.testing.assert_allclose(analysis.cost.last.total[sample], value, rtol=1e-4)


@each_transform
def test_the_posterior_of_a_positive_state_is_positive(transform):
    posterior = positive(transform).posterior(Batch1D.from_observations(LOW))
    draws = posterior.sample(jax.random.key(0), 200)
    assert draws.shape == (2, 200, 3)
    assert (draws > 0).all()
    assert (posterior.mean > 0).all()


def test_each_leaf_of_a_state_has_its_own_transform():
    import lineax as lx

    prior = lx.DiagonalLinearOperator({"u": jnp.ones(2), "c": jnp.ones(2)})
    model = ThreeDVar(
        CallableObs(lambda x: jnp.concatenate([x["u"], x["c"]])),
        {"u": jnp.zeros(2), "c": jnp.ones(2)},
        prior,
        DiagonalCovariance(jnp.full(4, 0.1)),
        control_transform={"u": Identity(), "c": Exp()},
    )
    state = model(Batch1D.from_observations([[-3.0, -4.0, -5.0, -6.0]]))
    np.testing.assert_allclose(state["u"], [[-3 / 1.1, -4 / 1.1]], rtol=1e-3)
    assert (state["c"] > 0).all()


def test_a_background_outside_the_range_of_the_transform_is_refused():
    with pytest.raises(ValueError, match=r"background.*`control_transform`|`control_transform`.*background"):
        positive("Exp").with_(prior_mean=jnp.array([1.0, -1.0, 2.0]))(Batch1D.from_observations(LOW))


# -- shapes and numbers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("batch_type", "shape"), [(Batch1D, (5,)), (Batch2D, (3, 4)), (Batch2DMultivar, (2, 3, 4)), (Batch3D, (2, 3, 4))]
)
def test_a_field_of_any_shape_keeps_it(batch_type, shape):
    ones = DiagonalCovariance(jnp.ones(shape))
    model = ThreeDVar(MaskedIdentity(), jnp.zeros(shape), ones, ones)
    batch = batch_type.from_observations(jnp.full((2, 1, *shape), 2.0))
    np.testing.assert_allclose(model(batch), np.ones((2, *shape)), rtol=1e-4)
    assert model.posterior(batch).std().shape == (2, *shape)


FLOAT32_SOLVERS = {
    "default": None,
    "BFGS": optx.BFGS(1e-5, 1e-5),
    "LBFGS": optx.LBFGS(1e-5, 1e-5),
    "GaussNewton": optx.GaussNewton(1e-5, 1e-5),
    "LevenbergMarquardt": optx.LevenbergMarquardt(1e-5, 1e-5),
    "Dogleg": optx.Dogleg(1e-5, 1e-5),
    "NonlinearCG": optx.NonlinearCG(1e-5, 1e-5),
}


@pytest.mark.parametrize("minimiser", FLOAT32_SOLVERS)
def test_float32_stays_float32_with_every_solver(minimiser):
    """Also where 64-bit mode is on, in which some solvers of optimistix fail on float32 problems."""
    single = lambda a: jnp.asarray(a, jnp.float32)  # noqa: E731
    slots = (CallableObs(squares), single(MEAN), DenseCovariance(single(B)), DenseCovariance(single(R)))
    model, batch = ThreeDVar(*slots, FLOAT32_SOLVERS[minimiser]), Batch1D.from_observations(single(Y))
    analysis = model.analyse(batch)
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(analysis) if jnp.issubdtype(leaf.dtype, jnp.inexact)}
    assert dtypes == {jnp.dtype(jnp.float32)}
    state, cost = numpy_minimum(observation_cost(Y[1], lambda x: x**2 + np.roll(x, 1)))
    np.testing.assert_allclose(analysis.state[1], state, rtol=5e-3, atol=5e-3)
    np.testing.assert_allclose(analysis.cost.last.total[1], cost, rtol=1e-3)


@pytest.mark.x64
def test_mixed_precision_gives_the_wider_dtype():
    slots = (CallableObs(squares), jnp.asarray(MEAN), DenseCovariance(B, dtype=jnp.float32), DenseCovariance(R))
    state = ThreeDVar(*slots)(Batch1D.from_observations(jnp.asarray(Y, jnp.float32)))
    assert state.dtype == jnp.float64


@pytest.mark.x64
@pytest.mark.parametrize(
    "adjoint", [optx.ImplicitAdjoint(), optx.RecursiveCheckpointAdjoint()], ids=lambda a: type(a).__name__
)
def test_gradients_through_the_transform_are_the_limits_of_differences(adjoint):
    model = ThreeDVar(
        CallableObs(squares),
        MEAN,
        DenseCovariance(B),
        DenseCovariance(R),
        optx.GaussNewton(1e-12, 1e-12),
        adjoint,
        control_transform=Softplus(),
        tol=1e-11,
        max_steps=80,
    )

    @jax.jit
    def score(mean):
        state = model.analyse(Batch1D.from_observations(Y), background=mean).state
        return jnp.sum(jnp.sin(state) * jnp.arange(1.0, 4.0)[None])

    mean, step = jnp.asarray(MEAN), 1e-5
    gradient = jax.grad(score)(mean)
    difference = jnp.stack([(score(mean + step * e) - score(mean - step * e)) / (2 * step) for e in jnp.eye(3)])
    np.testing.assert_allclose(gradient, difference, rtol=1e-5, atol=1e-7)


def test_a_first_guess_is_a_starting_point_that_gradients_pass():
    """Unrolled gradients with respect to a first guess exist, also where B has equal variances."""
    model = ThreeDVar(
        CallableObs(squares),
        MEAN,
        DiagonalCovariance(np.full(3, 0.5)),
        DenseCovariance(R),
        minimiser_adjoint=optx.RecursiveCheckpointAdjoint(),
        max_steps=3,
    )
    batch = Batch1D.from_observations(Y)
    gradient = jax.grad(lambda x: jnp.sum(model.analyse(batch, first_guess=x).state))(jnp.asarray(MEAN) + 0.3)
    assert jnp.isfinite(gradient).all()


# -- large controls --------------------------------------------------------------------------------------------------


@pytest.mark.x64
def test_implicit_gradients_of_a_large_analysis_are_exact_where_most_of_the_cotangent_is_zero():
    """1100 controls are beyond the dense adjoint; the gradient of one entry is a cotangent of zeros and a one."""
    n = 1100
    prior, R = DiagonalCovariance(np.linspace(0.5, 2.0, n)), DiagonalCovariance(np.full(n // 2, 0.5))
    model = ThreeDVar(PointObs(np.arange(n // 2)), np.zeros(n), prior, R, tol=1e-9)
    gradient = jax.grad(lambda y: model(Batch1D.from_observations(y[None]))[0, 3])(jnp.ones(n // 2))
    expected = np.zeros(n // 2)
    expected[3] = prior.variance[3] / (prior.variance[3] + 0.5)
    np.testing.assert_allclose(gradient, expected, rtol=1e-6, atol=1e-12)


def test_posterior_products_of_a_large_analysis_are_exact_for_unit_vectors():
    n = 1100
    prior, R = DiagonalCovariance(np.linspace(0.5, 2.0, n)), DiagonalCovariance(np.full(n, 0.5))
    model = ThreeDVar(MaskedIdentity(), np.zeros(n), prior, R)
    posterior = model.posterior(Batch1D.from_observations(np.ones((1, n))))
    assert isinstance(posterior.cov.inverse, IterativeInverse)
    variance = np.asarray(prior.variance)
    product = posterior.cov.mv(jnp.zeros((1, n)).at[0, 7].set(1.0))
    expected = np.zeros(n)
    expected[7] = variance[7] * 0.5 / (variance[7] + 0.5)
    np.testing.assert_allclose(product[0], expected, rtol=1e-4, atol=1e-7)
