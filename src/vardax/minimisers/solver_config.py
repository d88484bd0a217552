"""`SolverConfig`: the settings of a learned solver, and what they mean for the cost.

    J(x) = obs_weight · ½ ‖m (y - H(x))‖²_{R⁻¹} + prior_weight · ‖x - phi(x)‖²

Sums over one sample; `obs_norm="mean"` divides the observation term by the number of observed entries.
"""

import math
import operator
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp

from vardax.minimisers.learned import AbstractStepRule, ConstantStep, LearnedMinimiser

__all__ = ["InPrecision", "SolverConfig"]


def _count(n_steps: Any) -> int:
    if isinstance(n_steps, bool) or not hasattr(n_steps, "__index__"):
        raise ValueError(f"SolverConfig: `n_steps` is {n_steps!r}, expected a whole number of at least 1.")
    return operator.index(n_steps)


def _precision(dtype: Any) -> Any:
    """A dtype that networks may compute in, as a hashable one; None leaves them in that of their weights."""
    if dtype is None:
        return None
    found = jnp.dtype(dtype)
    if not jnp.issubdtype(found, jnp.floating):
        raise TypeError(f"SolverConfig: `compute_dtype` is {found.name}, expected a floating-point dtype or None.")
    return found


class SolverConfig(eqx.Module):
    """How a `FourDVarNet` iterates; all fields are static.

    - `n_steps`: the number of iterations, part of what is trained.
    - `alpha`: the factor of a learned modulator's update (`IdentityGradMod(alpha)` has its own).
    - `prior_weight`, `obs_weight`, `obs_norm` ("sum" or "mean"): the cost.
    - `normalize_grad`: divide gradients by the root mean square of the first one; None: for learned modulators only.
    - `rule`: `ConstantStep()`, or `AnnealedStep(gradient_step)` as in the PyTorch programs.
    - `tol`: stop, and call the analysis converged, once the last step is at most `tol` times the state (root mean
      squares). None makes all steps.
    - `compute_dtype`: the precision in which the networks compute, prior and modulator, e.g. `jnp.bfloat16` on
      accelerators; the state, the cost, the observations and a `GaussianPrior` keep theirs. None: that of the weights.
    """

    n_steps: int = eqx.field(static=True, default=15, converter=_count)
    alpha: float = eqx.field(static=True, default=0.2)
    prior_weight: float = eqx.field(static=True, default=1.0)
    obs_weight: float = eqx.field(static=True, default=1.0)
    obs_norm: Literal["sum", "mean"] = eqx.field(static=True, default="sum")
    normalize_grad: bool | None = eqx.field(static=True, default=None)
    rule: AbstractStepRule = eqx.field(static=True, default=ConstantStep())
    tol: float | None = eqx.field(static=True, default=None)
    compute_dtype: Any = eqx.field(static=True, default=None, converter=_precision)

    def __check_init__(self) -> None:
        if self.n_steps < 1:
            raise ValueError(f"SolverConfig: `n_steps` is {self.n_steps!r}, expected a whole number of at least 1.")
        if not math.isfinite(self.alpha):
            raise ValueError(f"SolverConfig: `alpha` is {self.alpha!r}, expected a finite number.")
        for name in ("prior_weight", "obs_weight"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"SolverConfig: `{name}` is {getattr(self, name)!r}, expected a number >= 0.")
        if self.obs_norm not in ("sum", "mean"):
            raise ValueError(f'SolverConfig: `obs_norm` is {self.obs_norm!r}, expected "sum" or "mean".')
        if self.tol is not None and not self.tol >= 0:
            raise ValueError(f"SolverConfig: `tol` is {self.tol!r}, expected None or a number >= 0.")

    def minimiser(self, grad_mod: Any) -> LearnedMinimiser:
        """The learned iteration with these settings."""
        return LearnedMinimiser(
            grad_mod=self.in_precision(grad_mod),
            n_steps=self.n_steps,
            alpha=self.alpha,
            normalize_grad=self.normalize_grad,
            rule=self.rule,
            rtol=0.0 if self.tol is None else self.tol,
        )

    def in_precision(self, network: Any) -> Any:
        """The network as it is, or computing in `compute_dtype`."""
        return network if self.compute_dtype is None else InPrecision(network, self.compute_dtype)


class InPrecision(eqx.Module):
    """A prior or modulator that computes in `dtype`: weights and inputs are cast to it, outputs back to the inputs'.

    The memory of a modulator is kept in `dtype`.
    """

    network: Any
    dtype: Any = eqx.field(static=True)

    @property
    def scaled_by_itself(self) -> bool:
        return getattr(self.network, "scaled_by_itself", False)

    def _cast(self, tree: Any) -> Any:
        return jax.tree.map(lambda a: a.astype(self.dtype) if eqx.is_inexact_array(a) else a, tree)

    def init_carry(self, state: Any) -> Any:
        start = getattr(self._cast(self.network), "init_carry", None)
        return None if start is None else self._cast(start(self._cast(state)))

    def __call__(self, x: Any, *further: Any) -> Any:
        result = self._cast(self.network)(self._cast(x), *self._cast(further))
        back = lambda tree: jax.tree.map(lambda a, like: a.astype(like.dtype), tree, x)  # noqa: E731
        return (back(result[0]), self._cast(result[1])) if further else back(result)
