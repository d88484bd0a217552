"""From the variables of a satellite level-2 product to the operator that predicts what it delivers.

    file: kernel, a priori, pressures, air  ->  a, x_a, w, boundaries  ->  ColumnRetrieval (or RetrievalKernel)

Products name and normalise these differently. `averaging_kernel_from_l2` takes what a file has and makes the a priori a
mixing ratio, the weights shares of the air column, and the pressures boundaries of layers. Soundings come in any shape
(scan lines, ground pixels) and are ravelled to p; those with gaps become missing observations.
"""

import difflib
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Array

from vardax.obs_operators.column_retrieval import ColumnRetrieval
from vardax.obs_operators.retrieval_kernel import RetrievalKernel
from vardax.types import float_array

__all__ = ["averaging_kernel_from_l2"]

OWNER = "averaging_kernel_from_l2"

NAMES = {
    "kernel": ("column_averaging_kernel", "averaging_kernel", "kernel"),
    "prior": ("methane_profile_apriori", "profile_apriori", "prior"),
    "air": ("dry_air_subcolumns", "air"),
    "weights": ("pressure_weight", "weights"),
    "levels": ("pressure_levels", "levels"),
    "surface_pressure": ("surface_pressure",),
    "pressure_interval": ("pressure_interval",),
    "hybrid_a": ("tm5_constant_a", "hybrid_a"),
    "hybrid_b": ("tm5_constant_b", "hybrid_b"),
}
"""The variables that are looked for, in this order, where `names` does not name one."""

LARGEST = 1e30
"""Values beyond are fill values (netCDF's own is 9.97e36), which some readers leave in place."""


def averaging_kernel_from_l2(
    product: Any,
    *,
    names: Mapping[str, str | None] | None = None,
    interp: Any = None,
    model_levels: Any = None,
    outside: str = "clamp",
    surface_first: bool = False,
) -> ColumnRetrieval | RetrievalKernel:
    """The operator of the soundings of a level-2 `product`: a mapping from names to arrays, or an `xarray.Dataset`.

    What is looked for, under these names unless `names` says what a quantity is called in this product:

    - `kernel` (..., L): the column averaging kernel. `column_averaging_kernel`, `averaging_kernel`, `kernel`.
    - `prior` (..., L): the a priori, a mixing ratio; or partial columns where there is `air`.
      `methane_profile_apriori`, `profile_apriori`, `prior`. If there is none, y = Σ w a x: `names={"prior": None}`.
    - `air` (..., L): the air in each layer, whose shares are the weights. `dry_air_subcolumns`, `air`.
    - `weights` (..., L): used as they are; for a column amount instead of a mean, the air in each layer.
      `pressure_weight`, `weights`. Without weights and `air`, the shares of the pressure thickness.
    - the boundaries of the layers: `levels` (..., L+1), `pressure_levels`, `levels`; or `surface_pressure` (...) and
      `pressure_interval` (...), layers of equal thickness; or `surface_pressure` and the coefficients of
      a + b p_surface, `hybrid_a` and `hybrid_b`, (L+1,) or (L, 2). `tm5_constant_a`, `tm5_constant_b`.

    Leading axes are ravelled to p soundings; arrays (L,) or (L+1,) hold for all.

    - `interp`, `model_levels`, `outside`: as for `ColumnRetrieval`; `model_levels` in the unit of the product.
    - `surface_first`: for layers of equal thickness, whether the first layer is at the ground (TROPOMI's methane
      product begins at the top).

    NaN, masked entries and fill values anywhere in a sounding make it a missing observation (`mask` of the operator).
    Quality flags belong to the observations (`Observations(valid=...)`); kernels that are new each day go with them:
    `Observations(..., aux=operator.aux)`. A kernel (..., L, L), the rows of a profile retrieval, gives a
    `RetrievalKernel` on profiles (p, L).

    >>> product = {"averaging_kernel": [[1.0, 0.5]], "prior": [[2.0, 4.0]], "pressure_levels": [[1000.0, 400.0, 0.0]]}
    >>> averaging_kernel_from_l2(product).weights
    Array([[0.6, 0.4]], dtype=float32)
    """
    found = _read(product, names or {})
    kernel, prior = found.pop("kernel"), found.get("prior")
    if prior is not None and kernel.ndim == prior.ndim + 1 and kernel.shape[-1] == kernel.shape[-2]:
        return RetrievalKernel(_soundings(kernel, 2), _soundings(prior, 1))
    shape, levels = kernel.shape, _boundaries(found, kernel.shape, surface_first)
    prior = np.zeros(shape) if prior is None else _on(shape, prior, "prior")
    weights, air = found.get("weights"), found.get("air")
    with np.errstate(divide="ignore", invalid="ignore"):  # soundings that have gaps or no air become missing ones
        if air is not None:
            air = _on(shape, air, "air")
            prior, air = prior / air, air / np.sum(air, axis=-1, keepdims=True)
        elif weights is None and levels is not None:
            thickness = np.abs(np.diff(levels, axis=-1))
            air = thickness / np.sum(thickness, axis=-1, keepdims=True)
    weights = air if weights is None else _on(shape, weights, "weights")
    if weights is None:
        raise ValueError(f"{OWNER}: found no `weights`, `air` or `levels`; the product has {_listed(product)}.")
    parts = {"kernel": kernel, "prior": prior, "weights": weights}
    parts |= {} if levels is None else {"levels": levels}
    arrays = {name: _soundings(array, 1) for name, array in parts.items()}
    return ColumnRetrieval(**arrays, interp=interp, model_levels=model_levels, outside=outside)


