"""The diffusion operator on a masked grid, by finite volumes: A = V⁻¹ S, that is −½ ∇·(Λ ∇), no flux into land.

Cells have volumes V (areas in two dimensions), and Λ is the tensor of squared lengths in each. S comes from the energy

    uᵀ S u = ½ Σ_cells V · mean over the corners of  gᵀ Λ g

where the gradient g at a corner of a cell is made of the differences across the faces that meet there, zero across
closed faces (land, the rim of the domain). A sum of squares: S is symmetric positive semidefinite for every mask, for
every tensor and on every orthogonal grid, and A is self-adjoint for the inner product with V. Without off-diagonal
elements S couples neighbours across faces only; with them also cells across a corner, by way of sea.

    (S u)_i = Σ_j w_ij (u_i − u_j)

The pairs (i, j) of one direction are the cells of two equal boxes of the grid, the near and the far ends; on a periodic
axis the pairs across the seam have boxes of their own.
"""

import dataclasses
import functools
import itertools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from vardax.covariances.factors import AbstractFactor

__all__ = ["Pairs", "Stencil", "diffusion_stencil"]

Range = tuple[int, int]
Squares = dict[tuple[int, int], Array]


@functools.partial(jax.tree_util.register_dataclass, data_fields=["weight"], meta_fields=["near", "far"])
@dataclasses.dataclass(frozen=True)
class Pairs:
    """Pairs of cells, their near and far ends in two boxes of equal shape, and their weights, an array."""

    weight: Any  # JAX puts other things than arrays into the leaves of a pytree
    near: tuple[Range, ...]
    far: tuple[Range, ...]

    def flux(self, field: Float[Array, "..."]) -> Float[Array, "..."]:
        """w (u_near − u_far)."""
        return self.weight * (_cells(field, self.near) - _cells(field, self.far))

    def add(self, total: Float[Array, "..."], at_near: Array, at_far: Array) -> Float[Array, "..."]:
        """`total` with what each pair gives to its ends."""
        if 2 * at_near.size > total.size:
            return total + (_padded(at_near, self.near, total.shape) + _padded(at_far, self.far, total.shape))
        return total.at[_slices(self.near)].add(at_near).at[_slices(self.far)].add(at_far)


