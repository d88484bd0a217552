"""The part of an optimiser's state that belongs to what is trained.

`optimizer.init(eqx.filter(model, eqx.is_array))` also makes momenta for arrays that are not trained: integers, for
which no optimiser has a rule, and analytic parts. Their place in the state is that of the array in the model, so the
state of the trained arrays alone is found in it, leaf by leaf, by the path; after the step it is put back, and the rest
is as it was. A state that was made for the trained arrays alone is found whole.
"""

from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

__all__ = ["put_back", "take_out"]


def take_out(optimizer: Any, opt_state: PyTree, parameters: PyTree) -> PyTree:
    """The state of `optimizer` for `parameters`, out of one for these and possibly more arrays."""
    expected = jax.eval_shape(optimizer.init, parameters)
    paths, structure = jax.tree_util.tree_flatten_with_path(expected)
    found = dict(_with_names(opt_state))
    for path, leaf in paths:
        name = jax.tree_util.keystr(path)
        if name not in found or np.shape(found[name]) != leaf.shape:
            here = f"the shape {np.shape(found[name])}" if name in found else "nothing"
            raise ValueError(
                f"train_step: `opt_state` has {here} at {name}, expected an array of shape {leaf.shape}; make it for "
                "this optimiser and model: optimizer.init(eqx.filter(model, eqx.is_array)), or with "
                "vardax.training.learned(model, trainable) for an optimiser that cannot take integers."
            )
    return jax.tree.unflatten(structure, [found[jax.tree_util.keystr(path)] for path, _ in paths])


def put_back(opt_state: PyTree, taken: PyTree) -> PyTree:
    """`opt_state` with the leaves of `taken` in their places."""
    new = dict(_with_names(taken))
    leaves = [new.get(name, leaf) for name, leaf in _with_names(opt_state)]
    return jax.tree.unflatten(jax.tree.structure(opt_state), leaves)


def _with_names(tree: PyTree) -> list[tuple[str, Any]]:
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]
