"""Every exported covariance is one: `covariance_test` on all of them, odd and even sizes, in one to three dimensions.

A class joins by being exported from `vardax.covariances`; the test of the recipes then asks for examples of it.
"""

import inspect

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

import vardax.covariances
from vardax.covariances import (
    AbstractCovariance,
    AbstractNormalisation,
    BalancedCovariance,
    BlockDiagonalCovariance,
    ConcatenatedFactor,
    DenseCovariance,
    DenseFactor,
    DiagonalCovariance,
    DiffusionCovariance,
    Exact,
    HybridCovariance,
    KroneckerCovariance,
    LocalizedEnsembleCovariance,
    LowRankCovariance,
    MaternLinearOperator,
    Randomised,
    RepeatedCovariance,
    ScaledCovariance,
    TransposedFactor,
    gaspari_cohn,
)
from vardax.covariances import functions as of_any
from vardax.covariances.factors import ravel, unravel
from vardax.types import Grid
from vardax.validation import adjoint_test, covariance_test

EXPORTED = [getattr(vardax.covariances, name) for name in vardax.covariances.__all__]
CLASSES = [cls for cls in EXPORTED if isinstance(cls, type) and not cls.__name__.startswith("Abstract")]

DTYPE = jnp.result_type(float).name  # float64, and float32 where the suite runs without x64


def array(values, dtype):
    return jnp.asarray(values, dtype)


def noise(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def correlated(n, length=3.0, nugget=0.1):
    d = np.abs(np.subtract.outer(np.arange(n), np.arange(n)))
    return np.exp(-((d / length) ** 2)) + nugget * np.eye(n)


def blocks_of(n, dtype):
    """Dense covariances of four cells."""
    return [DenseCovariance(array((1 + k) * correlated(4, 1.0 + k), dtype)) for k in range(n)]


def taper(n, dtype, c=2.5):
    """The correlation of Gaspari and Cohn along an axis of n cells."""
    distance = np.abs(np.subtract.outer(np.arange(n), np.arange(n)))
    return DenseCovariance(gaspari_cohn(array(distance, dtype), c))


def diffusion(shape, length, dtype, *, land=0.0, periodic=(), **options):
    """Diffusion on unit cells, with a share of land."""
    mask = np.random.default_rng(0).random(shape) >= land
    grid = Grid([np.arange(n) for n in shape], mask=mask, periodic=periodic)
    return DiffusionCovariance(grid, length, dtype=dtype, **options)


def ensemble(n, shape, dtype, localization):
    return LocalizedEnsembleCovariance(array(noise((n, *shape)), dtype), localization)


def diagonal_field(dtype):
    return DiagonalCovariance(array(1 + noise((3, 4)) ** 2, dtype))


def structure(shape, dtype):
    return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))


