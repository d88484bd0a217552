"""A dense network as gradient modulator: u = net([x, g]) for states of one fixed, small size.

    net: dense layers with tanh between them, from all numbers of the state and the gradient to all of the update

The state may be of any shape or structure; its leaves are laid out one after the other. The number of weights grows
with the size of the state times `hidden_dim`: for fields take `ConvLSTMGradMod2D`.
"""

import math
from typing import Any, SupportsIndex

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from vardax.dynamics.stepping import checked_count
from vardax.grad_mod.inputs import AbstractInputs, StateAndGradient

__all__ = ["MLPGradMod"]

FIRST_READOUT = 0.1
"""The last layer starts this much smaller than the others, and its bias at zero."""


class MLPGradMod(eqx.Module):
    """For states of `state_size` numbers in all: n for (n,), T N for (T, N), the sum over the leaves of a pytree.

    - `hidden_dim`, `depth`: the width and the number of hidden layers.
    - `inputs`: `StateAndGradient()` or `GradientOnly()`.
    - `key`: of the first weights, `jax.random.key(0)` by default; `dtype`: theirs, JAX's default float if not given.

    It has no memory: `carry` is handed through.

    >>> modulator = MLPGradMod(state_size=6, hidden_dim=16)
    >>> modulator(jnp.ones((2, 3)), jnp.zeros((2, 3)), None)[0].shape
    (2, 3)
    """

    net: eqx.nn.MLP
    inputs: AbstractInputs
    state_size: int = eqx.field(static=True)

    def __init__(
        self,
        state_size: SupportsIndex,
        hidden_dim: SupportsIndex = 64,
        depth: SupportsIndex = 2,
        *,
        inputs: AbstractInputs = StateAndGradient(),  # noqa: B008  (an immutable value)
        dtype: Any = None,
        key: PRNGKeyArray | None = None,
    ):
        counts = {"state_size": (state_size, 1), "hidden_dim": (hidden_dim, 1), "depth": (depth, 0)}
        size, width, depth = (checked_count(n, name, "MLPGradMod", least=k) for name, (n, k) in counts.items())
        net = eqx.nn.MLP(
            inputs.n_fields * size,
            size,
            width,
            depth,
            jnp.tanh,
            dtype=jnp.result_type(float) if dtype is None else dtype,
            key=jax.random.key(0) if key is None else key,
        )
        net = eqx.tree_at(lambda m: m.layers[-1].weight, net, replace_fn=lambda w: FIRST_READOUT * w)
        self.net = eqx.tree_at(lambda m: m.layers[-1].bias, net, replace_fn=jnp.zeros_like)
        self.inputs, self.state_size = inputs, size

    def init_carry(self, state: PyTree[Array]) -> None:
        """Nothing is remembered."""
        return None

    def __call__(self, grad: PyTree[Array], state: PyTree[Array], carry: Any) -> tuple[PyTree[Array], Any]:
        """The update, in the dtypes of the gradient, and `carry` as it was."""
        dtype = self.net.layers[-1].weight.dtype
        flat = self.net(self.inputs(self._flat(grad, "gradient", dtype), self._flat(state, "state", dtype)))
        leaves, structure = jax.tree.flatten(grad)
        ends = [sum(leaf.size for leaf in leaves[:k]) for k in range(1, len(leaves))]
        parts = [
            part.reshape(leaf.shape).astype(leaf.dtype)
            for part, leaf in zip(jnp.split(flat, ends), leaves, strict=True)
        ]
        return jax.tree.unflatten(structure, parts), carry

    def _flat(self, tree: PyTree[Array], name: str, dtype: Any) -> Float[Array, " n"]:
        leaves = jax.tree.leaves(tree)
        size = sum(math.prod(leaf.shape) for leaf in leaves)
        if size != self.state_size:
            raise ValueError(
                f"MLPGradMod: the {name} has {size} numbers, in {[leaf.shape for leaf in leaves]}, expected "
                f"`state_size`, {self.state_size}."
            )
        return jnp.concatenate([leaf.astype(dtype).reshape(-1) for leaf in leaves])