def _read(product: Any, names: Mapping[str, str | None]) -> dict[str, np.ndarray]:
    """Every quantity that the product has, with NaN where it has gaps."""
    for quantity in names:
        if quantity not in NAMES:
            raise ValueError(
                f"{OWNER}: `names` has {quantity!r}, expected one of {', '.join(NAMES)}.{_hint(quantity, NAMES)}"
            )
    found = {}
    for quantity, usual in NAMES.items():
        name = names.get(quantity, next((name for name in usual if name in product), None))
        if name is not None and name not in product:
            near = _hint(name, product)
            raise ValueError(f"{OWNER}: the product has no {name!r} (`{quantity}`); it has {_listed(product)}.{near}")
        if name is not None:
            found[quantity] = _numbers(product[name])
    for quantity in ("kernel", "prior"):
        if quantity not in found and quantity not in names:
            raise ValueError(
                f"{OWNER}: found no `{quantity}` in the product, which has {_listed(product)}; say what it is called, "
                f"names={{{quantity!r}: ...}}."
            )
    if "kernel" not in found:
        raise ValueError(f"{OWNER}: `names` says that there is no kernel, and without one there is no operator.")
    return found


def _numbers(variable: Any) -> np.ndarray:
    """The values as floats, NaN where masked or filled."""
    values = np.ma.masked_invalid(np.ma.asarray(getattr(variable, "values", variable)).astype(float))
    return np.ma.masked_greater(np.ma.masked_less(values, -LARGEST), LARGEST).filled(np.nan)


def _boundaries(found: Mapping[str, Any], shape: tuple[int, ...], surface_first: bool) -> np.ndarray | None:
    """The boundaries of the layers, (..., L+1)."""
    layers, before = shape[-1], shape[:-1]
    if "levels" in found:
        return _on((*before, layers + 1), found["levels"], "levels")
    surface, interval, a, b = (
        found.get(key) for key in ("surface_pressure", "pressure_interval", "hybrid_a", "hybrid_b")
    )
    if surface is None:
        return None
    surface = _on(before, surface, "surface_pressure")[..., None]
    if interval is not None:
        steps = np.arange(layers + 1) if surface_first else np.arange(layers, -1, -1)
        return surface - steps * _on(before, interval, "pressure_interval")[..., None]
    if a is None or b is None:
        return None
    a, b = (np.append(c[:, 0], c[-1, 1]) if c.ndim == 2 and c.shape[1] == 2 else c for c in (a, b))
    return _on((layers + 1,), a, "hybrid_a") + _on((layers + 1,), b, "hybrid_b") * surface


def _on(shape: tuple[int, ...], array: np.ndarray, quantity: str) -> np.ndarray:
    """`array`, which has this shape or only its last axis."""
    if array.shape not in (shape, shape[-1:]):
        raise ValueError(f"{OWNER}: `{quantity}` has shape {array.shape}, expected {shape} beside the kernel.")
    return np.broadcast_to(array, shape)


def _soundings(array: np.ndarray, ndim: int) -> Array:
    """(..., *last) as (p, *last), `ndim` axes being last."""
    return float_array(array.reshape(-1, *array.shape[array.ndim - ndim :]))


def _listed(names: Any) -> str:
    return ", ".join(map(repr, names)) or "nothing"


def _hint(name: str, names: Any) -> str:
    near = difflib.get_close_matches(name, list(map(str, names)), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""