# Examples of each exported class, by name: what it is made of is up to the class, how it is tested is not.
RECIPES = {
    "DiagonalCovariance": {
        "one": lambda dtype: DiagonalCovariance(array([4.0], dtype)),
        "twelve orders of magnitude": lambda dtype: DiagonalCovariance(array(np.logspace(-6, 6, 200), dtype)),
        "a known entry": lambda dtype: DiagonalCovariance(array([1.0, 0.0, 2.0], dtype)),
        "three axes": lambda dtype: DiagonalCovariance(array(1 + noise((3, 4, 5)) ** 2, dtype)),
    },
    "DenseCovariance": {
        "one": lambda dtype: DenseCovariance(array([[2.0]], dtype)),
        "vector": lambda dtype: DenseCovariance(array(correlated(31), dtype)),
        "ill-conditioned": lambda dtype: DenseCovariance(array(correlated(60, 9.0, 0.0), dtype)),
        "fields": lambda dtype: DenseCovariance(array(correlated(12), dtype), shape=(3, 4)),
        "singular": lambda dtype: DenseCovariance(array(np.ones((5, 5)), dtype)),
    },
    "MaternLinearOperator": {
        "1-D, one cell": lambda dtype: MaternLinearOperator(1, 0.5, dtype=dtype),
        "1-D, two cells": lambda dtype: MaternLinearOperator((2,), 1.5, 0.3, dtype=dtype),
        "1-D, odd, periodic": lambda dtype: MaternLinearOperator((41,), 5.0, 2.0, nu=0.5, dtype=dtype),
        "1-D, even, periodic": lambda dtype: MaternLinearOperator((200,), 12.0, 1e3, nu=1.5, dtype=dtype),
        "1-D, odd, free": lambda dtype: MaternLinearOperator((41,), 5.0, nu=2.5, boundary="free", dtype=dtype),
        "1-D, even, free": lambda dtype: MaternLinearOperator((40,), 40.0, nu=0.5, boundary="free", dtype=dtype),
        "1-D, Gaussian, periodic": lambda dtype: MaternLinearOperator((50,), 6.0, nu=np.inf, dtype=dtype),
        "1-D, Gaussian, free": lambda dtype: MaternLinearOperator((50,), 6.0, nu=np.inf, boundary="free", dtype=dtype),
        "1-D, shorter than a cell": lambda dtype: MaternLinearOperator((30,), 0.2, nu=1.5, dtype=dtype),
        "2-D, periodic, anisotropic": lambda dtype: MaternLinearOperator((8, 11), (2.0, 4.0), 0.5, 1.5, dtype=dtype),
        "2-D, free": lambda dtype: MaternLinearOperator((7, 10), 2.0, boundary="free", spacing=(1.0, 0.5), dtype=dtype),
        "2-D, mixed": lambda dtype: MaternLinearOperator((9, 6), 1.5, boundary=("free", "periodic"), dtype=dtype),
        "3-D, periodic": lambda dtype: MaternLinearOperator((4, 5, 6), 1.5, dtype=dtype),
        "3-D, free": lambda dtype: MaternLinearOperator((3, 4, 5), 1.0, boundary="free", dtype=dtype),
        "on a grid": lambda dtype: MaternLinearOperator(
            Grid([0.5 * np.arange(12), np.arange(7)], periodic=(0,)), 1.2, 3.0, dtype=dtype
        ),
        "too large for a matrix": lambda dtype: MaternLinearOperator((30, 31), 4.0, nu=2.5, dtype=dtype),
    },
    "BlockDiagonalCovariance": {
        "stacked, alike": lambda dtype: BlockDiagonalCovariance(*(blocks_of(3, dtype))),
        "joined along the last axis": lambda dtype: BlockDiagonalCovariance(
            MaternLinearOperator((4, 3), 1.0, dtype=dtype),
            DiagonalCovariance(array(1 + noise((4, 2)) ** 2, dtype)),
            joined_along=-1,
        ),
        "dictionary": lambda dtype: BlockDiagonalCovariance(
            {
                "pressure": MaternLinearOperator((4, 5), 1.5, 1e3, boundary="free", dtype=dtype),
                "humidity": [DiagonalCovariance(array([1e-6, 4e-6], dtype)), blocks_of(1, dtype)[0]],
            }
        ),
    },
    "RepeatedCovariance": {
        "correlated": lambda dtype: RepeatedCovariance(DenseCovariance(array(correlated(5), dtype)), 4),
        "pytree": lambda dtype: RepeatedCovariance(
            BlockDiagonalCovariance({"p": taper(3, dtype), "q": DiagonalCovariance(array([2.0, 3.0], dtype))}), 3
        ),
    },
    "RepeatedFactor": {
        "correlated": lambda dtype: RepeatedCovariance(DenseCovariance(array(correlated(5), dtype)), 4).half()
    },
    "KroneckerCovariance": {
        "three kinds": lambda dtype: KroneckerCovariance(
            DiagonalCovariance(array([1e-3, 1e3], dtype)),
            MaternLinearOperator((3, 4), 1.0, boundary="free", dtype=dtype),
            blocks_of(1, dtype)[0],
        ),
        "a sum as a factor": lambda dtype: KroneckerCovariance(
            MaternLinearOperator(5, 1.0, dtype=dtype) + DiagonalCovariance(array(np.ones(5), dtype)), taper(4, dtype)
        ),
    },
    "ScaledCovariance": {
        "field": lambda dtype: ScaledCovariance(
            array(np.logspace(-3, 3, 30).reshape(5, 6), dtype), MaternLinearOperator((5, 6), 1.5, dtype=dtype)
        ),
        "a known cell": lambda dtype: ScaledCovariance(array([1.0, 0.0, 2.0, 1.0], dtype), taper(4, dtype)),
        "pytree": lambda dtype: ScaledCovariance(
            {"p": array(1e5, dtype), "q": array([1e-3, 2e-3], dtype)},
            BlockDiagonalCovariance({"p": taper(5, dtype), "q": DiagonalCovariance(array([1.0, 1.0], dtype))}),
        ),
    },
    "LowRankCovariance": {
        "fields": lambda dtype: LowRankCovariance(array(noise((5, 6, 4)), dtype)),
        "pytree": lambda dtype: LowRankCovariance(
            {"p": array(1e4 * noise((3, 2, 4)), dtype), "q": array(1e-4 * noise((5, 4)), dtype)}
        ),
    },
    "LocalizedEnsembleCovariance": {
        "separable": lambda dtype: ensemble(5, (4, 5), dtype, KroneckerCovariance(taper(4, dtype), taper(5, dtype))),
        "by place": lambda dtype: ensemble(
            6, (2, 3, 8), dtype, MaternLinearOperator(8, 1.0, boundary="free", dtype=dtype)
        ),
        "not localised": lambda dtype: ensemble(5, (4, 5), dtype, None),
        "one member": lambda dtype: ensemble(1, (4,), dtype, taper(4, dtype)),
        "pytree": lambda dtype: LocalizedEnsembleCovariance(
            {"p": array(1e4 * noise((7, 2, 5)), dtype), "q": array(1e-4 * noise((7, 5), 1), dtype)}, taper(5, dtype)
        ),
    },
    "HybridCovariance": {
        "static and localised": lambda dtype: HybridCovariance(
            MaternLinearOperator((4, 5), 1.5, dtype=dtype),
            ensemble(5, (4, 5), dtype, MaternLinearOperator((4, 5), 1.0, boundary="free", dtype=dtype)),
            (0.5, 0.5),
        ),
        "weights that are fields": lambda dtype: HybridCovariance(
            taper(6, dtype), ensemble(4, (6,), dtype, taper(6, dtype)), (array(np.linspace(0, 1, 6), dtype), 0.2)
        ),
    },
    "BalancedCovariance": {
        "matrix": lambda dtype: BalancedCovariance(array(noise((9, 9)), dtype), taper(9, dtype)),
        "regression": lambda dtype: BalancedCovariance(
            lambda x: {"psi": x["psi"], "T": x["T"] + 0.4 * x["psi"]},
            BlockDiagonalCovariance(
                {"psi": MaternLinearOperator((3, 4), 1.5, dtype=dtype), "T": diagonal_field(dtype)}
            ),
        ),
    },
    "KroneckerFactor": {
        "padded": lambda dtype: RECIPES["KroneckerCovariance"]["three kinds"](dtype).half(),
        "a sum": lambda dtype: RECIPES["KroneckerCovariance"]["a sum as a factor"](dtype).half(),
    },
    "ScaledFactor": {"pytree": lambda dtype: RECIPES["ScaledCovariance"]["pytree"](dtype).half()},
    "LowRankFactor": {"pytree": lambda dtype: RECIPES["LowRankCovariance"]["pytree"](dtype).half()},
    "EnsembleFactor": {
        name: lambda dtype, name=name: RECIPES["LocalizedEnsembleCovariance"][name](dtype).half()
        for name in ("by place", "not localised", "pytree")
    },
    "BalancedFactor": {"regression": lambda dtype: RECIPES["BalancedCovariance"]["regression"](dtype).half()},
    "BlockFactor": {
        "stacked": lambda dtype: BlockDiagonalCovariance(*blocks_of(3, dtype)).half(),
        "dictionary": lambda dtype: BlockDiagonalCovariance(
            {"u": MaternLinearOperator((4,), 1.5, boundary="free", dtype=dtype), "v": blocks_of(1, dtype)[0]}
        ).half(),
    },
    "BatchedRestriction": {
        "gaps": lambda dtype: BlockDiagonalCovariance(*blocks_of(3, dtype)).restrict(noise((3, 4)) > 0),
        "nothing observed": lambda dtype: BlockDiagonalCovariance(*blocks_of(2, dtype)).restrict(np.zeros((2, 4))),
    },
    "JoinedRestriction": {
        "gaps": lambda dtype: BlockDiagonalCovariance(
            *blocks_of(2, dtype), DiagonalCovariance(array([1.0, 9.0], dtype)), joined_along=0
        ).restrict(noise(10) > 0),
        "nothing observed": lambda dtype: BlockDiagonalCovariance(*blocks_of(2, dtype), joined_along=0).restrict(
            np.zeros(8)
        ),
    },
    "DiffusionCovariance": {
        "1-D, one cell": lambda dtype: diffusion((1,), 0.5, dtype),
        "1-D, even, periodic": lambda dtype: diffusion((40,), 5.0, dtype, periodic=(0,), sigma=2.0),
        "2-D, odd, land": lambda dtype: diffusion((9, 11), 2.0, dtype, land=0.3, sigma=1 + noise((9, 11)) ** 2),
        "2-D, lengths vary": lambda dtype: diffusion((8, 9), 1 + noise((8, 9)) ** 2 / 4, dtype, periodic=(1,)),
        "2-D, slanted": lambda dtype: diffusion((7, 8), np.array([[2.0, 0.7], [0.7, 1.0]]), dtype, land=0.2),
        "3-D": lambda dtype: diffusion((3, 4, 5), (1.0, 1.5, 1.5), dtype, land=0.2),
    },
    "DenseFactor": {"vector": lambda dtype: DenseFactor(array(noise((6, 6)), dtype), structure((6,), dtype))},
    "TransposedFactor": {
        "dense": lambda dtype: TransposedFactor(DenseFactor(array(noise((6, 6)), dtype), structure((2, 3), dtype)))
    },
    "ConcatenatedFactor": {
        "dense and diagonal": lambda dtype: ConcatenatedFactor(
            (
                DenseFactor(array(noise((6, 6)), dtype), structure((6,), dtype)),
                lx.DiagonalLinearOperator(array(noise(6), dtype)),
            )
        )
    },
    "SpectralFactor": {
        "periodic": lambda dtype: MaternLinearOperator((9,), 2.0, dtype=dtype).half(),
        "free": lambda dtype: MaternLinearOperator((6, 7), 2.0, boundary="free", dtype=dtype).half(),
    },
    "DiffusionFactor": {"land": lambda dtype: diffusion((6, 7), 1.5, dtype, land=0.3).half()},
    "ChebyshevExponential": {"land": lambda dtype: diffusion((6, 7), 1.5, dtype, land=0.3).smoothing},
    "Stencil": {"land": lambda dtype: diffusion((6, 7), 1.5, dtype, land=0.3).smoothing.stencil},
    "Exact": {"": lambda dtype: Exact()},
    "Randomised": {"": lambda dtype: Randomised(49)},
    "DiagonalRestriction": {
        "gaps": lambda dtype: DiagonalCovariance(array(1 + noise(9) ** 2, dtype)).restrict(noise(9) > 0),
        "nothing observed": lambda dtype: DiagonalCovariance(array([1.0, 2.0], dtype)).restrict([0, 0]),
    },
    "DenseRestriction": {
        "gaps": lambda dtype: DenseCovariance(array(correlated(9), dtype)).restrict(noise(9) > 0),
        "nothing observed": lambda dtype: DenseCovariance(array(correlated(2), dtype)).restrict([0, 0]),
        "other deviations": lambda dtype: DenseCovariance(array(correlated(9), dtype)).restrict(
            noise(9) > 0, std=array(1 + noise(9) ** 2, dtype)
        ),
    },
}


