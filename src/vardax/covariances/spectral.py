"""Stationary covariances on a periodic box, by fast Fourier transform.

On a box of P cells that closes on itself a stationary covariance is a convolution: the discrete Fourier transform turns
B into the multiplication with its eigenvalues λ(k), the transform of one row of B. Hence

    B v = F⁻¹ λ F v,        B^{1/2} χ = F⁻¹ √λ F χ,

one real transform forth and one back each. A row of B is the correlation function summed over the periodic images of
the box, ρ_P(d) = Σ_m ρ(d + m P); its eigenvalues are non-negative because those of ρ are (Poisson's summation formula).

A box that does not close on itself is cut out of a larger periodic one: B = E B_P Eᵀ with E the cropping, so
B^{1/2} = E B_P^{1/2} on a control of the size of the padded box, and the variance is σ² up to the boundary (circulant
embedding; Dietrich and Newsam, SIAM J. Sci. Comput. 18, 1997).
"""

import functools
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float

from vardax.covariances.correlations import matern_of_square, matern_reach
from vardax.covariances.diagonal import safe_sqrt
from vardax.covariances.factors import AbstractFactor, require_structure

__all__ = [
    "SpectralFactor",
    "apply_spectrum",
    "circulant_approximation",
    "matern_amplitude",
    "periodic_matern",
    "spectral_mean",
    "spectral_weights",
    "to_field",
    "to_modes",
]

Shape = tuple[int, ...]


