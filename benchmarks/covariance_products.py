"""Products with the square roots of covariances at 1024x1024, beside the bare operations that they are made of.

Claims, in single precision after compilation: a Matérn L χ takes at most 3 times a bare pair of Fourier transforms of
the field, and diffusion around land at most 20 times, normalised to 1 % in less than a minute; Kronecker, low-rank and
ensemble L χ at most 1.5 times the bare matrix products (for a localised ensemble those are one pair of transforms and
one product for each member).

Both sides are called in turn in one process, so that what disturbs one disturbs the other; the ratio is that of the
medians. Rows `L` are L χ, rows `L^T` are Lᵀ v.

To add a covariance: a function from the size to a `Case`, and a line in `CASES`. What else is claimed of it goes into
`extra`, a function that returns names and numbers. (`--quick` runs a size at which the calls cost more than the work.)
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import harness

MEMBERS, MODES, LEVELS = 20, 20, 8
LENGTH = 20.0
PATTERNS = 64
"""Of the normalisation of diffusion."""

REPEATS_EACH = 5
"""How many products make one repeat: a single one is too short to time on a busy machine."""


class Case(NamedTuple):
    """`bare(control)` and `bare_transposed(field)` do the bare work of L χ and Lᵀ v."""

    covariance: Any
    bare: Callable
    bare_transposed: Callable
    target: float
    extra: Callable[[], dict] = dict


def transforms(field):
    """One bare pair of Fourier transforms of the last two axes."""
    import jax.numpy as jnp

    return jnp.fft.irfftn(jnp.fft.rfftn(field, axes=(-2, -1)), s=field.shape[-2:], axes=(-2, -1))


def matern(size: int, boundary: str = "periodic") -> Case:
    from vardax.covariances import MaternLinearOperator

    covariance = MaternLinearOperator((size, size), LENGTH, boundary=boundary)
    crop = lambda control: transforms(control[:size, :size])  # noqa: E731
    return Case(covariance, crop, transforms, 3.0)


def diffusion(size: int, length: float = LENGTH) -> Case:
    """An eighth of the domain is land: a continent with a bay, and islands."""
    import time

    import jax
    import numpy as np

    from vardax.covariances import DiffusionCovariance, Randomised
    from vardax.types import Grid

    y, x = np.mgrid[0:size, 0:size] / size
    land = (np.hypot(y - 0.4, x - 0.6) < 0.22) & ~((abs(y - 0.4) < 0.03) & (x > 0.6))
    islands = (np.hypot((8 * y) % 1 - 0.5, (8 * x) % 1 - 0.5) < 0.08) & (x < 0.3)
    grid = Grid([np.arange(float(size)), np.arange(float(size))], mask=~(land | islands))
    build = lambda: DiffusionCovariance(grid, length, Randomised(PATTERNS))  # noqa: E731
    start = time.perf_counter()
    covariance = jax.block_until_ready(build())
    seconds = time.perf_counter() - start
    numbers = {
        "steps": covariance.steps,
        "normalisation_s": round(seconds, 1),
        "normalisation_error": round(float(covariance.normalisation_error), 4),
    }
    return Case(covariance, transforms, transforms, 20.0, lambda: numbers)


def kronecker(size: int) -> Case:
    import jax.numpy as jnp

    from vardax.covariances import KroneckerCovariance

    a, b = _dense(size, 10.0), _dense(size, 30.0)
    first, second = a.factor, b.factor
    return Case(
        KroneckerCovariance(a, b),
        lambda control: jnp.linalg.multi_dot([first, control, second.T]),
        lambda field: jnp.linalg.multi_dot([first.T, field, second]),
        1.5,
    )


def kronecker_levels(size: int) -> Case:
    """A dense covariance of levels times a Matérn one of each."""
    import jax.numpy as jnp

    from vardax.covariances import KroneckerCovariance, MaternLinearOperator

    vertical = _dense(LEVELS, 2.0)
    L = vertical.factor
    return Case(
        KroneckerCovariance(vertical, MaternLinearOperator((size, size), LENGTH)),
        lambda control: jnp.tensordot(L, transforms(control), axes=1),
        lambda field: transforms(jnp.tensordot(L.T, field, axes=1)),
        1.5,
    )


def low_rank(size: int) -> Case:
    import jax.numpy as jnp

    from vardax.covariances import LowRankCovariance

    factor = _noise((size, size, MODES))
    flat = factor.reshape(-1, MODES)
    return Case(LowRankCovariance(factor), lambda c: factor @ c, lambda field: jnp.ravel(field) @ flat, 1.5)


def ensemble(size: int) -> Case:
    import jax.numpy as jnp

    from vardax.covariances import LocalizedEnsembleCovariance

    covariance = LocalizedEnsembleCovariance(_noise((MEMBERS, size, size)), None)
    anomalies = covariance.anomalies.reshape(MEMBERS, -1)
    return Case(covariance, lambda c: c @ anomalies, lambda field: anomalies @ jnp.ravel(field), 1.5)


def localised_ensemble(size: int) -> Case:
    import jax
    import jax.numpy as jnp

    from vardax.covariances import LocalizedEnsembleCovariance, MaternLinearOperator

    covariance = LocalizedEnsembleCovariance(_noise((MEMBERS, size, size)), MaternLinearOperator((size, size), LENGTH))
    anomalies = covariance.anomalies

    def bare(control):
        add = lambda total, pair: (total + pair[0] * transforms(pair[1]), None)  # noqa: E731
        return jax.lax.scan(add, jnp.zeros_like(anomalies[0]), (anomalies, control))[0]

    return Case(covariance, bare, lambda field: jax.lax.map(lambda a: transforms(a * field), anomalies), 1.5)


def hybrid(size: int) -> Case:
    from vardax.covariances import HybridCovariance

    static, flow = matern(size), ensemble(size)
    return Case(
        HybridCovariance(static.covariance, flow.covariance, (0.5, 0.5)),
        lambda control: static.bare(control[0]) + flow.bare(control[1]).reshape(size, size),
        lambda field: (static.bare_transposed(field), flow.bare_transposed(field)),
        3.0,
    )


def block_diagonal(size: int) -> Case:
    from vardax.covariances import BlockDiagonalCovariance

    block = matern(size)
    return Case(
        BlockDiagonalCovariance({"u": block.covariance, "v": block.covariance}),
        lambda control: {name: transforms(part) for name, part in control.items()},
        lambda field: {name: transforms(part) for name, part in field.items()},
        3.0,
    )


def scaled(size: int) -> Case:
    from vardax.covariances import ScaledCovariance

    block = matern(size)
    return Case(ScaledCovariance(1 + _noise((size, size)) ** 2, block.covariance), transforms, transforms, 3.0)


CASES: dict[str, Callable[[int], Case]] = {
    "matern, periodic": matern,
    "matern, free": lambda size: matern(size, "free"),
    "diffusion, land": diffusion,
    "diffusion, land, length 10": lambda size: diffusion(size, LENGTH / 2),
    "kronecker, dense x dense": kronecker,
    "kronecker, dense x matern": kronecker_levels,
    "low rank": low_rank,
    "ensemble": ensemble,
    "ensemble, localised": localised_ensemble,
    "hybrid": hybrid,
    "block diagonal": block_diagonal,
    "scaled": scaled,
}


def main() -> None:
    options = harness.arguments(__doc__, case=tuple(CASES))
    if options.case:
        measure(options)
        return
    rows = []
    for case in CASES:
        flags = [f"--case={case}", f"--repeats={options.repeats}", *(["--quick"] if options.quick else [])]
        rows.extend(harness.in_fresh_process(__file__, *flags)["rows"])
        harness.print_table(rows[-1:])
    print()
    harness.print_table(rows)
    if not options.quick:
        print(harness.save("covariance_products", rows))


def measure(options) -> None:
    """Both sides of one case, in turn, and the case's extra claims."""
    import equinox as eqx
    import jax

    size = 64 if options.quick else 1024
    case = CASES[options.case](size)
    root = case.covariance.half()
    control, field = (
        jax.tree.map(lambda s: jax.random.normal(jax.random.key(0), s.shape, s.dtype), structure)
        for structure in (root.in_structure(), root.out_structure())
    )
    several = lambda function, x: [function(x) for _ in range(REPEATS_EACH)]  # noqa: E731
    arrays, rest = eqx.partition(root, eqx.is_array)
    ours = jax.jit(lambda arrays, x: eqx.combine(arrays, rest).mv(x))
    ours_transposed = jax.jit(lambda arrays, x: eqx.combine(arrays, rest).transpose().mv(x))
    bare, bare_transposed = jax.jit(case.bare), jax.jit(case.bare_transposed)
    sides = {
        "ours": lambda: several(lambda x: ours(arrays, x), control),
        "bare": lambda: several(bare, control),
        "ours, transposed": lambda: several(lambda x: ours_transposed(arrays, x), field),
        "bare, transposed": lambda: several(bare_transposed, field),
    }
    seconds = harness.alternately(sides, options.repeats)
    rows = []
    for product, ending in (("L", ""), ("L^T", ", transposed")):
        mine, theirs = seconds["ours" + ending], seconds["bare" + ending]
        ratio = mine["run_s"] / theirs["run_s"]
        row = {
            "case": options.case,
            "product": product,
            "size": size,
            "ours_ms": round(1e3 * mine["run_s"] / REPEATS_EACH, 3),
            "bare_ms": round(1e3 * theirs["run_s"] / REPEATS_EACH, 3),
            "ratio": round(ratio, 2),
            "target": case.target,
            "met": ratio <= case.target,
            "compile_s": mine["compile_s"],
        }
        also = case.extra() if product == "L" else {}
        rows.append(row | {"also": ", ".join(f"{name} {value}" for name, value in also.items())})
    harness.report({"rows": rows})


def _noise(shape: tuple[int, ...]):
    import jax

    return jax.random.normal(jax.random.key(1), shape)


def _dense(size: int, length: float):
    import numpy as np

    from vardax.covariances import DenseCovariance

    lag = np.abs(np.subtract.outer(np.arange(size), np.arange(size)))
    return DenseCovariance(np.exp(-lag / length).astype("float32"))


if __name__ == "__main__":
    main()