def examples(kind):
    """The recipe of every example whose class is of this kind; all but the first of a covariance in the slow step."""
    return [
        pytest.param(recipe, id=f"{cls.__name__}-{name}", marks=[pytest.mark.slow] if is_covariance(cls) and i else [])
        for cls in CLASSES
        if kind(cls)
        for i, (name, recipe) in enumerate(RECIPES.get(cls.__name__, {}).items())
    ]


def is_covariance(cls):
    return issubclass(cls, AbstractCovariance)


def is_restriction(cls):
    return cls.__name__.endswith("Restriction")


def is_linear_map(cls):
    return issubclass(cls, lx.AbstractLinearOperator) and not is_covariance(cls)


def is_normalisation(cls):
    return issubclass(cls, AbstractNormalisation)


def test_every_exported_class_has_examples_and_is_of_a_known_kind():
    assert {cls.__name__ for cls in CLASSES} == set(RECIPES)
    kinds = (is_covariance, is_restriction, is_linear_map, is_normalisation)
    strange = [cls.__name__ for cls in CLASSES if not any(kind(cls) for kind in kinds)]
    assert not strange, f"no contract is known for {strange}"
    assert all(not inspect.isabstract(cls) and issubclass(cls, eqx.Module) for cls in CLASSES)


@pytest.mark.parametrize("recipe", examples(is_covariance))
def test_a_covariance_is_one(recipe):
    covariance = recipe(DTYPE)
    report = covariance_test(covariance)
    assert report, str(report)
    expected = {"symmetric", "positive semidefinite", "Dirac, peak", "diagonal", "square root", "samples"}
    assert expected <= {row.name for row in report.rows}