class SpectralFactor(AbstractFactor):
    """L = E F⁻¹ a F: multiply the spectrum of the control by `amplitude` and crop to the field.

    The control is a field on the periodic (padded) box `domain`. Both products cost one real transform forth and one
    back. Without padding L is symmetric.
    """

    amplitude: Float[Array, "..."]
    shape: Shape = eqx.field(static=True)
    domain: Shape = eqx.field(static=True)

    def mv(self, vector: Float[Array, "..."]) -> Float[Array, "..."]:
        require_structure("SpectralFactor", "control", vector, self.in_structure())
        return apply_spectrum(self.amplitude, vector, self.domain, self.shape)

    def transpose_mv(self, vector: Float[Array, "..."]) -> Float[Array, "..."]:
        require_structure("SpectralFactor", "field", vector, self.out_structure())
        return apply_spectrum(self.amplitude, vector, self.domain, self.domain)

    def in_structure(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(self.domain, self.amplitude.dtype)

    def out_structure(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(self.shape, self.amplitude.dtype)


def apply_spectrum(
    spectrum: Float[Array, "..."], vector: Float[Array, "..."], domain: Shape, shape: Shape
) -> Float[Array, "..."]:
    """F⁻¹ `spectrum` F on the box `domain`: `vector` is padded with zeros, the result cropped to `shape`."""
    modes = to_modes(vector, domain)
    product = to_field(jax.lax.complex(spectrum * modes.real, spectrum * modes.imag), domain)
    return product if shape == domain else product[tuple(slice(n) for n in shape)]


def to_modes(field: Float[Array, "..."], domain: Shape) -> Complex[Array, "..."]:
    """`rfftn` on the box `domain`, of a field that is padded with zeros.

    XLA's CPU transforms work on row-major arrays only, but do not tell the compiler: next to a triangular solve, which
    likes columns, the program would fail when it runs. Hence `_row_major`.
    """
    padded = jnp.pad(field, [(0, size - n) for n, size in zip(field.shape, domain, strict=True)])
    return _row_major(jnp.fft.rfftn(padded))


def to_field(modes: Complex[Array, "..."], domain: Shape) -> Float[Array, "..."]:
    """`irfftn`: modes of the box `domain`, in the layout of `rfftn`, to the field on it; see `to_modes`."""
    return _row_major(jnp.fft.irfftn(modes, s=domain))


def _row_major(array: Array) -> Array:
    """`array`, which the compiler must see as a reshaped vector: rows first. Costs nothing between other operations.

    (`jax.experimental.layout.with_layout_constraint` loses a part of gradients through `jit` in JAX 0.10.)
    """
    return jax.lax.optimization_barrier(jnp.ravel(array)).reshape(array.shape)


def spectral_weights(domain: Shape) -> np.ndarray:
    """How many modes of the full transform each column of the real transform stands for: 1, 2, ..., 2, 1."""
    weights = np.full(domain[-1] // 2 + 1, 2.0)
    weights[0] = 1.0
    if domain[-1] % 2 == 0:
        weights[-1] = 1.0
    return weights.reshape((1,) * (len(domain) - 1) + (-1,))


def spectral_mean(values: Float[Array, "..."], domain: Shape) -> Float[Array, ""]:
    """The mean over all modes of a function of the eigenvalues, such as tr(B)/n for the eigenvalues themselves."""
    return jnp.sum(jnp.asarray(spectral_weights(domain), values.dtype) * values) / math.prod(domain)


def circulant_approximation(row: Float[Array, "..."], domain: Shape, shape: Shape) -> Float[Array, "..."]:
    """Eigenvalues (`rfftn` layout of `shape`) of the periodic covariance on the unpadded box that is closest to B.

    `row` is the first row of B on the padded box. Along each free axis of n cells the covariance at lag d becomes
    ((n − d) c(d) + d c(n − d)) / n. T. Chan, SIAM J. Sci. Stat. Comput. 9, 1988: positive definite when B is.
    """
    for axis, (n, size) in enumerate(zip(shape, domain, strict=True)):
        if n != size:
            lag = np.arange(n)
            weight = np.asarray(lag / n, row.dtype).reshape((-1,) + (1,) * (row.ndim - axis - 1))
            near, far = jnp.take(row, lag, axis=axis), jnp.take(row, (n - lag) % size, axis=axis)
            weight = jnp.broadcast_to(weight, near.shape)
            row = (1 - weight) * near + weight * far
    return jnp.fft.rfftn(row).real


@functools.partial(jax.jit, static_argnums=(0, 1))
def matern_amplitude(
    domain: Shape, nu: float, cells: Float[Array, "axes"], sigma: Float[Array, ""]
) -> Float[Array, "..."]:
    """√λ of the periodic Matérn covariance, in the layout of `rfftn`; `cells` are the lengths in cells.

    Eigenvalues that are zero up to the rounding of the transform count as zero, and the rest is rescaled to a mean of
    exactly σ², which is the variance.
    """
    eigenvalues = jnp.fft.rfftn(periodic_matern(domain, nu, cells)).real
    rounding = float(jnp.finfo(cells.dtype).eps) * max(1.0, math.log2(math.prod(domain)))
    floor = rounding * jnp.sqrt(spectral_mean(jax.lax.stop_gradient(eigenvalues) ** 2, domain))
    eigenvalues = jnp.where(eigenvalues > floor, eigenvalues, jnp.zeros_like(eigenvalues))
    return sigma * safe_sqrt(eigenvalues / spectral_mean(eigenvalues, domain))


def periodic_matern(domain: Shape, nu: float, cells: Float[Array, "axes"]) -> Float[Array, "..."]:
    """ρ_P on the whole box: the first row of B / σ², before rescaling."""
    corner = _image_sum(domain, nu, cells)
    for axis, size in enumerate(domain):
        mirror = np.minimum(np.arange(size), size - np.arange(size))
        corner = jnp.take(corner, mirror, axis=axis)
    return corner


def _sum_images(domain: Shape, nu: float, cells: Float[Array, "axes"]) -> Float[Array, "..."]:
    """Σ_m ρ(d + m P) for d from 0 to P/2 on each axis, over all images within the reach of ρ."""
    dtype, ndim = cells.dtype, len(domain)
    reach = matern_reach(nu, float(jnp.finfo(dtype).eps) / 16)
    most = [0 if size == 1 else math.floor(reach + 0.5) for size in domain]
    needed = jnp.floor(reach * jax.lax.stop_gradient(cells) / np.array(domain, dtype) + 0.5).astype(int)
    needed = jnp.clip(needed, 0, jnp.array(most, needed.dtype))
    counts = 2 * needed + 1

    def add_image(number: Array, total: Array) -> Array:
        square = jnp.zeros((1,) * ndim, dtype)
        for axis in reversed(range(ndim)):
            image = (number % counts[axis] - needed[axis]).astype(dtype)
            number = number // counts[axis]
            distance = (jnp.arange(domain[axis] // 2 + 1, dtype=dtype) + image * domain[axis]) / cells[axis]
            square = square + (distance**2).reshape((1,) * axis + (-1,) + (1,) * (ndim - axis - 1))
        return total + matern_of_square(square, nu)

    return jax.lax.fori_loop(0, jnp.prod(counts), add_image, jnp.zeros([size // 2 + 1 for size in domain], dtype))


_image_sum = jax.custom_jvp(_sum_images, nondiff_argnums=(0, 1))


@_image_sum.defjvp
def _image_sum_jvp(domain: Shape, nu: float, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    """The number of images depends on the lengths, so the loop is differentiated forwards, whatever the caller does."""
    sensitivity = jax.jacfwd(functools.partial(_sum_images, domain, nu))(*primals)
    return _image_sum(domain, nu, *primals), jnp.tensordot(sensitivity, tangents[0], axes=1)
