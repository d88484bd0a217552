"""Every exported method equals the dense formula on a linear-Gaussian problem.

The problem has correlated B, R and Q, a rectangular H, a linear model that is neither orthogonal nor symmetric, gaps,
several samples and several times. A method joins by being exported from `vardax.models`: its constructor slots say
which problem it gets (a window where there is a `forward`, a model error where there is a `model_err_cov_op`).
"""

import dataclasses
import inspect

import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest

import vardax.covariances
import vardax.models
from vardax.covariances import (
    BalancedCovariance,
    BlockDiagonalCovariance,
    DenseCovariance,
    DiagonalCovariance,
    HybridCovariance,
    KroneckerCovariance,
    LocalizedEnsembleCovariance,
    LowRankCovariance,
    MaternLinearOperator,
    ScaledCovariance,
)
from vardax.dynamics import DiscreteForward
from vardax.grad_mod import IdentityGradMod
from vardax.latent import LatentPrior
from vardax.minimisers import GaussNewtonKrylov
from vardax.models import AbstractAnalysisMethod, FourDVarNet, IncrementalConfig, SolverConfig
from vardax.obs_operators import LinearObs
from vardax.primitives import identity_latent_map
from vardax.priors import GaussianPrior
from vardax.types import Batch1D

N_STATE, N_OBS, N_SAMPLES = 7, 4, 3
EXPORTED = [getattr(vardax.models, name) for name in vardax.models.__all__]
METHODS = [
    cls
    for cls in EXPORTED
    if isinstance(cls, type) and issubclass(cls, AbstractAnalysisMethod) and cls is not AbstractAnalysisMethod
    and FourDVarNet not in cls.__bases__  # FourDVarNet1D ... only set defaults
]  # fmt: skip
NEEDS_B_INVERSE = [FourDVarNet]  # the gradient of its `GaussianPrior` is B⁻¹ (x - x_b), in state space
SLOT_RECIPES = {
    "forward",
    "obs_op",
    "prior_mean",
    "prior_cov_op",
    "obs_cov_op",
    "model_err_cov_op",
    "latent_map",
    "prior",
    "grad_mod",
    "config",
}

QUASI_NEWTON = {"default": lambda tol: None, "BFGS": lambda tol: optx.BFGS(tol, tol)}
LEAST_SQUARES = {
    "GaussNewton": lambda tol: optx.GaussNewton(tol, tol),
    "LevenbergMarquardt": lambda tol: optx.LevenbergMarquardt(tol, tol),
    "Dogleg": lambda tol: optx.Dogleg(tol, tol),
}
OUTER_LOOPS = {"GaussNewtonKrylov": lambda tol: GaussNewtonKrylov(IncrementalConfig(), tol)}
MINIMISERS = QUASI_NEWTON | LEAST_SQUARES | OUTER_LOOPS


@dataclasses.dataclass(frozen=True)
class Problem:
    """Everything in numpy float64, with T + 1 entries."""

    M: np.ndarray
    H: np.ndarray
    B: np.ndarray
    R: np.ndarray
    Q: np.ndarray
    background: np.ndarray
    y: np.ndarray

    def dense_analysis(self, sample: int, with_model_error: bool) -> np.ndarray:
        """x_0* (then eta_1*, ..., eta_T*) by the textbook formula on the stacked window, observed rows only."""
        n, entries = N_STATE, self.y.shape[1]
        blocks = [self.B] + [self.Q] * (entries - 1 if with_model_error else 0)
        prior = np.zeros((n * len(blocks), n * len(blocks)))
        for k, block in enumerate(blocks):
            prior[k * n : (k + 1) * n, k * n : (k + 1) * n] = block
        rows = []
        for t in range(entries):
            row = np.zeros((n, prior.shape[0]))
            for k in range(len(blocks)):
                if k <= t:
                    row[:, k * n : (k + 1) * n] = np.linalg.matrix_power(self.M, t - k)
            rows.append(self.H @ row)
        G, R = np.concatenate(rows), np.kron(np.eye(entries), self.R)
        mean = np.concatenate([self.background[sample], np.zeros(prior.shape[0] - n)])
        y = self.y[sample].ravel()
        seen = np.isfinite(y)
        G, R, y = G[seen], R[np.ix_(seen, seen)], y[seen]
        return mean + prior @ G.T @ np.linalg.solve(G @ prior @ G.T + R, y - G @ mean)


def random_covariance(rng: np.random.Generator, n: int) -> np.ndarray:
    factor = rng.normal(size=(n, n))
    return factor @ factor.T / n + 0.3 * np.eye(n)


