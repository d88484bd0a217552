"""Objects of neighbouring packages work here, and ours there: protocols on every public method and operator (D8).

The stand-ins below have exactly the members of the neighbours' protocols and inherit from nothing of vardax.
"""

import pathlib
import runpy

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

import vardax
import vardax.models
from vardax.covariances.dense import DenseCovariance
from vardax.covariances.diagonal import DiagonalCovariance
from vardax.cycle.filter import DACycle
from vardax.cycle.state import DAState
from vardax.dynamics.discrete import DiscreteForward
from vardax.grad_mod import IdentityGradMod
from vardax.latent import LatentPrior
from vardax.models import (
    AbstractAnalysisMethod,
    FourDVarNet,
    OptimalInterpolation,
    SolverConfig,
    StrongFourDVar,
    ThreeDVar,
)
from vardax.obs_operators import CallableObs, LinearObs
from vardax.primitives import identity_latent_map
from vardax.priors import GaussianPrior
from vardax.protocols import AnalysisStep, ForwardModel, ObservationOperator, PosteriorAdapter
from vardax.types import Batch1D

N, M = 4, 3
RANDOM = np.random.default_rng(13)
H = RANDOM.normal(size=(M, N))
Y = RANDOM.normal(size=(2, 1, M))
TIGHT = {"rtol": 1e-6, "atol": 1e-6} if jax.config.jax_enable_x64 else {"rtol": 5e-3, "atol": 5e-3}

DTYPE = jnp.result_type(float).name
LEARNED = SolverConfig(2000, tol=1e-9 if jax.config.jax_enable_x64 else 1e-6)


def examples(contract):
    """The recipes of every exported class, which the contract tests keep complete."""
    table = runpy.run_path(str(pathlib.Path(__file__).parent / "contracts" / contract))["RECIPES"]
    return [pytest.param(make, id=f"{cls}-{name}") for cls, kinds in table.items() for name, make in kinds.items()]


METHODS = [
    cls
    for cls in (getattr(vardax.models, name) for name in vardax.models.__all__)
    if isinstance(cls, type) and issubclass(cls, AbstractAnalysisMethod) and cls is not AbstractAnalysisMethod
    and FourDVarNet not in cls.__bases__  # FourDVarNet1D ... only set defaults
]  # fmt: skip


FIRST = (OptimalInterpolation, StrongFourDVar)
EVERY = [pytest.param(m, id=m.__name__, marks=() if m in FIRST else pytest.mark.slow) for m in METHODS]


def build(method, obs_op=None, **options):
    mean, B, same = jnp.zeros(N), DenseCovariance(0.5 * np.eye(N) + 0.2), identity_latent_map(N)
    slots = {
        "obs_op": LinearObs(H) if obs_op is None else obs_op,
        "obs_cov_op": DiagonalCovariance(np.full(M, 0.3)),
        "forward": DiscreteForward(lambda x: 0.9 * x, 1.0),
        "model_err_cov_op": DiagonalCovariance(np.full(N, 0.1)),
    }
    if "latent_map" in method.__dataclass_fields__:
        slots |= {"latent_map": same, "prior": LatentPrior(same, mean, B)}
    elif "grad_mod" in method.__dataclass_fields__:
        slots |= {"prior": GaussianPrior(mean, B), "grad_mod": IdentityGradMod(0.03), "config": LEARNED}
    else:
        slots |= {"prior_mean": mean, "prior_cov_op": B}
    return method(**{name: slot for name, slot in slots.items() if name in method.__dataclass_fields__}, **options)


# -- ours are theirs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", examples("test_obs_operators.py"))
def test_every_public_operator_is_an_observation_operator(recipe):
    operator, state = recipe(DTYPE)
    assert isinstance(operator, ObservationOperator)
    assert jax.eval_shape(lambda x: operator.linearize(x).mv(x), state) == jax.eval_shape(operator, state)


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.__name__)
def test_the_analysis_step_of_every_public_method_is_one(method):
    assert isinstance(build(method).as_analysis_step(), AnalysisStep)