@pytest.mark.parametrize("recipe", examples(is_covariance))
def test_float32_stays_float32(recipe):
    covariance = recipe("float32")
    field, half = covariance.in_structure(), covariance.half()
    results = [
        jax.eval_shape(covariance.mv, field),
        jax.eval_shape(half.mv, half.in_structure()),
        jax.eval_shape(half.T.mv, field),
        jax.eval_shape(covariance.diagonal),
        jax.eval_shape(lambda: covariance.sample(jax.random.key(0), 2)),
    ]
    assert {leaf.dtype.name for leaf in jax.tree.leaves((field, *results))} == {"float32"}


@pytest.mark.parametrize("recipe", examples(is_covariance))
def test_the_matrix_is_that_of_the_products_and_gradients_are_finite(recipe):
    covariance, dtype = recipe(DTYPE), DTYPE
    size = covariance.in_size()
    matrix = np.asarray(covariance.as_matrix(), np.float64)
    v = unravel(array(noise(size, 3), dtype), covariance.in_structure())
    tolerance = 1e-11 if dtype == "float64" else 1e-4
    scale = np.sqrt(np.maximum(np.diagonal(matrix), np.finfo(dtype).tiny))
    found, expected = np.asarray(ravel(covariance.mv(v)), np.float64), matrix @ np.asarray(ravel(v), np.float64)
    np.testing.assert_allclose(found / scale, expected / scale, atol=tolerance * np.sqrt(size) * np.max(scale))
    arrays, rest = eqx.partition(covariance, eqx.is_inexact_array)
    quadratic = lambda arrays: jnp.vdot(ravel(v), ravel(eqx.combine(arrays, rest).mv(v)))  # noqa: E731
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(jax.grad(quadratic)(arrays)))


