"""What all networks of vardax are built from: the priors, the modulators and the encoders share these layers.

| module | holds |
|---|---|
| `convolution` | `Convolution`: 1-D to 3-D, same grid out as in, with zeros, a period or a mirror at the edges |
| `correlation` | the sum over the kernel, as a primitive whose derivatives are fast inside a loop on a CPU |
| `offsets` | `OffsetBias`: what an attention knows of where things lie |
"""

from vardax.networks.convolution import Convolution, Padding
from vardax.networks.offsets import OffsetBias

__all__ = ["Convolution", "OffsetBias", "Padding"]
