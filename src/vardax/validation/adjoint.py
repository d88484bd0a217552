"""Is the adjoint the transpose of the tangent?

    <A u, v> = <u, Aᵀ v>    for all u and v

Both sides are formed with white noise u and v. Their difference is a random number as large as the parts of A in which
the two disagree, so a single component with a wrong sign among n shows as about 1/√n of the whole, and rounding stays
at rounding whatever the size. States of several arrays are checked array by array as well, in units of each array, so
that a small variable does not hide behind a large one.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import PyTree

from vardax.validation.linearised import Linearised, linearised, title_of
from vardax.validation.report import Check, ValidationReport
from vardax.validation.spaces import Space, generator, relative_error
from vardax.validation.tolerances import Tolerances, default_tolerances

__all__ = ["adjoint_rows", "adjoint_test", "linear_row"]


def adjoint_test(
    op: Any,
    state: PyTree = None,
    *,
    key: Any = None,
    n_probes: int = 3,
    tolerances: Mapping[str, float] | None = None,
) -> ValidationReport:
    """The dot-product test of `op` at `state`, <F'(x) u, v> = <u, F'(x)ᵀ v>, and the linearity of F'(x).

    `op` is a matrix, a lineax operator, an observation operator, a forward model (one step), a function that JAX
    differentiates, a triple `(function(x), tangent(x, dx), adjoint(x, dy))`, or a pair `(A, A_transposed)` of linear
    callables. `state` is where to linearise; linear operators with a structure of their own do without.

    >>> import jax.numpy as jnp
    >>> matrix = jnp.array([[1.0, 2.0], [3.0, 4.0]])
    >>> bool(adjoint_test((lambda x: matrix @ x, lambda y: matrix.T @ y), jnp.ones(2)))
    True
    """
    lin = linearised(op, state)
    limits = default_tolerances(coarsest(lin.inputs, lin.outputs), tolerances)
    rows = lin.structure_rows()
    notes: tuple[str, ...] = ()
    if all(row.passed for row in rows):
        rng = generator(key)
        rows += (linear_row(lin, rng, limits),)
        if lin.adjoint is None:
            notes = ("the object has a tangent of its own but no adjoint, so the adjoint was not checked.",)
        else:
            rows += adjoint_rows(lin, rng, limits, n_probes)
    return ValidationReport(title_of("adjoint_test", op), rows, notes)


def coarsest(*spaces: Space) -> str:
    """The coarsest precision that occurs."""
    return "float32" if any(space.precision == "float32" for space in spaces) else "float64"


def linear_row(lin: Linearised, rng: np.random.Generator, limits: Tolerances, name: str = "tangent is linear") -> Check:
    """A(u + 2v) = Au + 2Av; a constant that was left in, or a tangent that depends on dx twice, breaks it."""
    scale = lin.inputs.leaf_scales(lin.state)
    u, v = lin.inputs.noise(rng) * scale, lin.inputs.noise(rng) * scale
    u, v = lin.inputs.rounded(u), lin.inputs.rounded(v)
    both = lin.inputs.rounded(u + 2 * v)
    separate = lin.apply(u) + 2 * lin.apply(v)
    together = lin.apply(both)
    measured = max(relative_error(together[where], separate[where]) for where in lin.outputs.slices)
    return Check(
        name, measured, limits.linear, "the tangent is not linear in dx: a constant or a product of dx is in it"
    )


def adjoint_rows(
    lin: Linearised, rng: np.random.Generator, limits: Tolerances, n_probes: int = 3, name: str = "adjoint"
) -> tuple[Check, ...]:
    """The dot-product test with whole states, and array by array where there are several arrays."""
    if n_probes < 1:
        raise ValueError(f"`n_probes` is {n_probes}, expected at least 1.")
    probes = [_probe(lin, rng) for _ in range(n_probes)]
    worst = max((_mismatch(lin, u, v) for u, v in probes), key=_nan_first)
    meaning = (
        "the adjoint is not the transpose of the tangent; check the sign, the factor and the index of each term of "
        "the adjoint, and that both are linearised at the same state"
    )
    rows = (Check(name, worst, limits.adjoint, meaning),)
    if len(lin.inputs.names) == len(lin.outputs.names) == 1:
        return rows
    blocks = [_block_mismatch(lin, u, v, limits.adjoint) for u, v in probes]
    measured, where = max(blocks, key=lambda block: _nan_first(block[0]))
    return (*rows, Check(f"{name}, array by array", measured, limits.adjoint, f"{meaning}; worst {where}"))


def _nan_first(number: float) -> float:
    return np.inf if np.isnan(number) else number


def _probe(lin: Linearised, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """White noise in the units of the state, and in the inverse units of the result."""
    u = lin.inputs.rounded(lin.inputs.noise(rng) * lin.inputs.leaf_scales(lin.state))
    v = lin.outputs.rounded(lin.outputs.noise(rng) / lin.outputs.leaf_scales(lin.value))
    return u, v


def _mismatch(lin: Linearised, u: np.ndarray, v: np.ndarray) -> float:
    """|<Au, v> - <u, Aᵀv>| in units of what the two scatter by: the larger of |Au| and |Aᵀv|, in units of the noise."""
    forward, backward = lin.apply(u), lin.apply_adjoint(v)
    size = _scatter(lin, forward, backward)
    gap = abs(forward @ v - u @ backward)
    return float(gap / size) if size > 0 else float(gap)


def _scatter(lin: Linearised, forward: np.ndarray, backward: np.ndarray) -> float:
    in_units = np.linalg.norm(forward / lin.outputs.leaf_scales(lin.value))
    back_in_units = np.linalg.norm(backward * lin.inputs.leaf_scales(lin.state))
    return float(max(in_units, back_in_units))


def _block_mismatch(lin: Linearised, u: np.ndarray, v: np.ndarray, limit: float) -> tuple[float, str]:
    """The largest mismatch over (array of the state, array of the result), and which pair it is.

    A block that is zero up to the rounding of its neighbours is compared with these, so rounding is never a mismatch.
    """
    in_scale, out_scale = lin.inputs.leaf_scales(lin.state), lin.outputs.leaf_scales(lin.value)
    ins, outs = lin.inputs.slices, lin.outputs.slices
    forward = [lin.apply(lin.inputs.only(u, k)) for k in range(len(ins))]
    backward = [lin.apply_adjoint(lin.outputs.only(v, l)) for l in range(len(outs))]
    sizes = np.array([
        [
            max(np.linalg.norm((Au / out_scale)[out]), np.linalg.norm((Atv * in_scale)[into]))
            for out, Atv in zip(outs, backward, strict=True)
        ]
        for into, Au in zip(ins, forward, strict=True)
    ])  # fmt: skip
    gaps = np.array([
        [abs(Au[out] @ v[out] - u[into] @ Atv[into]) for out, Atv in zip(outs, backward, strict=True)]
        for into, Au in zip(ins, forward, strict=True)
    ])  # fmt: skip
    rounding = 10 * float(np.finfo(coarsest(lin.inputs, lin.outputs)).eps) / limit
    neighbours = np.maximum(np.max(sizes, axis=0)[None, :], np.max(sizes, axis=1)[:, None])
    floors = np.maximum(sizes, rounding * neighbours)
    ratios = np.where(floors > 0, gaps / np.where(floors > 0, floors, 1.0), gaps)
    k, l = np.unravel_index(int(np.argmax(np.where(np.isnan(ratios), np.inf, ratios))), ratios.shape)
    pair = f"from state{lin.inputs.names[k]} to result{lin.outputs.names[l]}"
    return float(ratios[k, l]), pair