@pytest.mark.parametrize("recipe", examples(is_linear_map))
def test_a_factor_has_the_transpose_it_promises(recipe):
    report = adjoint_test(recipe(DTYPE))
    assert report, str(report)


@pytest.mark.parametrize("recipe", examples(is_normalisation))
def test_a_normalisation_gives_the_variance_that_it_states(recipe):
    covariance = diffusion((14, 15), 3.0, DTYPE, land=0.15, sigma=2.0, normalisation=recipe(DTYPE))
    found, stated = np.diag(np.asarray(covariance.as_matrix())), np.ravel(covariance.diagonal())
    error = float(covariance.normalisation_error)
    assert error < 0.05
    sea = stated > 0
    assert np.sqrt(np.mean((found[sea] / stated[sea] - 1) ** 2)) <= 3 * error + 1e-5
    assert np.all(found[~sea] == 0)


@pytest.mark.parametrize("recipe", examples(is_restriction))
def test_a_restriction_is_made_of_linear_maps_that_missing_entries_do_not_enter(recipe):
    restricted = recipe(DTYPE)
    r = array(noise(restricted.mask.shape, 5), DTYPE)
    for member in (restricted.whiten, restricted.solve, restricted.mv):
        report = adjoint_test(member, r)
        assert report, str(report)
        filled = member(jnp.where(restricted.mask != 0, r, jnp.nan))
        np.testing.assert_array_equal(filled, member(r))
        assert np.all(np.asarray(filled)[np.asarray(restricted.mask) == 0] == 0)
    for member in (restricted.solve, restricted.mv):  # symmetric: each is its own adjoint
        assert adjoint_test((member, member), r)
    if not np.any(np.asarray(restricted.mask)):
        assert restricted.logdet() == 0


