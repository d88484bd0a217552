r"""What each observation did to a quantity of the analysis: adjoint sensitivity and observation impact.

A scalar e(x_a), an error of a forecast from the analysis or the load of a dyke, depends on the observations through the
analysis. At the minimum ∇_χ J(χ; y) = 0, so by the implicit function theorem

    de/dy = Kᵀ de/dx_a = - (∂²J/∂χ∂y)ᵀ z,      (∇²J) z = (dx_a/dχ)ᵀ de/dx_a

one linear solve in control space, whatever the number of observations. ∇²J is the full Hessian, so the derivative is
that of the analysis itself, also of nonlinear problems, where the minimisation has converged.

The impact of an observation is its innovation d times the mean of the sensitivities at background and analysis,

    e(x_a) - e(x_b) ≈ dᵀ Kᵀ ½ (de/dx|_{x_b} + de/dx|_{x_a})

exact where the problem is linear and e quadratic. Impacts add up, so instruments can be compared: negative means that
an instrument made e smaller. This is FSOI, the forecast sensitivity to observations impact of Langland, R. and Baker,
N. (2004), Tellus A 56, 189-201.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array, Float, PyTree

from vardax.diagnostics.influence import by_instrument
from vardax.minimisers.conjugate_gradients import RelativeCG
from vardax.minimisers.problem import BatchedProblem, ControlSpaceProblem, tree_norm
from vardax.types import Analysis

__all__ = ["ObservationImpact", "ObservationSensitivity", "observation_impact", "observation_sensitivity"]

MAX_STEPS = 1000
"""Conjugate-gradient steps of the one solve."""


class ObservationSensitivity(eqx.Module):
    """de/dy of each sample, (B, E, *obs), zero where nothing was observed; `value` is e(x_a).

    `residual` is ‖b - A z‖ / ‖b‖ of the solve: not small where the analysis is no minimum, and then nothing holds.
    """

    per_observation: Float[Array, "..."]
    value: Float[Array, "..."]
    residual: Float[Array, "..."]


class ObservationImpact(eqx.Module):
    """What each observation (B, E, *obs), and each instrument (B, I), contributed to e(x_a) - e(x_b).

    `total` is the sum of the impacts, `change` is e(x_a) - e(x_b) itself: how far apart they are says how well the
    quadratic form holds. `residual` is that of the solve.
    """

    per_observation: Float[Array, "..."]
    by_instrument: Float[Array, "... instruments"]
    total: Float[Array, "..."]
    change: Float[Array, "..."]
    residual: Float[Array, "..."]


def observation_sensitivity(
    problem: BatchedProblem | ControlSpaceProblem, analysis: Analysis, scalar: Callable[..., Array], *arrays: PyTree
) -> ObservationSensitivity:
    """The derivative of `scalar(state, *arrays)` at the analysis with respect to every observation.

    `problem` is `method.problem(batch)`, `scalar` takes the analysed state of one sample (the tuple of all that is
    estimated, where that is more than a state); `arrays` have a sample axis, for verifying states and the like. The
    same function with other arrays does not compile again.
    """
    return _sensitivity(problem, analysis.control, scalar, arrays)


def observation_impact(
    problem: BatchedProblem | ControlSpaceProblem, analysis: Analysis, scalar: Callable[..., Array], *arrays: PyTree
) -> ObservationImpact:
    """How much of e(x_a) - e(x_b) each observation made, e = `scalar(state, *arrays)`; see `observation_sensitivity`.

    `scalar` may run a forecast: lambda x, truth: jnp.sum((rollout(model, x, 10)[-1] - truth) ** 2).
    """
    return _impact(problem, analysis.control, scalar, arrays)


@eqx.filter_jit
def _sensitivity(
    problem: BatchedProblem | ControlSpaceProblem, control: PyTree[Array], scalar: Callable, arrays: tuple
) -> ObservationSensitivity:
    def one(sample: ControlSpaceProblem, chi: PyTree[Array], rest: tuple) -> ObservationSensitivity:
        value, gradient = jax.value_and_grad(_of_control(sample, scalar, rest))(chi)
        return ObservationSensitivity(*_carried_to_observations(sample, chi, gradient, value))

    return problem.map_samples(one, control, arrays)


@eqx.filter_jit
def _impact(
    problem: BatchedProblem | ControlSpaceProblem, control: PyTree[Array], scalar: Callable, arrays: tuple
) -> ObservationImpact:
    def one(sample: ControlSpaceProblem, chi: PyTree[Array], rest: tuple) -> ObservationImpact:
        error = jax.value_and_grad(_of_control(sample, scalar, rest))
        background = sample.zero_control()
        (before, slope_before), (after, slope_after) = error(background), error(chi)
        mean = jax.tree.map(lambda a, b: 0.5 * (a + b), slope_before, slope_after)
        weights, change, residual = _carried_to_observations(sample, chi, mean, after - before)
        each = weights * sample.observed.innovation(sample.predicted(background))
        return ObservationImpact(each, by_instrument(sample.observed, each), jnp.sum(each), change, residual)

    return problem.map_samples(one, control, arrays)


def _of_control(problem: ControlSpaceProblem, scalar: Callable, arrays: tuple) -> Callable[[PyTree[Array]], Array]:
    """e as a function of the control."""

    def error(control: PyTree[Array]) -> Array:
        value = jnp.asarray(scalar(problem.control_to_state(control), *arrays))
        if value.shape != ():
            raise ValueError(
                f"`scalar` gives an array of shape {value.shape}, expected one number for the state of one sample."
            )
        return value

    return error


def _carried_to_observations(
    problem: ControlSpaceProblem, control: PyTree[Array], gradient: PyTree[Array], value: Array
) -> tuple[Array, Array, Array]:
    """(- (∂²J/∂χ∂y)ᵀ (∇²J)⁻¹ gradient, `value`, the relative residual of the solve)."""
    _, hessian = jax.linearize(problem.gradient, control)
    operator = lx.FunctionLinearOperator(hessian, jax.eval_shape(lambda: gradient), lx.positive_semidefinite_tag)
    tolerance = float(np.finfo(jax.tree.leaves(gradient)[0].dtype).eps) ** 0.75
    z = lx.linear_solve(operator, gradient, RelativeCG(tolerance, MAX_STEPS), throw=False).value
    length = tree_norm(gradient)
    misfit = tree_norm(jax.tree.map(jnp.subtract, hessian(z), gradient))

    def slope_along_z(y: Array) -> Array:
        given = eqx.tree_at(lambda p: p.observed.value, problem, y)
        return jax.jvp(given.cost, (control,), (z,))[1]

    sensitivity = -jax.grad(slope_along_z)(problem.observed.value)
    return sensitivity, value, misfit / jnp.where(length > 0, length, jnp.ones_like(length))
