"""A convolutional LSTM as gradient modulator: the learned step of 4DVarNet, on 1 to 3 axes of space.

    s = down([x, g])
    i, r, o = sigmoid(W_i * [s, h]), sigmoid(W_r * [s, h]), sigmoid(W_o * [s, h])
    c' = r ⊙ c + i ⊙ tanh(W_c * [s, h])
    h' = o ⊙ tanh(c')
    u = up(V * h')

`*` is a convolution, with a bias; the four are one with 4 `hidden_dim` outputs. (h, c) is the memory from one iteration
to the next, through which momentum and preconditioning can be learned. `down` takes means of blocks of `downsampling`
cells and `up` interpolates; a grid that they do not fit is continued by its last cells, and cut off at the end.

The weights do not depend on the grid: what is trained on patches runs on any grid.

References: X. Shi et al., "Convolutional LSTM network", NeurIPS 2015; R. Fablet et al., "Learning variational data
assimilation models and solvers", JAMES 13, 2021.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, SupportsIndex, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from vardax.dynamics.stepping import checked_count
from vardax.grad_mod.channels import groups_of, in_groups, same_shape
from vardax.grad_mod.inputs import AbstractInputs, GradientOnly, StateAndGradient
from vardax.grad_mod.torch_weights import conv_lstm_weights
from vardax.networks.convolution import Convolution, Padding, closed_axes
from vardax.priors.grid_autoencoder import on_multiples
from vardax.priors.resampling import AbstractUpsampling, CellCentred, CornerAligned, Resampling
from vardax.types import AbstractLSTMState, LSTMState1D, LSTMState2D, LSTMState3D

__all__ = ["AbstractConvLSTMGradMod", "ConvLSTMGradMod1D", "ConvLSTMGradMod2D", "ConvLSTMGradMod3D"]

GradModT = TypeVar("GradModT", bound="AbstractConvLSTMGradMod")

FIRST_READOUT = 0.1
"""The weights that make the update start this much smaller than others, and its bias at zero."""


class AbstractConvLSTMGradMod(eqx.Module):
    """Everything but the number of axes of space, which is that of the memory `State`."""

    gates: Convolution
    readout: Convolution
    inputs: AbstractInputs
    resampling: Resampling
    state_channels: int = eqx.field(static=True)

    State: eqx.AbstractClassVar[type[AbstractLSTMState]]

    def __init__(
        self,
        state_channels: SupportsIndex = 1,
        hidden_dim: SupportsIndex = 64,
        kernel_size: int = 3,
        *,
        inputs: AbstractInputs = StateAndGradient(),  # noqa: B008  (an immutable value)
        padding: Padding = "zeros",
        downsampling: SupportsIndex = 1,
        upsampling: AbstractUpsampling = CellCentred(),  # noqa: B008  (an immutable value)
        dtype: Any = None,
        key: PRNGKeyArray | None = None,
    ):
        owner, n_spatial = type(self).__name__, len(self.State.axes)
        self.state_channels = checked_count(state_channels, "state_channels", owner, least=1)
        hidden = checked_count(hidden_dim, "hidden_dim", owner, least=1)
        for_gates, for_readout = jax.random.split(jax.random.key(0) if key is None else key)
        n_in = inputs.n_fields * self.state_channels + hidden
        settings: dict[str, Any] = {"padding": padding, "dtype": dtype}
        self.gates = Convolution(n_spatial, n_in, 4 * hidden, kernel_size, **settings, key=for_gates)
        readout = Convolution(n_spatial, hidden, self.state_channels, kernel_size, **settings, key=for_readout)
        readout = eqx.tree_at(lambda c: c.weight, readout, replace_fn=lambda w: FIRST_READOUT * w)
        self.readout = eqx.tree_at(lambda c: c.bias, readout, replace_fn=jnp.zeros_like)
        self.inputs = inputs
        factor = checked_count(downsampling, "downsampling", owner, least=1)
        self.resampling = Resampling(factor, upsampling, closed_axes(padding, n_spatial, owner))

    @property
    def hidden_dim(self) -> int:
        return self.readout.in_channels

    def init_carry(self, state: Float[Array, "*state"]) -> AbstractLSTMState:
        """The memory at the first iteration: zero."""
        groups, coarse = self._layout(state.shape)
        return self.State.zeros(coarse, self.hidden_dim, groups=groups, dtype=self.gates.weight.dtype)

    def __call__(
        self, grad: Float[Array, "*state"], state: Float[Array, "*state"], carry: AbstractLSTMState
    ) -> tuple[Float[Array, "*state"], AbstractLSTMState]:
        """The update, in the dtype of the gradient, and the memory of the next iteration."""
        same_shape(grad, state, type(self).__name__)
        groups, coarse = self._layout(state.shape)
        self._check_carry(carry, (*groups, *coarse, self.hidden_dim))
        shape = (*groups, self.state_channels, *state.shape[state.ndim - len(coarse) :])
        dtype = self.gates.weight.dtype
        as_channels = (field.astype(dtype).reshape(shape) for field in (grad, state))
        update, h, c = in_groups(self._cell, groups)(*as_channels, carry.h, carry.c)
        return update.reshape(state.shape).astype(grad.dtype), eqx.tree_at(lambda s: (s.h, s.c), carry, (h, c))

    def _cell(
        self,
        grad: Float[Array, "channels *space"],
        state: Float[Array, "channels *space"],
        h: Float[Array, "*coarse hidden"],
        c: Float[Array, "*coarse hidden"],
    ) -> tuple[Array, Array, Array]:
        """(u, h', c') of one group."""
        factor, periodic = self.resampling.factor, self.resampling.periodic
        seen = on_multiples(self.inputs(grad, state), factor, type(self).__name__, periodic=periodic)
        seen = jnp.moveaxis(self.resampling.down(seen), 0, -1)
        gates = self.gates.channels_last(jnp.concatenate([seen, h], axis=-1))
        enter, remember, leave, content = jnp.split(gates, 4, axis=-1)
        c = jax.nn.sigmoid(remember) * c + jax.nn.sigmoid(enter) * jnp.tanh(content)
        h = jax.nn.sigmoid(leave) * jnp.tanh(c)
        update = self.resampling.up(jnp.moveaxis(self.readout.channels_last(h), -1, 0))
        return update[tuple(slice(n) for n in grad.shape)], h, c

    def _layout(self, shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The axes that share the weights, and the grid of the memory."""
        n_spatial = len(self.State.axes)
        groups = groups_of(shape, self.state_channels, n_spatial, type(self).__name__)
        return groups, tuple(-(-n // self.resampling.factor) for n in shape[len(shape) - n_spatial :])

    def _check_carry(self, carry: Any, expected: tuple[int, ...]) -> None:
        found = carry.h.shape if isinstance(carry, self.State) else type(carry).__name__
        if found != expected:
            raise ValueError(
                f"{type(self).__name__}: `carry` is {found}, expected a {self.State.__name__} of shape {expected}: "
                "start with init_carry(state), for each grid anew."
            )

    @classmethod
    def from_torch(cls: type[GradModT], state_dict: Mapping[str, Any], *, downsampling: SupportsIndex = 1) -> GradModT:
        """The modulator of the PyTorch programs with their weights: the same output, without dropout.

        `state_dict` has arrays, or tensors, under the names gates and conv_out, each with `.weight` and `.bias`, also
        below a prefix (`grad_mod.gates.weight`, or with `__` for every dot); `downsampling` is their `downsamp`. The
        normalisation of the gradient is the solver's.
        """
        weights = conv_lstm_weights(state_dict)
        n_out, n_hidden, *kernel = weights["conv_out.weight"].shape
        made = cls(
            n_out,
            n_hidden,
            kernel[0],
            inputs=GradientOnly(),
            downsampling=downsampling,
            upsampling=CornerAligned(),
            dtype=weights["gates.weight"].dtype,
        )
        places = {"gates": made.gates, "conv_out": made.readout}
        for name, found in weights.items():
            layer, part = name.split(".")
            expected = getattr(places[layer], part).shape
            if found.shape != expected:
                raise ValueError(f"`state_dict`: {name} has shape {found.shape}, expected {expected}.")
        parts = lambda m: (m.gates.weight, m.gates.bias, m.readout.weight, m.readout.bias)  # noqa: E731
        return eqx.tree_at(parts, made, tuple(weights.values()))


class ConvLSTMGradMod1D(AbstractConvLSTMGradMod):
    """For states (T, N).

    - `state_channels`: T takes all times as channels; 1 shares the weights over them (`vardax.grad_mod.channels`).
    - `hidden_dim`: channels of the memory.
    - `kernel_size` of both convolutions, odd; `padding`: "zeros", "periodic" or "reflect", what lies beyond the edges,
      or one for each axis of space.
    - `inputs`: `StateAndGradient()` or `GradientOnly()`.
    - `downsampling`: the factor to the grid of the memory; `upsampling`: back, `CellCentred()` or `CornerAligned()`.
    - `key`: of the first weights, `jax.random.key(0)` by default; `dtype`: theirs, JAX's default float if not given.

    >>> modulator = ConvLSTMGradMod1D(state_channels=5, hidden_dim=8, padding="periodic")
    >>> x = jnp.ones((5, 40))
    >>> update, carry = modulator(x, x, modulator.init_carry(x))
    >>> update.shape, carry.h.shape
    ((5, 40), (40, 8))
    """

    State: ClassVar[type[AbstractLSTMState]] = LSTMState1D


class ConvLSTMGradMod2D(AbstractConvLSTMGradMod):
    """For states (T, H, W) and (T, C, H, W). The arguments are those of `ConvLSTMGradMod1D`."""

    State: ClassVar[type[AbstractLSTMState]] = LSTMState2D


class ConvLSTMGradMod3D(AbstractConvLSTMGradMod):
    """For states (T, D, H, W). The arguments are those of `ConvLSTMGradMod1D`."""

    State: ClassVar[type[AbstractLSTMState]] = LSTMState3D
