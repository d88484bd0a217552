"""Self-attention over space as gradient modulator: each place decides what to take from all others.

    t_i = E s_i                                                s: patches of [x, g], all times of a place as channels
    a_ij = softmax_j(q_i · k_j / sqrt(d) + b(i - j)),          q, k: unit-variance Q t, K t, per head
    y_i = t_i + M sum_j a_ij V t_j
    u_i = R (y_i + B tanh(A y_i))

b sees where places lie only by the difference of their positions (`vardax.networks.offsets`), so the weights do not
depend on the grid, and on periodic axes the update moves with the field. Queries and keys are scaled to unit variance,
so that the units of the data do not decide how sharp the attention is.

The cost is that of all pairs: with n = cells / patch_size^axes places, n² · hidden_dim operations and n² · n_heads
numbers of memory, 64 MiB a head for 64x64 cells in single precision. `patch_size` 4 makes that 256 times less; a grid
must be a multiple of it.

Reference: A. Vaswani et al., "Attention is all you need", NeurIPS 2017.
"""

import math
from typing import Any, SupportsIndex

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from vardax.dynamics.stepping import checked_count
from vardax.grad_mod.channels import groups_of, in_groups, same_shape
from vardax.grad_mod.inputs import AbstractInputs, StateAndGradient
from vardax.networks.offsets import OffsetBias

__all__ = ["AttentionGradMod"]

FIRST_READOUT = 0.02
"""The last layer starts this much smaller than the others."""


