"""Priors: reconstructions x -> phi(x) that stay close to x where x is plausible.

A learned method penalises ‖x - phi(x)‖², or `prior.cost(x)` where a prior has one. States are whole windows
(T, *state), without a batch axis.

    IdentityPrior             every state is plausible: observations alone
    GaussianPrior             the background term of classical methods, ½‖x - x_b‖²_{B⁻¹}
    DynamicalPrior            each entry follows from the one before by a model: weak-constraint 4D-Var
    DynIncrements, DynTrajectory   the same, and from the first entry, at given times, with a loss
    L63Prior, L96Prior        the models of Lorenz

    BilinAEPrior1D            bilinear autoencoder of a short window; MLPAEPrior1D: perceptrons
    BilinAEPrior2D, BilinAEPrior2DMultivar, BilinAEPrior3D   of fields, by convolutions: the usual start
    ConvAEPrior1D             of a circle; ConvAEPrior: of any encoder and decoder
    UNetPrior2D               several grids at once

Autoencoders are latent maps too (`encode`, `decode`): an analysis can be made in their latent space. The convolutional
ones train on patches and run on any grid. `Gated`, `Product` and `Square` are the forms of the bilinear ones,
`CellCentred` and `CornerAligned` how they come back from a coarser grid.
"""

from vardax.priors.bilinear_forms import (
    AbstractBilinearForm,
    BilinearLayers,
    Gated,
    GatedLayers,
    Product,
    Square,
)
from vardax.priors.bilinear_grid import BilinAEPrior2D, BilinAEPrior2DMultivar, BilinAEPrior3D
from vardax.priors.convolutional import ConvAEPrior, ConvAEPrior1D, PeriodicLayers
from vardax.priors.dense_autoencoders import BilinAEPrior1D, MLPAEPrior1D
from vardax.priors.dynamical import AbstractDynamicalPrior, DynamicalPrior
from vardax.priors.gaussian import GaussianPrior
from vardax.priors.grid_autoencoder import AbstractGridAutoencoderPrior, GridAutoencoder, Window
from vardax.priors.identity import IdentityPrior
from vardax.priors.intervals import Intervals
from vardax.priors.lorenz import L63Prior, L96Prior
from vardax.priors.resampling import AbstractUpsampling, CellCentred, CornerAligned, Resampling
from vardax.priors.temporal import DynIncrements, DynTrajectory
from vardax.priors.unet import Block, UNetPrior2D

__all__ = [
    "AbstractBilinearForm",
    "AbstractDynamicalPrior",
    "AbstractGridAutoencoderPrior",
    "AbstractUpsampling",
    "BilinAEPrior1D",
    "BilinAEPrior2D",
    "BilinAEPrior2DMultivar",
    "BilinAEPrior3D",
    "BilinearLayers",
    "Block",
    "CellCentred",
    "ConvAEPrior",
    "ConvAEPrior1D",
    "CornerAligned",
    "DynIncrements",
    "DynTrajectory",
    "DynamicalPrior",
    "Gated",
    "GatedLayers",
    "GaussianPrior",
    "GridAutoencoder",
    "IdentityPrior",
    "Intervals",
    "L63Prior",
    "L96Prior",
    "MLPAEPrior1D",
    "PeriodicLayers",
    "Product",
    "Resampling",
    "Square",
    "UNetPrior2D",
    "Window",
]
