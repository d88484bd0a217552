"""What a `forward_adjoint` slot asks for: recognised by name, and refused by name where it cannot work."""

import diffrax
import jax.numpy as jnp
import optimistix
import pytest

from vardax.covariances.diagonal import DiagonalCovariance
from vardax.dynamics import DiffraxForward, DiscreteForward, Lorenz96, rollout
from vardax.dynamics.adjoint_memory import Rematerialise, StoreLinearisation, check_tangents, forward_memory
from vardax.dynamics.backsolve import Backwards
from vardax.models.strong_fourdvar import StrongFourDVar
from vardax.obs_operators.identity import MaskedIdentity

DISCRETE = DiscreteForward(lambda x, dt: x - dt * x, 0.1)


class DirectAdjoint:
    """A specification of another package, known by its name only."""


class BacksolveAdjoint:
    """Likewise, without options."""


class KStepAdjoint:
    k = 2


def test_adjoint_specs_are_recognised_by_name():
    assert forward_memory(DirectAdjoint()) == StoreLinearisation()
    assert forward_memory(diffrax.ForwardMode()) == StoreLinearisation()
    assert forward_memory(optimistix.RecursiveCheckpointAdjoint(5)) == Rematerialise(5)
    assert forward_memory(diffrax.RecursiveCheckpointAdjoint()) == Rematerialise(None)
    assert forward_memory(BacksolveAdjoint(), Lorenz96()) == Backwards()
    solver = diffrax.Dopri5()
    assert forward_memory(diffrax.BacksolveAdjoint(solver=solver), Lorenz96()).solver is solver


@pytest.mark.parametrize(
    ("spec", "error", "words"),
    [
        (
            diffrax.BacksolveAdjoint(),
            ValueError,
            "BacksolveAdjoint, .*integrates a vector field .* a discrete step has none.*DiscreteForward offers no",
        ),
        (optimistix.ImplicitAdjoint(), ValueError, "ImplicitAdjoint, .* not a trajectory"),
        (KStepAdjoint(), ValueError, "KStepAdjoint, .* use it as `minimiser_adjoint`"),
        (None, ValueError, "Unrecognised adjoint spec 'NoneType'.*RecursiveCheckpointAdjoint"),
        (diffrax.DirectAdjoint, TypeError, r"the class DirectAdjoint, expected an instance: DirectAdjoint\(\)"),
        (diffrax.RecursiveCheckpointAdjoint(0), ValueError, "`checkpoints` is 0, expected at least 1"),
    ],
)
def test_other_adjoint_specs_are_refused_by_name_with_the_reason(spec, error, words):
    with pytest.raises(error, match=words):
        rollout(DISCRETE, jnp.ones(3), 3, forward_adjoint=spec)


def test_options_that_a_rollout_decides_itself_are_refused():
    with pytest.raises(ValueError, match="BacksolveAdjoint with `dt0`, which a rollout decides itself; expected only"):
        rollout(Lorenz96(), jnp.ones(40), 3, forward_adjoint=diffrax.BacksolveAdjoint(dt0=0.1))


def strong(**options):
    unit = DiagonalCovariance(jnp.ones(4))
    return StrongFourDVar(Lorenz96(4), MaskedIdentity(), jnp.ones(4), unit, unit, **options)


@pytest.mark.parametrize("solver", [optimistix.GaussNewton(1e-6, 1e-6), optimistix.LevenbergMarquardt(1e-6, 1e-6)])
def test_a_least_squares_solver_with_a_continuous_adjoint_is_refused_at_construction(solver):
    name = type(solver).__name__
    with pytest.raises(ValueError, match=f"BacksolveAdjoint, which has no tangent-linear model: {name} needs one"):
        strong(minimiser=solver, forward_adjoint=diffrax.BacksolveAdjoint())
    strong(minimiser=solver)
    strong(forward_adjoint=diffrax.BacksolveAdjoint())


def test_tangents_of_a_model_made_for_jvp_only_are_refused():
    options = {"stepsize_controller": diffrax.PIDController(1e-6, 1e-6), "adjoint": diffrax.ForwardMode()}
    model = DiffraxForward(lambda t, x, args: -x, 0.1, **options)
    with pytest.raises(ValueError, match=r"adjoint=ForwardMode\(\), which has no adjoint: a product needs one"):
        check_tangents(model, diffrax.DirectAdjoint(), "a product")
    check_tangents(DiffraxForward(lambda t, x, args: -x, 0.1), diffrax.DirectAdjoint(), "a product")
