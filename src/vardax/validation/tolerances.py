"""How far a right object may be from the exact answer, by the floating-point type that it works in.

A limit must be wide enough for rounding and narrow enough for a defect. The limits below are for quantities that are
scaled so that rounding does not grow with the size of the state:

| limit       | float64 | float32 | what is compared                                                                |
|-------------|---------|---------|---------------------------------------------------------------------------------|
| `adjoint`   | 1e-12   | 1e-5    | <Au, v> and <u, Aᵀv> for white noise u, v, relative to the larger of |Au|, |Aᵀv|  |
| `linear`    | 1e-11   | 1e-4    | A(u + 2v) and Au + 2Av, relative                                                |
| `tangent`   | 1e-8    | 1e-4    | tangent and extrapolated differences; or 5 times what the differences resolve   |
| `ratio`     | 1e-5    | 5e-3    | |F(x + hd) - F(x)| / |hF'd| - 1 at the best h; or 5 times what they resolve     |
| `order`     | 0.5     | 0.5     | order in h of the relative Taylor remainder (1 when the tangent is right)       |
| `resolution`| 2e-3    | 2e-3    | error of the differences: beyond this a tangent wrong by 1 % could pass          |
| `psd`       | 1e-12   | 1e-5    | most negative eigenvalue, relative to the largest                               |
| `root`      | 1e-11   | 1e-4    | L Lᵀv and Bv, relative                                                          |
| `inverse`   | 1e-7    | 1e-3    | B B⁻¹ w and w for w = Bv, relative                                              |
| `logdet`    | 1e-8    | 1e-3    | log|B| and the sum of the logarithms of its eigenvalues, per degree of freedom  |
| `dirac`     | 1e-11   | 1e-4    | entries of B seen from both sides, from its diagonal, from its matrix           |
| `mask`      | 1e-12   | 1e-5    | change of a result when entries that must not count are changed                 |
| `sample`    | 6       | 6       | variance and mean of samples, in standard errors                                |
| `growth`    | 1e3     | 1e3     | largest |x_t| over a run, relative to the largest |x_0|                         |

White noise makes the adjoint check see a single wrong component among n: it changes the measured number by about
1/√n, far above rounding for any n that fits in memory. What it does not see is a component that is 1/limit times
smaller than the rest; states of several arrays are therefore also checked array by array, and covariances in units of
their standard deviations. Sums of products are accumulated in float64 whatever the type.
"""

import dataclasses
import difflib
from collections.abc import Mapping

__all__ = ["Tolerances", "default_tolerances"]


@dataclasses.dataclass(frozen=True)
class Tolerances:
    """The limits of the module's table."""

    adjoint: float
    linear: float
    tangent: float
    ratio: float
    order: float
    resolution: float
    psd: float
    root: float
    inverse: float
    logdet: float
    dirac: float
    mask: float
    sample: float
    growth: float


_DOUBLE = Tolerances(
    adjoint=1e-12,
    linear=1e-11,
    tangent=1e-8,
    ratio=1e-5,
    order=0.5,
    resolution=2e-3,
    psd=1e-12,
    root=1e-11,
    inverse=1e-7,
    logdet=1e-8,
    dirac=1e-11,
    mask=1e-12,
    sample=6.0,
    growth=1e3,
)

_SINGLE = Tolerances(
    adjoint=1e-5,
    linear=1e-4,
    tangent=1e-4,
    ratio=5e-3,
    order=0.5,
    resolution=2e-3,
    psd=1e-5,
    root=1e-4,
    inverse=1e-3,
    logdet=1e-3,
    dirac=1e-4,
    mask=1e-5,
    sample=6.0,
    growth=1e3,
)


def default_tolerances(dtype: str, overrides: Mapping[str, float] | None = None) -> Tolerances:
    """The limits for "float64" or "float32", with `overrides` by name.

    >>> default_tolerances("float64", {"psd": 1e-10}).psd
    1e-10
    """
    defaults = _DOUBLE if dtype == "float64" else _SINGLE
    for name in overrides or {}:
        if not hasattr(defaults, name):
            known = [field.name for field in dataclasses.fields(Tolerances)]
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"`tolerances` has no limit {name!r}{hint} It has {', '.join(known)}.")
    return dataclasses.replace(defaults, **{name: float(limit) for name, limit in (overrides or {}).items()})