@pytest.mark.parametrize("recipe", examples("test_dynamics.py"))
def test_every_public_model_is_a_forward_model(recipe):
    model, state = recipe(DTYPE)
    assert isinstance(model, ForwardModel)
    assert jax.eval_shape(lambda x: model.step(x, model.dt), state) == jax.eval_shape(lambda: state)


def test_the_posterior_adapters_are_adapters():
    assert isinstance(vardax.LaplaceCovariance(), PosteriorAdapter)


@pytest.mark.parametrize("name", ["ForwardModel", "ObservationOperator", "AnalysisStep", "LatentMap"])
def test_the_protocols_are_shown_by_the_package(name):
    assert getattr(vardax, name) is getattr(vardax.protocols, name)


# -- theirs work here ------------------------------------------------------------------------------------------------


def assert_alike(found, expected):
    """Equal states; a weak analysis is a pair of them."""
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **TIGHT), found, expected)


class ForeignModel:
    """A forward model that is no module: `step`, `dt`, `state_signature`."""

    def __init__(self, state_signature=None):
        self.dt, self.state_signature = 0.5, state_signature

    def step(self, state, dt):
        return state * (1 - 0.2 * dt)


class ForeignOperator:
    """Observes H x; `linearize` gives a matrix, a function, or a lineax operator."""

    def __init__(self, kind):
        self.kind = kind

    def __call__(self, state):
        return jnp.asarray(H) @ state

    def linearize(self, state):
        matrix = jnp.asarray(H)
        return {
            "matrix": matrix,
            "numpy": H,
            "function": lambda v: matrix @ v,
            "lineax": lx.MatrixLinearOperator(matrix),
        }[self.kind]


class WithoutLinearize:
    """A callable and nothing else."""

    def __call__(self, state):
        return jnp.asarray(H) @ state


class ForeignStep:
    """Moves halfway to the observations."""

    def __call__(self, forecast, obs, *, obs_op, obs_err_cov):
        return forecast + 0.5 * jnp.asarray(H).T @ (obs - obs_op(forecast)) / 10


FOREIGN_OPERATORS = [*(ForeignOperator(kind) for kind in ("matrix", "numpy", "function", "lineax")), WithoutLinearize()]
# Every one of them with optimal interpolation, which linearises, and every method with one of them: each pair compiles.
BOTH_KINDS = (FOREIGN_OPERATORS[0], FOREIGN_OPERATORS[-1])
PAIRS = [
    *((OptimalInterpolation, o) for o in FOREIGN_OPERATORS),
    *((StrongFourDVar, o) for o in BOTH_KINDS),
    *((m, FOREIGN_OPERATORS[0]) for m in METHODS if m not in FIRST),
]


@pytest.mark.parametrize(
    ("method", "operator"),
    [
        pytest.param(
            m, o, id=f"{m.__name__}-{getattr(o, 'kind', 'none')}", marks=() if m in FIRST else pytest.mark.slow
        )
        for m, o in PAIRS
    ],
)
def test_a_foreign_operator_works_in_every_method(method, operator):
    batch = Batch1D.from_observations(Y)
    model = build(method, operator)
    assert_alike(model(batch), build(method)(batch))
    if method in FIRST:
        assert_alike(model.posterior(batch).std(), build(method).posterior(batch).std())
    assert isinstance(operator, ObservationOperator) == hasattr(operator, "linearize")


@pytest.mark.parametrize("method", EVERY)
def test_a_foreign_operator_is_an_override_too(method):
    batch = Batch1D.from_observations(Y)
    analysis = build(method, CallableObs(lambda x: jnp.asarray(H) @ x * 2)).analyse(
        batch, obs_op=ForeignOperator("matrix")
    )
    assert_alike(analysis.state, build(method)(batch))