# One example of every class, the last of its recipes.
LAST = {
    cls.__name__: list(RECIPES[cls.__name__].values())[-1]
    for cls in CLASSES
    if is_covariance(cls) and cls.__name__ in RECIPES
}
every_class = pytest.mark.parametrize("name", LAST)


@every_class
def test_a_covariance_goes_through_jit_and_vmap_and_keeps_its_structure(name):
    covariance = LAST[name](DTYPE)
    fields = covariance.in_structure()
    stack = jax.vmap(lambda row: unravel(row, fields))(array(noise((3, covariance.in_size())), DTYPE))
    tags = []

    @jax.jit
    def together(operator, stack):
        tags.append((lx.is_positive_semidefinite(operator), lx.is_symmetric(operator), lx.is_diagonal(operator)))
        return jax.vmap(operator.mv)(stack)

    found = jax.vmap(ravel)(together(covariance, stack))
    assert tags == [(True, True, lx.is_diagonal(covariance))]
    for i, row in enumerate(found):
        alone = ravel(covariance.mv(jax.tree.map(lambda leaf, i=i: leaf[i], stack)))
        np.testing.assert_allclose(row, alone, rtol=1e-4, atol=1e-5 * float(jnp.max(jnp.abs(alone))) + 1e-30)


# GMRES does not converge over many orders of magnitude, so these classes solve with another example.
EVEN = {
    "BlockDiagonalCovariance": "stacked, alike",
    "LowRankCovariance": "fields",
    "LocalizedEnsembleCovariance": "separable",
}


@every_class
@pytest.mark.x64
def test_lineax_solves_with_a_covariance(name):
    """(D + B) x = b under jit, D the variances: by conjugate gradients, GMRES, and what lineax chooses itself."""
    covariance = RECIPES[name][EVEN[name]](DTYPE) if name in EVEN else LAST[name](DTYPE)
    fields = covariance.in_structure()
    spread = jax.tree.map(lambda d: jnp.where(d > 0, d, jnp.ones_like(d)), covariance.diagonal())
    one_array = isinstance(fields, jax.ShapeDtypeStruct)
    noise_of = (
        DiagonalCovariance if one_array else lambda d: BlockDiagonalCovariance(jax.tree.map(DiagonalCovariance, d))
    )
    total = covariance + noise_of(spread)
    scale = np.sqrt(np.asarray(ravel(spread)))
    b = unravel(jnp.asarray(noise(covariance.in_size()) * scale), fields)
    matrix = (np.asarray(covariance.as_matrix()) + np.diag(scale**2)) / np.outer(scale, scale)
    expected = np.linalg.solve(matrix, np.asarray(ravel(b)) / scale)

    @jax.jit
    def solve(total, b):
        solvers = {"CG": lx.CG(1e-10, 1e-10), "GMRES": lx.GMRES(1e-10, 1e-10), "auto": lx.AutoLinearSolver(None)}
        return {key: lx.linear_solve(total, b, solver, throw=False).value for key, solver in solvers.items()}

    for key, solution in solve(total, b).items():
        np.testing.assert_allclose(np.asarray(ravel(solution)) * scale, expected, atol=1e-6, err_msg=key)


