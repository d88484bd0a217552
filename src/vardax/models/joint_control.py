"""What is estimated jointly with the state: parameters of the model or the operator, biases, any pytree theta.

    J(x_0, theta) = ½‖x_0 - x_b‖²_{B⁻¹} + ½‖theta - theta_b‖²_{C⁻¹} + ½ Σ_t ‖y_t - H_theta(x_t) - b_theta‖²_{R⁻¹},
    x_t = M_theta,t(x_{t-1})

The control is (B^{-1/2} (x_0 - x_b), C^{-1/2} (theta - theta_b)), so that theta is one more block of what is known
before the observations, and of the posterior: nothing else in a method changes. A joint control says what theta is
(`mean`, `cov_op`) and what it does (`model`, `operator`, `prediction`).

**Use it** where a parameter or a bias is unknown and constant over the window. **Not for** errors of the model that
change from interval to interval (`WeakFourDVar`), nor for what a cycle is to carry along: a cycle hands on states, and
every window starts from `mean` again. Make theta a part of the state there, with a model that leaves it as it is.

Dee, D. P. (2005). Bias and data assimilation. QJRMS 131, 3323-3343.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, PyTree

from vardax.covariances.block_diagonal import BlockDiagonalCovariance
from vardax.covariances.diagonal import DiagonalCovariance
from vardax.minimisers.transforms import Identity
from vardax.types import float_array

__all__ = ["AbstractJointControl", "JointControl", "joint_prior"]


class AbstractJointControl(eqx.Module):
    """A pytree theta that is estimated with the state: its prior, and what it changes.

    **To add one**: subclass this, give it `mean`, `cov_op` and `control_transform`, and override what theta acts on.
    """

    mean: eqx.AbstractVar[PyTree[Array]]
    cov_op: eqx.AbstractVar[lx.AbstractLinearOperator]
    control_transform: eqx.AbstractVar[PyTree]

    def model(self, forward: Any, theta: PyTree[Array]) -> Any:
        """The model that theta makes of `forward`."""
        return forward

    def operator(self, obs_op: Any, theta: PyTree[Array]) -> Any:
        """The observation operator that theta makes of `obs_op`."""
        return obs_op

    def prediction(self, predicted: Array, observed: Any, theta: PyTree[Array]) -> Array:
        """The predicted observations (E, *obs) that theta makes of those of the operator."""
        return predicted


class JointControl(AbstractJointControl):
    """Parameters of the model, of the operator, or of both.

    - `mean`, `cov_op`: what is known of theta before: any pytree, and a covariance of it, or its variances: a number
      for all entries, or a pytree of arrays like `mean`. The mean may differ from sample to sample (a leading axis).
    - `forward(model, theta)`: the model that theta makes of the method's own (or of `inner_forward`).
    - `obs_op(operator, theta)`: the observation operator that it makes of the method's own.
    - `control_transform`: `Exp()` or `Softplus()` for parameters that are positive.

    >>> from vardax.dynamics.lorenz96 import Lorenz96
    >>> forcing = JointControl(7.5, 0.25, forward=lambda model, F: Lorenz96(40, forcing=F))
    >>> float(forcing.model(Lorenz96(40), jnp.asarray(8.5)).forcing)
    8.5
    """

    mean: PyTree[Array]
    cov_op: lx.AbstractLinearOperator
    forward: Callable | None
    obs_op: Callable | None
    control_transform: PyTree

    def __init__(
        self,
        mean: PyTree,
        cov_op: Any,
        *,
        forward: Any = None,
        obs_op: Any = None,
        control_transform: PyTree = Identity(),  # noqa: B008  (an immutable value)
    ):
        if forward is None and obs_op is None:
            raise ValueError(
                "JointControl: theta acts on nothing; give `forward`, (model, theta) -> model, or `obs_op`, "
                "(operator, theta) -> operator."
            )
        for name, hook in (("forward", forward), ("obs_op", obs_op)):
            if hook is not None and not callable(hook):
                raise TypeError(f"JointControl: `{name}` is {type(hook).__name__}, expected a function of two.")
        self.mean, self.cov_op = joint_prior("JointControl", mean, cov_op)
        self.forward, self.obs_op = forward, obs_op
        self.control_transform = control_transform

    def model(self, forward: Any, theta: PyTree[Array]) -> Any:
        return forward if self.forward is None else self.forward(forward, theta)

    def operator(self, obs_op: Any, theta: PyTree[Array]) -> Any:
        return obs_op if self.obs_op is None else self.obs_op(obs_op, theta)


def joint_prior(owner: str, mean: PyTree, cov_op: Any) -> tuple[PyTree[Array], lx.AbstractLinearOperator]:
    """Mean and covariance of theta, checked against each other."""
    mean = jax.tree.map(float_array, mean)
    if not isinstance(cov_op, lx.AbstractLinearOperator):
        cov_op = _of_variances(owner, mean, cov_op)
    found, expected = jax.tree.structure(mean), jax.tree.structure(cov_op.out_structure())
    if found != expected:
        raise ValueError(
            f"{owner}: `mean` has the structure {found}, expected {expected}, that of the fields of `cov_op`."
        )

    def check(leaf: Array, like: jax.ShapeDtypeStruct) -> None:
        if leaf.shape[leaf.ndim - len(like.shape) :] != like.shape or leaf.ndim > len(like.shape) + 1:
            raise ValueError(
                f"{owner}: `mean` has shape {leaf.shape}, expected {like.shape}, on which `cov_op` acts, or that with "
                "a leading axis of samples."
            )

    jax.tree.map(check, mean, cov_op.out_structure())
    return mean, cov_op


def _of_variances(owner: str, mean: PyTree[Array], variances: PyTree) -> lx.AbstractLinearOperator:
    """Independent errors: one variance for all entries of theta, or a pytree of them like its mean."""
    alone = jax.tree.structure(variances) == jax.tree.structure(0)
    if not alone and jax.tree.structure(variances) != jax.tree.structure(mean):
        raise TypeError(
            f"{owner}: `cov_op` is {type(variances).__name__}, expected a covariance (a lineax operator), a variance, "
            "or a pytree of variances like `mean`."
        )
    variances = jax.tree.map(lambda _: variances, mean) if alone else variances

    def block(leaf: Array, variance: Any) -> DiagonalCovariance:
        variance = float_array(variance)
        return DiagonalCovariance(jnp.broadcast_to(variance, leaf.shape) if variance.ndim == 0 else variance)

    blocks = jax.tree.map(block, mean, variances)
    return blocks if isinstance(blocks, DiagonalCovariance) else BlockDiagonalCovariance(blocks)