@pytest.mark.parametrize("signature", [None, jax.ShapeDtypeStruct((N,), jnp.float32), "anything"])
def test_a_foreign_model_works_in_a_window(signature):
    model = ForeignModel(signature)
    assert isinstance(model, ForwardModel)
    y = RANDOM.normal(size=(1, 3, M))
    ours = build(StrongFourDVar).with_(forward=DiscreteForward(lambda x: 0.9 * x, 0.5))
    np.testing.assert_allclose(
        ours.with_(forward=model)(Batch1D.from_observations(y)), ours(Batch1D.from_observations(y)), **TIGHT
    )


def test_a_foreign_model_and_a_foreign_step_work_in_a_cycle():
    step = ForeignStep()
    assert isinstance(step, AnalysisStep)
    cycle = DACycle(ForeignModel(), ForeignOperator("matrix"), step, obs_source=lambda i: jnp.asarray(Y[i, 0]))
    state, da_state = cycle(jnp.ones(N), DAState(obs_err_cov=DiagonalCovariance(np.full(M, 0.3))))
    forecast = 0.9 * np.ones(N)
    np.testing.assert_allclose(state, forecast + 0.05 * H.T @ (Y[0, 0] - H @ forecast), rtol=1e-5)
    assert da_state.cycle_count == 1


@pytest.mark.parametrize("method", [OptimalInterpolation, ThreeDVar], ids=lambda m: m.__name__)
def test_our_step_works_with_foreign_parts(method):
    """A cycle of another package calls the step with its own operator and error covariance."""
    step, forecast = build(method).as_analysis_step(), jnp.asarray(RANDOM.normal(size=N))
    result = step(
        forecast,
        jnp.asarray(Y[0, 0]),
        obs_op=ForeignOperator("function"),
        obs_err_cov=lx.MatrixLinearOperator(0.3 * jnp.eye(M), lx.positive_semidefinite_tag),
    )
    expected = build(method).analyse(Batch1D.from_observations(Y[:1]), background=forecast).state[0]
    np.testing.assert_allclose(result, expected, **TIGHT)
    assert result.shape == forecast.shape


class ForeignCovariance(lx.AbstractLinearOperator):
    """A lineax operator of another package: products, a matrix, and the one hook without which lineax makes none."""

    matrix: jax.Array

    def mv(self, vector):
        return self.matrix @ vector

    def as_matrix(self):
        return self.matrix

    def transpose(self):
        return self

    def in_structure(self):
        return jax.ShapeDtypeStruct((self.matrix.shape[0],), self.matrix.dtype)

    def out_structure(self):
        return self.in_structure()


lx.is_symmetric.register(ForeignCovariance)(lambda operator: True)


@pytest.mark.parametrize("method", EVERY)
def test_foreign_covariances_work_in_every_method(method):
    batch, ours = Batch1D.from_observations(Y), build(method)
    prior, errors = (ForeignCovariance(jnp.asarray(a)) for a in (0.5 * np.eye(N) + 0.2, 0.3 * np.eye(M)))
    model = ours.with_(prior_cov_op=prior, obs_cov_op=errors)
    assert_alike(model(batch), ours(batch))
    if method in FIRST:
        assert_alike(model.posterior(batch).std(), ours.posterior(batch).std())


def test_a_foreign_model_may_be_a_module_with_parameters():
    class Decay(eqx.Module):
        rate: jax.Array
        dt: float = 0.5
        state_signature: None = None

        def step(self, state, dt):
            return state * (1 - self.rate * dt)

    model = build(StrongFourDVar).with_(forward=Decay(jnp.asarray(0.2)))
    batch = Batch1D.from_observations(RANDOM.normal(size=(1, 3, M)))
    slope = jax.grad(lambda rate: jnp.sum(model.with_(forward=Decay(rate))(batch)))(jnp.asarray(0.2))
    assert jnp.isfinite(slope)
    assert slope != 0
