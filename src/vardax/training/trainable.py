"""What of a model is trained: by default its networks, and never what it was told of physics and of errors.

    learned(model)      the model with None for whatever is not trained, as `eqx.filter` gives it

- A learned 4DVar (a model with a `grad_mod`) is trained in its `prior` and its `grad_mod`, another model in all of its
  arrays of real or complex numbers. Arrays of integers are never trained.
- In these, what is analytic stays as it is: covariances and other linear operators, `GaussianPrior`, observation
  operators, modulators with a step size of their own (`IdentityGradMod`), and forward models, but not the network of a
  `NeuralForward`.
- `trainable=`, a function that selects parts of the model as that of `eqx.tree_at` does, replaces both rules:
  `lambda model: (model.grad_mod, model.obs_cov_op)` trains all numbers in these two.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import lineax as lx
from jaxtyping import PyTree

from vardax.dynamics.neural_forward import NeuralForward
from vardax.models.method import AbstractAnalysisMethod
from vardax.priors.gaussian import GaussianPrior
from vardax.priors.intervals import Intervals
from vardax.protocols import ForwardModel, ObservationOperator

__all__ = ["learned", "learned_leaves"]


def learned(model: Any, trainable: Callable[[Any], Any] | None = None) -> Any:
    """The arrays of `model` that are trained, None elsewhere: what `optimizer.init` is given.

    >>> learned({"weight": jax.numpy.ones(2), "count": jax.numpy.arange(3), "name": "net"})
    {'count': None, 'name': None, 'weight': Array([1., 1.], dtype=float32)}
    """
    return eqx.filter(model, learned_leaves(model, trainable))


def learned_leaves(model: Any, trainable: Callable[[Any], Any] | None = None) -> PyTree[bool]:
    """Which leaves of `model` are trained. Nothing to train is an error."""
    nothing = jax.tree.map(lambda leaf: False, model)
    if trainable is not None:
        chosen = eqx.tree_at(trainable, nothing, replace_fn=_true_like)
        leaves = jax.tree.map(lambda choice, leaf: choice and eqx.is_inexact_array(leaf), chosen, model)
    elif hasattr(model, "grad_mod"):
        parts = lambda m: [m.grad_mod, *([m.prior] if hasattr(m, "prior") else [])]  # noqa: E731
        leaves = eqx.tree_at(parts, nothing, [_networks(part) for part in parts(model)])
    else:
        leaves = nothing if isinstance(model, AbstractAnalysisMethod) else _networks(model)
    if not any(jax.tree.leaves(leaves)):
        raise ValueError(
            f"{type(model).__name__} has nothing to train"
            + (" by default" if trainable is None else " in the parts that `trainable` selects")
            + ": no floating-point arrays outside of covariances, operators and forward models. Say what to train: "
            "`trainable=lambda model: model.part`."
        )
    return leaves


def _true_like(part: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: True, part)


def _networks(part: PyTree) -> PyTree[bool]:
    """Every array of a part, integers apart, outside of what is analytic."""
    return jax.tree.map(_marked, part, is_leaf=lambda x: _is_analytic(x) or isinstance(x, NeuralForward))


def _marked(node: Any) -> Any:
    """A leaf, or a whole part where the rule changes."""
    if isinstance(node, NeuralForward):
        nothing = jax.tree.map(lambda leaf: False, node)
        return eqx.tree_at(lambda forward: forward.net, nothing, _networks(node.net))
    if _is_analytic(node):
        inside = lambda x: isinstance(x, NeuralForward)  # noqa: E731
        return jax.tree.map(lambda x: _marked(x) if inside(x) else False, node, is_leaf=inside)
    return eqx.is_inexact_array(node)


def _is_analytic(node: Any) -> bool:
    if isinstance(node, NeuralForward):
        return False
    kinds = lx.AbstractLinearOperator | GaussianPrior | Intervals | ForwardModel | ObservationOperator
    analytic = isinstance(node, kinds)
    return analytic or bool(getattr(node, "scaled_by_itself", False))