def make_problem(entries: int, seed: int = 0) -> Problem:
    rng = np.random.default_rng(seed)
    y = rng.normal(size=(N_SAMPLES, entries, N_OBS))
    y[rng.random(y.shape) < 0.3] = np.nan
    y[1, 0] = np.nan  # a sample whose first entry is missing altogether
    return Problem(
        M=0.9 * np.eye(N_STATE) + 0.2 * rng.normal(size=(N_STATE, N_STATE)),
        H=rng.normal(size=(N_OBS, N_STATE)),
        B=random_covariance(rng, N_STATE),
        R=random_covariance(rng, N_OBS),
        Q=0.1 * random_covariance(rng, N_STATE),
        background=rng.normal(size=(N_SAMPLES, N_STATE)),
        y=y,
    )


def steepest(problem: Problem) -> float:
    """The largest eigenvalue of the Hessian of the cost at one time, where nothing is missing: descent converges with
    steps below 2 over it, and gaps only make the Hessian smaller."""
    H = problem.H
    return float(np.linalg.eigvalsh(np.linalg.inv(problem.B) + H.T @ np.linalg.solve(problem.R, H))[-1])


def build(method: type, problem: Problem, dtype: str, minimiser, **options):
    """The method with its slots filled from the problem; unknown required slots fail here and ask for a recipe."""
    array = lambda a: jnp.asarray(a, dtype=dtype)  # noqa: E731
    M, identity, parameters = array(problem.M), identity_latent_map(N_STATE), inspect.signature(method).parameters
    mean, B = array(problem.background[0]), DenseCovariance(array(problem.B))
    recipes = {
        "forward": lambda: DiscreteForward(lambda x: M @ x, 1.0),
        "obs_op": lambda: LinearObs(array(problem.H)),
        "prior_mean": lambda: mean,
        "prior_cov_op": lambda: B,
        "obs_cov_op": lambda: DenseCovariance(array(problem.R)),
        "model_err_cov_op": lambda: DenseCovariance(array(problem.Q)),
        "latent_map": lambda: identity,
        "prior": lambda: LatentPrior(identity, mean, B) if "latent_map" in parameters else GaussianPrior(mean, B),
        "grad_mod": lambda: IdentityGradMod(1.8 / steepest(problem)),
        # The tolerance of the last step: the minimum is as many such steps away as the problem is ill-conditioned.
        "config": lambda: SolverConfig(options["max_steps"], tol=0.01 * options["tol"]),
    }
    required = [name for name, p in parameters.items() if p.default is p.empty and name != "minimiser"]
    required += ["obs_cov_op", "config"] if "grad_mod" in parameters else []
    assert set(required) <= SLOT_RECIPES, f"{method.__name__} needs a recipe for {set(required) - SLOT_RECIPES}"
    slots = {name: recipes[name]() for name in required}
    if "minimiser" in parameters:
        slots["minimiser"] = minimiser
    return method(**slots, **{name: value for name, value in options.items() if name in parameters})


def cases(windows="every minimiser"):
    """Every method with every minimiser; of the windows, those that are not the default in the slow step.

    A latent method hands its problem to the minimisers as its sibling does: it is tried with the default one.
    """
    for method in METHODS:
        parameters = inspect.signature(method).parameters
        few = "latent_map" in parameters or "forward" in parameters and windows == "default"
        for name in (["default"] if few else MINIMISERS) if "minimiser" in parameters else [None]:
            marks = [pytest.mark.slow] if "forward" in parameters and name not in (None, "default") else []
            yield pytest.param(method, name, id=f"{method.__name__}-{name}" if name else method.__name__, marks=marks)


def errors(method: type, minimiser_name: str | None, dtype: str, tol: float) -> float:
    """The largest difference to the dense formula over samples, entries of the state and, for windows, lengths.

    A window of one entry is tried in double precision, with the default minimiser.
    """
    minimiser = MINIMISERS[minimiser_name](tol) if minimiser_name else None
    short = dtype == "float64" and minimiser_name in (None, "default")
    worst = 0.0
    for entries in ((1, 4) if short else (4,)) if "forward" in inspect.signature(method).parameters else (1,):
        problem = make_problem(entries)
        model = build(method, problem, dtype, minimiser, tol=tol, max_steps=2000)
        batch = Batch1D.from_observations(jnp.asarray(problem.y, dtype=dtype))
        analysis = model.analyse(batch, background=jnp.asarray(problem.background, dtype=dtype))
        with_error = "model_err_cov_op" in inspect.signature(method).parameters
        for sample in range(N_SAMPLES):
            expected = problem.dense_analysis(sample, with_error)
            parts = analysis.state if isinstance(analysis.state, tuple) else (analysis.state,)
            found = np.concatenate([np.asarray(part[sample], dtype=float).ravel() for part in parts])
            worst = max(worst, float(np.max(np.abs(found - expected))))
    return worst


