"""What all networks of vardax are built from: the priors, the modulators and the encoders share these layers.

| module | holds |
|---|---|
| `convolution` | `Convolution`: 1-D to 3-D, same grid out as in, with zeros, a period or a mirror at the edges |
"""

from vardax.networks.convolution import Convolution, Padding

__all__ = ["Convolution", "Padding"]
