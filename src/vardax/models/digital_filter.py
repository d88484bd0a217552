"""The digital-filter penalty: fast oscillations of the analysed trajectory cost something.

    J_c = ½ γ ‖(x_{T/2} - Σ_n w_n x_n) / s‖²,      n = 0 .. T,   Σ w_n = 1

w is the Dolph-Chebyshev window: of all windows of its length and stop band, the one whose largest response in the stop
band is smallest. With M = T/2, N = T + 1, θ_s = 2π / cutoff and x_0 = 1 / cos(θ_s / 2), its response to the frequency θ
(per interval) is T_{2M}(x_0 cos(θ/2)) / T_{2M}(x_0) with the Chebyshev polynomial T_{2M}, and

    w_n = (1/N) (1 + 2 r Σ_{m=1..M} T_{2M}(x_0 cos(θ_m / 2)) cos((n - M) θ_m)),   θ_m = 2π m / N,   1/r = T_{2M}(x_0)

so oscillations with periods below `cutoff` come out of the sum smaller by r at least.

**Use it** where observations, or errors of the background, excite oscillations that the model keeps and nature does
not have, such as gravity waves. **Not for** windows of a few intervals: r is near 1 then. The filter sees the entries
of the window; one with `n_substeps=1` filters every model step (entries may be empty).

Lynch, P. (1997). The Dolph-Chebyshev window: a simple optimal filter. Mon. Wea. Rev. 125, 655-660.
Gauthier, P. and Thépaut, J.-N. (2001). Impact of the digital filter as a weak constraint in the preoperational 4DVAR
assimilation system of Météo-France. Mon. Wea. Rev. 129, 2089-2102.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from vardax.types import concrete_values, float_array

__all__ = ["DigitalFilter", "dolph_chebyshev_weights"]


class DigitalFilter(eqx.Module):
    """J_c of a window, as one of the `terms` of a method.

    - `cutoff`: the shortest period that is kept, in intervals of the window; more than 2.
    - `weight`: γ.
    - `std`: s, what size of oscillation is tolerable: a number, or a pytree of them like the state; infinite for
      variables that may oscillate.

    >>> DigitalFilter(cutoff=6.0, weight=2.0).residual(jnp.ones((13, 3))).shape
    (3,)
    """

    weight: Array
    std: PyTree[Array]
    cutoff: float = eqx.field(static=True)

    def __init__(self, cutoff: float, weight: Any = 1.0, std: PyTree = 1.0):
        self.cutoff, self.weight = float(cutoff), float_array(weight)
        self.std = jax.tree.map(float_array, std)
        if not 2 < self.cutoff < np.inf:
            raise ValueError(
                f"DigitalFilter: `cutoff` is {self.cutoff:g}, expected a period of more than 2 intervals; entries show "
                "no shorter one. Take more entries, of shorter intervals."
            )
        for name, leaf in (("weight", self.weight), *(("std", leaf) for leaf in jax.tree.leaves(self.std))):
            values = concrete_values(leaf)
            if values is not None and not np.all(values > 0):
                raise ValueError(f"DigitalFilter: `{name}` must be positive; found {values.min():g}.")

    def residual(self, trajectory: PyTree[Array]) -> PyTree[Array]:
        """√γ (x_{T/2} - Σ w_n x_n) / s."""
        n_entries = jax.tree.leaves(trajectory)[0].shape[0]
        weights = -dolph_chebyshev_weights(n_entries, self.cutoff)
        weights[n_entries // 2] += 1
        one = jax.tree.structure(self.std) == jax.tree.structure(0)
        std = jax.tree.map(lambda _: self.std, trajectory) if one else self.std

        def difference(x: Array, s: Array) -> Array:
            filtered = jnp.tensordot(jnp.asarray(weights, x.dtype), x, axes=1, precision="highest")
            scale = jnp.broadcast_to(jnp.sqrt(self.weight) / s.astype(self.weight.dtype), filtered.shape)
            return scale.astype(x.dtype) * filtered

        return jax.tree.map(difference, trajectory, std)


def dolph_chebyshev_weights(n_entries: int, cutoff: float) -> Float[np.ndarray, "n"]:
    """The weights w of a window of `n_entries` entries, an odd number, in float64; they add up to 1.

    >>> dolph_chebyshev_weights(5, 4.0).round(4).tolist()
    [0.1176, 0.2353, 0.2941, 0.2353, 0.1176]
    """
    if n_entries < 3 or n_entries % 2 == 0:
        raise ValueError(
            f"DigitalFilter: the window has {n_entries} entries, expected an odd number of at least 3, so that there "
            "is one in the middle; add an entry without observations."
        )
    M = n_entries // 2
    x_0 = 1 / np.cos(np.pi / cutoff)
    angles = 2 * np.pi * np.arange(1, M + 1) / n_entries
    response = _chebyshev(2 * M, x_0 * np.cos(angles / 2)) / _chebyshev(2 * M, np.array(x_0))
    waves = np.cos(np.outer(np.arange(-M, M + 1), angles))
    return (1 + 2 * waves @ response) / n_entries


def _chebyshev(degree: int, x: np.ndarray) -> np.ndarray:
    """T_degree(x) for x >= 0."""
    inside = np.cos(degree * np.arccos(np.minimum(x, 1.0)))
    return np.where(x <= 1, inside, np.cosh(degree * np.arccosh(np.maximum(x, 1.0))))