B = correlated(8)
ANY_OPERATOR = {
    "identity": lambda dtype: lx.IdentityLinearOperator(structure((5,), dtype)),
    "diagonal": lambda dtype: lx.DiagonalLinearOperator(array([1.0, 4.0, 9.0], dtype)),
    "matrix": lambda dtype: lx.MatrixLinearOperator(array(B, dtype), lx.positive_semidefinite_tag),
    "untagged": lambda dtype: lx.MatrixLinearOperator(array(B, dtype)),
    "function": lambda dtype: lx.FunctionLinearOperator(
        lambda v: array(B, dtype) @ v, structure((8,), dtype), lx.positive_semidefinite_tag
    ),
    "scaled": lambda dtype: lx.MatrixLinearOperator(array(B, dtype)) * 3.0,
    "divided": lambda dtype: DenseCovariance(array(B, dtype)) / 7.0,
    "sum": lambda dtype: DenseCovariance(array(B, dtype)) + DiagonalCovariance(array(np.arange(8.0), dtype)),
    "sandwich": lambda dtype: (
        lx.DiagonalLinearOperator(array(1 + np.arange(8.0), dtype))
        @ DenseCovariance(array(B, dtype))
        @ lx.DiagonalLinearOperator(array(1 + np.arange(8.0), dtype))
    ),
    "low rank": lambda dtype: (
        lx.MatrixLinearOperator(array(noise((8, 3)), dtype)) @ lx.MatrixLinearOperator(array(noise((8, 3)).T, dtype))
    ),
    "tagged": lambda dtype: lx.TaggedLinearOperator(
        DenseCovariance(array(B, dtype)) + DenseCovariance(array(B, dtype)), lx.positive_semidefinite_tag
    ),
    "pytree diagonal": lambda dtype: lx.DiagonalLinearOperator(
        {"p": array([1e8, 4e8], dtype), "q": array([[1e-4, 2e-4]], dtype)}
    ),
}


@pytest.mark.parametrize("name", ANY_OPERATOR)
def test_the_functions_make_a_covariance_of_any_operator(name):
    """`half`, `diagonal`, `inv_mv` and `logdet` of an operator that vardax did not make belong together."""
    op = ANY_OPERATOR[name](DTYPE)
    promises = {"half": of_any.half(op), "diagonal": of_any.diagonal(op)}
    if name != "low rank":  # it has no inverse, and says so
        promises |= {"inverse": lambda v: of_any.inv_mv(op, v), "logdet": of_any.logdet(op)}
    report = covariance_test(op, **promises)
    assert report, str(report)
    assert "square root" in {row.name for row in report.rows}


def test_the_inverse_of_what_has_none_is_refused_by_name():
    op = ANY_OPERATOR["low rank"]("float32")
    with pytest.raises(ValueError, match=r"inv_mv: `op` is .*semidefinite.*no inverse"):
        of_any.inv_mv(op, jnp.ones(8, jnp.float32))
    with pytest.raises(ValueError, match=r"logdet: `op` is .*semidefinite.*no inverse"):
        of_any.logdet(op)


@pytest.mark.parametrize("recipe", examples(is_covariance) + examples(is_linear_map))
def test_it_comes_back_from_a_registry(recipe, comes_back):
    comes_back(lambda: recipe(DTYPE))
