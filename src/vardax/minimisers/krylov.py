"""The large linear-Gaussian analysis by conjugate gradients: which form of it a problem gets.

    J(dx) = ½ dxᵀ B⁻¹ dx + ½ (d − H dx)ᵀ R⁻¹ (d − H dx)

    form (module)               unknown           steps                                     suits
    `observation_form`          weights w         those of control space                    any B, H, R
    `modes_form`                Fourier modes     few where the field is covered evenly     a periodic Matérn B
    `preconditioned_form`       weights w         few, with the factor of `vecchia`         local H, uncorrelated R

Data flow: (B, L, H, R, d) -> `solve_blue` -> `KrylovResult`. R is what `covariances.functions.restrict` gives, so masks
are already inside. No form ever leaves J above J(x_b), and none has a matrix of a large side. The choice is made from
products with B, H and R, so it is traced like everything else.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Float

from vardax.covariances.matern import MaternLinearOperator
from vardax.minimisers.factor_plan import can_be_factored, plan_factor
from vardax.minimisers.krylov_result import KrylovResult, ObservationError, Observing
from vardax.minimisers.modes_form import observation_coverage, solve_in_modes
from vardax.minimisers.observation_form import solve_in_observations
from vardax.minimisers.preconditioned_form import solve_preconditioned

__all__ = ["EVEN_COVERAGE", "solve_blue"]

EVEN_COVERAGE = 0.25
"""Least density of the observations over its mean (`observation_coverage`) from which the modes form is taken."""


def solve_blue(
    B: lx.AbstractLinearOperator,
    B_half: lx.AbstractLinearOperator,
    H: lx.AbstractLinearOperator,
    R: ObservationError,
    innovation: Float[Array, "..."],
    *,
    tol: float,
    max_steps: int,
) -> KrylovResult:
    """The increment that minimises J: to ‖∇J‖ <= tol · ‖∇J(x_b)‖ in control space, or `max_steps` steps.

    `B_half` is L with L Lᵀ = B, `R` is restricted to the observed entries, and `innovation` is d = y − H(x_b), zero
    where missing. Works under `jit` and `vmap`; the result can be differentiated with respect to everything in B, H, R
    and d.

    >>> from vardax.covariances.diagonal import DiagonalCovariance
    >>> B, R = DiagonalCovariance(jnp.array([1.0, 2.0])), DiagonalCovariance(jnp.array([1.0])).restrict(jnp.ones(1))
    >>> H = lx.MatrixLinearOperator(jnp.array([[1.0, 1.0]]))
    >>> solve_blue(B, B.half(), H, R, jnp.array([4.0]), tol=1e-6, max_steps=10).increment
    Array([1., 2.], dtype=float32)
    """
    options = {"tol": tol, "max_steps": max_steps}
    forms: list[Callable[[Array], KrylovResult]] = [
        lambda d: solve_in_observations(B, B_half, H, R, d, **options),
    ]
    choice = jnp.zeros((), int)
    if can_be_factored(B, R, innovation.size):
        cellwise: Any = B
        errors: Any = R
        plan = plan_factor(Observing(B, H, R, innovation.dtype), innovation.shape, tol)
        mask = (plan.variances > 0).astype(innovation.dtype)
        forms.append(lambda d: solve_preconditioned(B, B_half, H, errors, d, mask, plan.inverse(cellwise), **options))
        choice = jnp.where(plan.worthwhile, len(forms) - 1, choice)
    if isinstance(B, MaternLinearOperator) and B.domain_shape == B.shape:
        least, evenness = jax.lax.stop_gradient(observation_coverage(B, H, R))
        forms.append(lambda d: solve_in_modes(B, H, R, d, coverage=least, **options))
        choice = jnp.where(evenness >= EVEN_COVERAGE, len(forms) - 1, choice)
    return _solve_by_choice(forms, choice, innovation)


def _solve_by_choice(forms: list[Callable[[Array], KrylovResult]], choice: Array, innovation: Array) -> KrylovResult:
    """The result of one form. Under `vmap` over masks all forms run: those not chosen get d = 0, and take no step."""
    if len(forms) == 1:
        return forms[0](innovation)
    branches = [
        lambda d, form=form, number=number: form(jnp.where(choice == number, d, jnp.zeros_like(d)))
        for number, form in enumerate(forms)
    ]
    return jax.lax.switch(choice, branches, innovation)