class Stencil(AbstractFactor):
    """S, symmetric, and the volumes V, which broadcast to the shape of a field."""

    pairs: tuple[Pairs, ...]
    volume: Float[Array, "..."]
    shape: tuple[int, ...] = eqx.field(static=True)

    def mv(self, vector: Float[Array, "..."]) -> Float[Array, "..."]:
        """S u."""
        total = jnp.zeros_like(vector)
        for pairs in self.pairs:
            flux = pairs.flux(vector)
            total = pairs.add(total, flux, -flux)
        return total

    def transpose_mv(self, vector: Float[Array, "..."]) -> Float[Array, "..."]:
        return self.mv(vector)

    def in_structure(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(self.shape, self.volume.dtype)

    def out_structure(self) -> jax.ShapeDtypeStruct:
        return self.in_structure()

    def times(self, factor: Float[Array, ""]) -> "Stencil":
        """The stencil of factor · S."""
        scaled = tuple(Pairs(factor * pairs.weight, pairs.near, pairs.far) for pairs in self.pairs)
        return Stencil(scaled, self.volume, self.shape)

    def bound(self) -> Float[Array, ""]:
        """No eigenvalue of V⁻¹ S is larger: the largest sum of absolute values in a row (Gershgorin)."""
        rows = jnp.zeros(self.shape, self.volume.dtype)
        for pairs in self.pairs:
            both = pairs.weight + jnp.abs(pairs.weight)
            rows = pairs.add(rows, both, both)
        return jnp.max(rows / self.volume)


@functools.partial(jax.jit, static_argnames="periodic")
def diffusion_stencil(
    squares: Squares,
    sizes: tuple[Float[Array, "..."], ...],
    volume: Float[Array, "..."],
    mask: Bool[Array, "..."],
    periodic: tuple[int, ...],
) -> tuple[Stencil, Float[Array, ""]]:
    """S for squared lengths Λ, and the bound of its spectrum.

    `squares[a, b]` is Λ_ab, a <= b; an element that is not there is zero. `sizes` are the cell sizes along each axis.
    They, the squares and `volume` broadcast to the shape of `mask`.
    """
    shape = mask.shape
    energy = {axes: jnp.broadcast_to(volume * square / 2, shape) for axes, square in squares.items()}
    faces = {axis: _neighbours(n, axis in periodic) for axis, n in enumerate(shape) if n > 1}
    inverse, weights = {}, {}
    for axis, sides in faces.items():
        size = jnp.broadcast_to(sizes[axis], shape)
        for number, (near, far) in enumerate(sides):
            at = lambda field, axis=axis, near=near, far=far: (_along(field, axis, near), _along(field, axis, far))  # noqa: E731
            distance, sea = sum(at(size)) / 2, functools.reduce(jnp.logical_and, at(mask))
            inverse[axis, number] = jnp.where(sea, 1 / distance, jnp.zeros_like(distance))
            weights[axis, number] = sum(at(energy[axis, axis])) / 2 * inverse[axis, number] ** 2
    across_corners = []
    for a, b in itertools.combinations(faces, 2):
        if (a, b) in energy:
            for i, j in itertools.product(range(len(faces[a])), range(len(faces[b]))):
                across_corners += _corner_pairs(energy[a, b], inverse, weights, faces, (a, i), (b, j))
    across_faces = [_pairs(weights[axis, k], shape, {axis: faces[axis][k]}) for axis, k in weights]
    stencil = Stencil((*across_faces, *across_corners), volume, shape)
    return stencil, stencil.bound()


def _corner_pairs(energy, inverse, weights, faces, first, second) -> list[Pairs]:
    """The off-diagonal element Λ_ab, at the corners where faces of two axes meet.

    The four cells around a corner, numbered by their sides p and q of the faces along a and b, each have the product
    t (u_A − u_i)(u_B − u_i) of the differences to their neighbours A, B in the energy. That is
    t/2 ((u_A − u_i)² + (u_B − u_i)² − (u_A − u_B)²): it changes the `weights` of faces, and couples A with B.
    """
    (a, _), (b, _) = first, second
    (rows, columns), t = (faces[a][first[1]], faces[b][second[1]]), {}
    for p, q in itertools.product((0, 1), repeat=2):
        cell = _along(_along(energy, a, rows[p]), b, columns[q])
        slopes = _along(inverse[first], b, columns[q]) * _along(inverse[second], a, rows[p])
        t[p, q] = (1 if p == q else -1) / 2 * cell * slopes
    for side in (0, 1):
        for face, axis, ends, change in (
            (first, b, columns, t[0, side] + t[1, side]),
            (second, a, rows, t[side, 0] + t[side, 1]),
        ):
            region = tuple(slice(*ends[side]) if k == axis else slice(None) for k in range(energy.ndim))
            weights[face] = weights[face].at[region].add(change / 2)
    crossing = {a: rows, b: columns[::-1]}
    return [
        _pairs(-(t[1, 0] + t[0, 1]) / 2, energy.shape, {a: rows, b: columns}),
        _pairs(-(t[0, 0] + t[1, 1]) / 2, energy.shape, crossing),
    ]


def _neighbours(n: int, wraps: bool) -> list[tuple[Range, Range]]:
    """The cells on both sides of the faces of an axis; the face across the seam by itself."""
    inside = [((0, n - 1), (1, n))]
    return [*inside, ((n - 1, n), (0, 1))] if wraps else inside


def _pairs(weight: Array, shape: tuple[int, ...], ends: dict[int, tuple[Range, Range]]) -> Pairs:
    near, far = (tuple(ends[axis][end] if axis in ends else (0, n) for axis, n in enumerate(shape)) for end in (0, 1))
    return Pairs(weight, near, far)


def _along(field: Array, axis: int, cells: Range) -> Array:
    return jax.lax.slice_in_dim(field, *cells, axis=axis)


def _slices(box: tuple[Range, ...]) -> tuple[slice, ...]:
    return tuple(slice(*cells) for cells in box)


def _cells(field: Array, box: tuple[Range, ...]) -> Array:
    return field[_slices(box)]


def _padded(values: Array, box: tuple[Range, ...], shape: tuple[int, ...]) -> Array:
    """A field with `values` in a box and zero elsewhere."""
    widths = [(start, n - stop, 0) for (start, stop), n in zip(box, shape, strict=True)]
    return jax.lax.pad(values, np.zeros((), values.dtype), widths)
