"""Gradient modulators: what the learned solver of 4DVarNet makes of a gradient.

    (update, carry) = modulator(gradient, state, carry),        carry_0 = modulator.init_carry(state)

for one sample, without a batch axis. The solver normalises the gradient that it shows and scales the update that it
gets, by `config.alpha`; a modulator with `scaled_by_itself = True` is left alone in both. The sign is part of what is
learned. Weights start small, so an untrained solver hardly moves.

    ConvLSTMGradMod1D, 2D, 3D      convolutions with a memory: any grid, and the usual choice
    AttentionGradMod               every place sees all others; no memory
    MLPGradMod                     dense: states of one fixed small size, of any structure
    IdentityGradMod                gradient descent

Networks compute in the dtype of their weights, and answer in that of the gradient.
"""

from vardax.grad_mod.attention import AttentionGradMod
from vardax.grad_mod.conv_lstm import (
    AbstractConvLSTMGradMod,
    ConvLSTMGradMod1D,
    ConvLSTMGradMod2D,
    ConvLSTMGradMod3D,
)
from vardax.grad_mod.identity import IdentityGradMod
from vardax.grad_mod.inputs import AbstractInputs, GradientOnly, StateAndGradient
from vardax.grad_mod.mlp import MLPGradMod

__all__ = [
    "AbstractConvLSTMGradMod",
    "AbstractInputs",
    "AttentionGradMod",
    "ConvLSTMGradMod1D",
    "ConvLSTMGradMod2D",
    "ConvLSTMGradMod3D",
    "GradientOnly",
    "IdentityGradMod",
    "MLPGradMod",
    "StateAndGradient",
]