@pytest.mark.x64
@pytest.mark.parametrize(("method", "minimiser"), list(cases()))
def test_every_method_equals_the_dense_formula_in_float64(method, minimiser):
    assert errors(method, minimiser, "float64", 1e-11) < 1e-8


@pytest.mark.parametrize(("method", "minimiser"), list(cases(windows="default")))
def test_every_method_equals_the_dense_formula_in_float32(method, minimiser):
    limit = 1e-3 if minimiser in QUASI_NEWTON else 1e-4
    assert errors(method, minimiser, "float32", 1e-5) < limit


def structured_covariances():
    """(B, R) of the sizes of the problem, from all kinds of covariances inside one another."""
    rng = np.random.default_rng(3)
    pair = KroneckerCovariance(DiagonalCovariance([1.5]), MaternLinearOperator(3, 0.8))
    apart = BlockDiagonalCovariance(DenseCovariance(random_covariance(rng, 4)[None, :, None, :]), pair, joined_along=1)
    to_vector = lambda x: x[0] + 0.4 * jnp.roll(x[0], 2)  # noqa: E731
    static = HybridCovariance(
        BalancedCovariance(to_vector, apart), LowRankCovariance(rng.normal(size=(N_STATE, 2))), (0.6, 0.4)
    )
    members = LocalizedEnsembleCovariance(
        rng.normal(size=(3, N_STATE)), MaternLinearOperator(N_STATE, 1.0, boundary="free")
    )
    R = BlockDiagonalCovariance(
        ScaledCovariance([0.5, 1.0, 2.0], MaternLinearOperator(3, 0.6)), DiagonalCovariance([0.7]), joined_along=0
    )
    return HybridCovariance(static, members, (0.5, 0.5)), R


# A latent method hands its problem to the minimisers as its sibling does.
WITH_STRUCTURE = [
    m for m in METHODS if m not in NEEDS_B_INVERSE and "latent_map" not in inspect.signature(m).parameters
]


@pytest.mark.x64
@pytest.mark.slow
@pytest.mark.parametrize("method", WITH_STRUCTURE, ids=lambda method: method.__name__)
def test_every_method_takes_structured_covariances_and_applies_no_inverse(method, monkeypatch):
    """Nor does the posterior of a single time; that of a window is made of the same products."""
    B, R = structured_covariances()
    entries = 3 if "forward" in inspect.signature(method).parameters else 1
    problem = dataclasses.replace(make_problem(entries), B=np.asarray(B.as_matrix()), R=np.asarray(R.as_matrix()))

    def refuse(*_):
        raise AssertionError("an analysis asked for an inverse or a determinant")

    for cls in (
        getattr(vardax.covariances, name) for name in vardax.covariances.__all__ if name.endswith("Covariance")
    ):
        if not inspect.isabstract(cls):
            monkeypatch.setattr(cls, "inv_mv", refuse)
            monkeypatch.setattr(cls, "logdet", refuse)
    model = build(method, problem, "float64", None, tol=1e-11, max_steps=2000).with_(prior_cov_op=B, obs_cov_op=R)
    batch = Batch1D.from_observations(jnp.asarray(problem.y))
    analysis = model.analyse(batch, background=jnp.asarray(problem.background))
    parts = analysis.state if isinstance(analysis.state, tuple) else (analysis.state,)
    for sample in range(N_SAMPLES):
        found = np.concatenate([np.asarray(part[sample]).ravel() for part in parts])
        expected = problem.dense_analysis(sample, "model_err_cov_op" in inspect.signature(method).parameters)
        np.testing.assert_allclose(found, expected, atol=1e-8)
    if entries == 1:
        assert np.all(np.isfinite(model.posterior(batch).std()))


@pytest.mark.x64
def test_the_problem_is_a_hard_one():
    """Nothing here is the identity, diagonal or square, and there are gaps in a correlated R."""
    problem = make_problem(4)
    off_diagonal = lambda A: np.max(np.abs(A - np.diag(np.diag(A))))  # noqa: E731
    assert min(off_diagonal(problem.B), off_diagonal(problem.R), off_diagonal(problem.Q)) > 0.05
    assert problem.H.shape[0] != problem.H.shape[1]
    assert 0.2 < np.mean(np.isnan(problem.y)) < 0.6
