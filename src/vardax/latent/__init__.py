"""Latent spaces: what a method needs to work on few numbers instead of on the whole state.

A latent map has `encode(state)` and `decode(latent)`. Linear ones are bases of fields: `EOFBasis` from samples,
`FourierBasis`, `WaveletBasis`, `RadialBasis`; `IdentityLatentMap` changes nothing; an autoencoder is one as it is.
`LatentPrior` says what is known before the observations, `EncodedForwardModel` and `NeuralLatentForwardModel` how a
latent vector moves, `LiftedObservationOperator` what is observed of it. The methods are `LatentThreeDVar`,
`LatentStrongFourDVar` and `LatentHybridFourDVar` in `vardax.models`.
"""

from vardax.latent.basis import AbstractReducedBasis
from vardax.latent.eof import EOFBasis
from vardax.latent.forward import EncodedForwardModel, NeuralLatentForwardModel
from vardax.latent.fourier import FourierBasis
from vardax.latent.identity import IdentityLatentMap
from vardax.latent.lifted import LiftedObservationOperator
from vardax.latent.prior import LatentPrior
from vardax.latent.radial import RadialBasis, gaussian, wendland
from vardax.latent.wavelet import WaveletBasis

__all__ = [
    "AbstractReducedBasis",
    "EOFBasis",
    "EncodedForwardModel",
    "FourierBasis",
    "IdentityLatentMap",
    "LatentPrior",
    "LiftedObservationOperator",
    "NeuralLatentForwardModel",
    "RadialBasis",
    "WaveletBasis",
    "gaussian",
    "wendland",
]