class AttentionGradMod(eqx.Module):
    """For states (*leading, *space) with `n_spatial` axes of space.

    - `state_channels`: T takes all times as channels; 1 shares the weights over them (`vardax.grad_mod.channels`).
    - `hidden_dim`: numbers of a place; `n_heads` divides it.
    - `n_spatial`: 1, 2 or 3; `periodic`: all axes close.
    - `patch_size`: cells along each axis that make one place.
    - `inputs`: `StateAndGradient()` or `GradientOnly()`.
    - `key`: of the first weights, `jax.random.key(0)` by default; `dtype`: theirs, JAX's default float if not given.

    It has no memory: `carry` is handed through.

    >>> modulator = AttentionGradMod(state_channels=5, hidden_dim=16, periodic=True)
    >>> modulator(jnp.ones((5, 40)), jnp.zeros((5, 40)), None)[0].shape
    (5, 40)
    """

    embed: Float[Array, "hidden seen"]
    to_query: Float[Array, "hidden hidden"]
    to_key: Float[Array, "hidden hidden"]
    to_value: Float[Array, "hidden hidden"]
    mix: Float[Array, "hidden hidden"]
    widen: Float[Array, "wide hidden"]
    narrow: Float[Array, "hidden wide"]
    readout: Float[Array, "given hidden"]
    bias: OffsetBias
    inputs: AbstractInputs
    state_channels: int = eqx.field(static=True)
    n_spatial: int = eqx.field(static=True)
    patch_size: int = eqx.field(static=True)

    def __init__(
        self,
        state_channels: SupportsIndex = 1,
        hidden_dim: SupportsIndex = 64,
        n_heads: SupportsIndex = 4,
        *,
        n_spatial: SupportsIndex = 1,
        patch_size: SupportsIndex = 1,
        periodic: bool = False,
        inputs: AbstractInputs = StateAndGradient(),  # noqa: B008  (an immutable value)
        dtype: Any = None,
        key: PRNGKeyArray | None = None,
    ):
        counts = {"state_channels": state_channels, "hidden_dim": hidden_dim, "n_heads": n_heads}
        counts |= {"n_spatial": n_spatial, "patch_size": patch_size}
        checked = {name: checked_count(n, name, "AttentionGradMod", least=1) for name, n in counts.items()}
        hidden, heads = checked["hidden_dim"], checked["n_heads"]
        if checked["n_spatial"] > 3:
            raise ValueError(f"AttentionGradMod: `n_spatial` is {n_spatial}, expected 1, 2 or 3 axes of space.")
        if hidden % heads:
            raise ValueError(f"AttentionGradMod: `hidden_dim` is {hidden}, expected a multiple of `n_heads`, {heads}.")
        self.state_channels, self.n_spatial = checked["state_channels"], checked["n_spatial"]
        self.patch_size, self.inputs = checked["patch_size"], inputs
        given = self.state_channels * self.patch_size**self.n_spatial
        keys = iter(jax.random.split(jax.random.key(0) if key is None else key, 9))
        dtype = jnp.result_type(float) if dtype is None else dtype

        def drawn(n_out: int, n_in: int) -> Array:
            return jax.random.normal(next(keys), (n_out, n_in), dtype) / jnp.asarray(math.sqrt(n_in), dtype)

        self.embed = drawn(hidden, inputs.n_fields * given)
        self.to_query, self.to_key, self.to_value, self.mix = (drawn(hidden, hidden) for _ in range(4))
        self.widen, self.narrow = drawn(2 * hidden, hidden), drawn(hidden, 2 * hidden)
        self.readout = FIRST_READOUT * drawn(given, hidden)
        self.bias = OffsetBias(heads, self.n_spatial, periodic, dtype, next(keys))

    def init_carry(self, state: Float[Array, "*state"]) -> None:
        """Nothing is remembered."""
        return None

    def __call__(
        self, grad: Float[Array, "*state"], state: Float[Array, "*state"], carry: Any
    ) -> tuple[Float[Array, "*state"], Any]:
        """The update, in the dtype of the gradient, and `carry` as it was."""
        same_shape(grad, state, "AttentionGradMod")
        groups = groups_of(state.shape, self.state_channels, self.n_spatial, "AttentionGradMod")
        space = state.shape[state.ndim - self.n_spatial :]
        if any(n % self.patch_size for n in space):
            raise ValueError(
                f"AttentionGradMod: the grid {space} is not a multiple of `patch_size`, {self.patch_size}; choose one "
                "that divides it, or 1."
            )
        shape = (*groups, self.state_channels, *space)
        as_channels = (field.astype(self.embed.dtype).reshape(shape) for field in (grad, state))
        update = in_groups(self._update, groups)(*as_channels)
        return update.reshape(state.shape).astype(grad.dtype), carry

    def _update(self, grad: Float[Array, "channels *space"], state: Float[Array, "channels *space"]) -> Array:
        """u of one group."""
        places = self._patches(self.inputs(grad, state))
        grid = tuple(n // self.patch_size for n in grad.shape[1:])
        tokens = places @ self.embed.T
        tokens = tokens + self._attended(tokens, grid) @ self.mix.T
        tokens = tokens + jnp.tanh(tokens @ self.widen.T) @ self.narrow.T
        return self._field(tokens @ self.readout.T, grid)

    def _attended(self, tokens: Float[Array, "n hidden"], grid: tuple[int, ...]) -> Float[Array, "n hidden"]:
        heads = self.bias.n_heads
        query, key, value = (
            (tokens @ weight.T).reshape(len(tokens), heads, -1)
            for weight in (self.to_query, self.to_key, self.to_value)
        )
        alike = jnp.einsum("ihd,jhd->hij", _of_unit_variance(query), _of_unit_variance(key)) / math.sqrt(key.shape[-1])
        weights = jax.nn.softmax(alike + self.bias(grid), axis=-1)
        return jnp.einsum("hij,jhd->ihd", weights, value).reshape(tokens.shape)

    def _patches(self, x: Float[Array, "channels *space"]) -> Float[Array, "n seen"]:
        """The grid as places, each with all numbers of its patch."""
        blocks = [size for n in x.shape[1:] for size in (n // self.patch_size, self.patch_size)]
        d = self.n_spatial
        order = (*range(1, 2 * d + 1, 2), 0, *range(2, 2 * d + 1, 2))
        return x.reshape(x.shape[0], *blocks).transpose(order).reshape(math.prod(blocks[::2]), -1)

    def _field(self, places: Float[Array, "n given"], grid: tuple[int, ...]) -> Float[Array, "channels *space"]:
        """Back from places to the grid."""
        d = self.n_spatial
        blocks = places.reshape(*grid, self.state_channels, *[self.patch_size] * d)
        order = (d, *(axis for k in range(d) for axis in (k, d + 1 + k)))
        return blocks.transpose(order).reshape(self.state_channels, *(n * self.patch_size for n in grid))


def _of_unit_variance(x: Float[Array, "n heads d"]) -> Float[Array, "n heads d"]:
    return x / jnp.sqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-6)
