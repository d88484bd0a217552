"""Independent blocks: variables, instruments, times; against the dense block-diagonal matrix."""

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
import scipy.linalg

from vardax.covariances.block_diagonal import BlockDiagonalCovariance
from vardax.covariances.block_restriction import BatchedRestriction, JoinedRestriction
from vardax.covariances.dense import DenseCovariance
from vardax.covariances.diagonal import DiagonalCovariance
from vardax.covariances.factors import unravel
from vardax.covariances.functions import restrict
from vardax.covariances.matern import MaternLinearOperator
from vardax.covariances.sizes import RESTRICT_LIMIT
from vardax.dynamics.discrete import DiscreteForward
from vardax.minimisers.products_form import solve_by_products
from vardax.models.optimal_interpolation import OptimalInterpolation
from vardax.models.strong_fourdvar import StrongFourDVar
from vardax.obs_operators.callable import CallableObs
from vardax.obs_operators.linear import LinearObs
from vardax.types import Batch1D

EXACT = 1e-11 if jnp.zeros(0).dtype == jnp.float64 else 5e-5
SHAPE = (3, 4)


def spd(n: int, seed: int = 0) -> np.ndarray:
    a = np.random.default_rng(seed).normal(size=(n, n))
    return a @ a.T / n + np.eye(n)


def dense(n, seed=0, **options):
    return DenseCovariance(spd(n, seed), **options)


def diagonal(shape):
    return DiagonalCovariance(np.random.default_rng(3).uniform(0.5, 2.0, shape))


# (the covariance, the matrix of its ravelled fields)
FORMS = {
    "stacked": lambda: (
        BlockDiagonalCovariance(dense(12, shape=SHAPE), MaternLinearOperator(SHAPE, 1.5), diagonal(SHAPE)),
        [spd(12), np.asarray(MaternLinearOperator(SHAPE, 1.5).as_matrix()), np.asarray(diagonal(SHAPE).as_matrix())],
    ),
    "stacked alike": lambda: (BlockDiagonalCovariance(dense(5, 1), dense(5, 2)), [spd(5, 1), spd(5, 2)]),
    "one block": lambda: (BlockDiagonalCovariance(dense(5)), [spd(5)]),
    "dictionary": lambda: (
        BlockDiagonalCovariance({"u": dense(12, shape=SHAPE), "h": 2.0 * dense(3, 1)}),
        [2.0 * spd(3, 1), spd(12)],
    ),
    "nested": lambda: (
        BlockDiagonalCovariance((dense(2), [BlockDiagonalCovariance({"a": dense(3)}), diagonal(2)])),
        [spd(2), spd(3), np.asarray(diagonal(2).as_matrix())],
    ),
    "joined": lambda: (
        BlockDiagonalCovariance(dense(5), diagonal(1), dense(2, 1), joined_along=0),
        [spd(5), np.asarray(diagonal(1).as_matrix()), spd(2, 1)],
    ),
}
every_form = pytest.mark.parametrize("name", FORMS)


def noise(structure, seed=0):
    return unravel(
        jax.random.normal(jax.random.key(seed), (sum(s.size for s in jax.tree.leaves(structure)),)), structure
    )


@every_form
def test_it_is_the_block_diagonal_matrix(name, equals_matrix):
    covariance, blocks = FORMS[name]()
    equals_matrix(covariance, scipy.linalg.block_diag(*blocks))


@pytest.mark.x64
@every_form
def test_inverse_and_determinant_are_those_of_the_blocks(name, inverts_matrix):
    covariance, blocks = FORMS[name]()
    inverts_matrix(covariance, scipy.linalg.block_diag(*blocks))


def test_samples_have_the_form_of_the_fields():
    for name in ("stacked alike", "dictionary", "joined"):
        covariance = FORMS[name]()[0]
        shapes = jax.tree.map(lambda leaf: (2, *leaf.shape), covariance.in_structure())
        assert jax.tree.map(jnp.shape, covariance.sample(jax.random.key(0), 2)) == shapes


def test_the_form_of_the_blocks_is_the_form_of_the_fields():
    shapes = {name: FORMS[name]()[0].shape for name in FORMS}
    assert shapes == {
        "stacked": (3, *SHAPE),
        "stacked alike": (2, 5),
        "one block": (1, 5),
        "dictionary": {"u": SHAPE, "h": (3,)},
        "nested": ((2,), [{"a": (3,)}, (2,)]),
        "joined": (8,),
    }
    controls = {name: FORMS[name]()[0].half().in_structure() for name in ("dictionary", "joined")}
    assert set(controls["dictionary"]) == {"u", "h"}
    assert [s.shape for s in controls["joined"]] == [(5,), (1,), (2,)]


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_blocks_are_joined_along_any_axis(axis):
    shapes = [(2, 4), (5, 4)] if axis == 0 else [(3, 1), (3, 4)]
    blocks = [dense(int(np.prod(shape)), shape=shape) for shape in shapes]
    covariance = BlockDiagonalCovariance(*blocks, joined_along=axis)
    fields = [noise(block.in_structure(), seed) for seed, block in enumerate(blocks)]
    found = covariance.mv(jnp.concatenate(fields, axis=axis))
    expected = jnp.concatenate([block.mv(v) for block, v in zip(blocks, fields, strict=True)], axis=axis)
    np.testing.assert_allclose(found, expected, atol=EXACT)
    matrix, flat = np.asarray(covariance.as_matrix()), np.ravel(jnp.concatenate(fields, axis=axis))
    np.testing.assert_allclose(matrix @ flat, np.ravel(expected), atol=10 * EXACT)


def test_it_is_diagonal_where_all_blocks_are():
    diagonals = BlockDiagonalCovariance(diagonal(3), lx.DiagonalLinearOperator(jnp.ones(3)))
    assert lx.is_diagonal(diagonals)
    assert not lx.is_diagonal(BlockDiagonalCovariance(diagonal(3), dense(3)))
    v = jnp.arange(6.0).reshape(2, 3)
    solution = lx.linear_solve(diagonals, v, lx.AutoLinearSolver(well_posed=True)).value
    np.testing.assert_allclose(diagonals.mv(solution), v, atol=EXACT)


@pytest.mark.x64
def test_gradients_reach_the_blocks(equals_differences):
    v = jnp.cos(jnp.arange(12.0)).reshape(2, 6)

    def quadratic(parameters):
        length, sigma = parameters
        blocks = MaternLinearOperator((6,), length, 1.3), DiagonalCovariance(jnp.full(6, sigma**2))
        covariance = BlockDiagonalCovariance(*blocks)
        return jnp.vdot(v, covariance.mv(v)) + sum(jnp.sum(part**3) for part in covariance.half().T.mv(v))

    equals_differences(quadratic, (jnp.asarray(1.5), jnp.asarray(0.7)))


# -- as R ------------------------------------------------------------------------------------------------------------

RESTRICTED = {
    "stacked": JoinedRestriction,
    "stacked alike": BatchedRestriction,
    "one block": BatchedRestriction,
    "joined": JoinedRestriction,
}


@pytest.mark.parametrize("with_std", [False, True])
@pytest.mark.parametrize("name", RESTRICTED)
def test_it_marginalises_block_by_block(name, with_std):
    covariance, blocks = FORMS[name]()
    matrix, mask = scipy.linalg.block_diag(*blocks), np.arange(covariance.in_size()) % 3 != 1
    std = None
    if with_std:
        std = np.linspace(0.5, 2.0, matrix.shape[0])
        matrix = matrix * np.outer(std, std) / np.sqrt(np.outer(np.diag(matrix), np.diag(matrix)))
        std = np.where(mask, std, np.nan).reshape(covariance.shape)
    r = noise(covariance.in_structure())
    restricted = restrict(covariance, mask.reshape(covariance.shape), std=std)
    assert isinstance(restricted, RESTRICTED[name])
    seen, flat = np.ix_(mask, mask), np.ravel(r)[mask]
    expected = np.linalg.solve(matrix[seen], flat)
    np.testing.assert_allclose(np.ravel(restricted.solve(r))[mask], expected, atol=10 * EXACT)
    np.testing.assert_allclose(jnp.sum(restricted.whiten(r) ** 2), flat @ expected, rtol=100 * EXACT)
    np.testing.assert_allclose(np.ravel(restricted.mv(r))[mask], matrix[seen] @ flat, atol=10 * EXACT)
    np.testing.assert_allclose(restricted.logdet(), np.linalg.slogdet(matrix[seen])[1], rtol=100 * EXACT)
    for member in (restricted.solve, restricted.whiten, restricted.mv):
        assert not np.any(np.ravel(member(jnp.where(mask.reshape(r.shape), r, jnp.nan)))[~mask])


def test_the_limit_is_on_the_blocks_and_not_on_r():
    """24 blocks of 30 are more than `RESTRICT_LIMIT`, and are factorised in one batch."""
    matrices = np.stack([spd(30, seed) for seed in range(24)])
    covariance = BlockDiagonalCovariance(*map(DenseCovariance, matrices))
    assert covariance.in_size() > RESTRICT_LIMIT
    r = noise(covariance.in_structure())
    restricted = covariance.restrict(jnp.ones((24, 30)))
    assert restricted.part.factor.shape == (24, 30, 30)
    np.testing.assert_allclose(restricted.solve(r), np.linalg.solve(matrices, r[..., None])[..., 0], atol=10 * EXACT)


@pytest.mark.x64
@pytest.mark.slow
def test_a_block_that_is_too_large_is_refused_by_name_and_solved_by_products():
    n = RESTRICT_LIMIT + 1
    R = BlockDiagonalCovariance(
        MaternLinearOperator(n, 3.0) + DiagonalCovariance(np.ones(n)), diagonal(4), joined_along=0
    )
    with pytest.raises(ValueError, match=rf"AddLinearOperator.restrict: a correlated R of {n} entries .* dual solver"):
        R.restrict(jnp.ones(n + 4))
    root = np.random.default_rng(1).normal(size=(n + 4, 20)) / 5
    B, H, d = dense(20), lx.MatrixLinearOperator(jnp.asarray(root)), jnp.sin(jnp.arange(n + 4.0))
    mask = jnp.asarray(np.arange(n + 4) % 5 != 0, float)
    solve = eqx.filter_jit(lambda R: solve_by_products(B, B.half(), H, R, d * mask, mask, tol=1e-10, max_steps=500))
    seen = np.asarray(mask) != 0
    H_seen, R_seen = root[seen], np.asarray(R.as_matrix())[np.ix_(seen, seen)]
    cross = spd(20) @ H_seen.T
    expected = cross @ np.linalg.solve(H_seen @ cross + R_seen, np.asarray(d)[seen])
    np.testing.assert_allclose(solve(R).increment, expected, atol=1e-8)


def test_instruments_of_different_sizes_reach_the_analysis():
    """Three instruments with errors of their own in one vector of observations, the second one correlated; also where
    the observations bring their own standard deviations."""
    R = BlockDiagonalCovariance(diagonal(2), dense(3, 4), DiagonalCovariance([0.1]), joined_along=0)
    H, x_b, B = np.random.default_rng(0).normal(size=(6, 4)), np.ones(4), spd(4, 9)
    y, sigma = np.array([[1.0, np.nan, 0.3, -1.0, np.nan, 2.0]]), np.linspace(0.5, 1.5, 6)
    matrix = np.asarray(R.as_matrix(), float)
    scale = sigma / np.sqrt(np.diag(matrix))
    for obs_err, R_matrix in ((None, matrix), (sigma[None], matrix * np.outer(scale, scale))):
        batch = Batch1D.from_observations(y[None], obs_err=None if obs_err is None else obs_err[None])
        found = OptimalInterpolation(LinearObs(H), x_b, DenseCovariance(B), R)(batch)
        seen = np.isfinite(y[0])
        G, R_seen = H[seen], R_matrix[np.ix_(seen, seen)]
        expected = x_b + B @ G.T @ np.linalg.solve(G @ B @ G.T + R_seen, y[0, seen] - G @ x_b)
        np.testing.assert_allclose(found[0], expected, rtol=1e-9 if EXACT < 1e-8 else 1e-4)


def stack_of_variances(matrices):
    variance = np.stack([np.diag(matrix) for matrix in matrices])
    return DiagonalCovariance(variance), [np.diag(row) for row in variance]


R_OF_TIME = {
    "block": lambda matrices: (BlockDiagonalCovariance(*map(DenseCovariance, matrices)), matrices),
    "diagonal": stack_of_variances,
    "kinds": lambda matrices: (
        BlockDiagonalCovariance(DiagonalCovariance(np.diag(matrices[0])), *map(DenseCovariance, matrices[1:])),
        [np.diag(np.diag(matrices[0])), *matrices[1:]],
    ),
}


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.slow if kind != "block" else ()) for kind in R_OF_TIME]
)
def test_r_may_change_from_time_to_time(kind):
    """An R on the whole window, one block per entry, through 4D-Var: the dense analysis, gaps included."""
    rng = np.random.default_rng(7)
    M, H, B, x_b = np.linalg.qr(rng.normal(size=(4, 4)))[0], rng.normal(size=(3, 4)), spd(4, 2), rng.normal(size=4)
    R, matrices = R_OF_TIME[kind]([(1 + t) * spd(3, t) for t in range(3)])
    y = rng.normal(size=(2, 3, 3))
    y[0, 1, 0] = y[1, 2, 2] = y[1, 0, 1] = np.nan
    step = DiscreteForward(lambda x: jnp.asarray(M, x.dtype) @ x, dt=1.0)
    tol = 1e-10 if EXACT < 1e-8 else None
    model = StrongFourDVar(step, LinearObs(H), x_b, DenseCovariance(B), R, tol=tol)
    found = model(Batch1D.from_observations(y))
    G = np.concatenate([H @ np.linalg.matrix_power(M, t) for t in range(3)])
    stacked = scipy.linalg.block_diag(*matrices)
    for analysis, observed in zip(found, y.reshape(2, 9), strict=True):
        seen = np.isfinite(observed)
        S = G[seen] @ B @ G[seen].T + stacked[np.ix_(seen, seen)]
        expected = x_b + B @ G[seen].T @ np.linalg.solve(S, observed[seen] - G[seen] @ x_b)
        np.testing.assert_allclose(analysis, expected, atol=1e-7 if EXACT < 1e-8 else 1e-3)


def test_a_pytree_is_no_r():
    tree = BlockDiagonalCovariance({"a": dense(2), "b": dense(3)})
    with pytest.raises(TypeError, match="BlockDiagonalCovariance.restrict: the fields are pytrees"):
        restrict(tree, jnp.ones(5))
    model = OptimalInterpolation(CallableObs(lambda x: x), jnp.zeros(5), dense(5), tree)
    with pytest.raises(TypeError, match=r"`obs_cov_op` acts on a pytree.*`BlockDiagonalCovariance\(R_1, R_2, joined"):
        model(Batch1D.from_observations(jnp.ones((1, 5))))


# -- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: BlockDiagonalCovariance(), ValueError, "there are no blocks"),
        (lambda: BlockDiagonalCovariance({}), ValueError, "there are no blocks"),
        (
            lambda: BlockDiagonalCovariance(np.eye(2), np.eye(2)),
            TypeError,
            r"`blocks\[0\]` is ndarray.*DenseCovariance",
        ),
        (lambda: BlockDiagonalCovariance({"u": jnp.eye(2)}), TypeError, r"`blocks\[0\]` is .*Array.*DenseCovariance"),
        (lambda: BlockDiagonalCovariance(dense(2), dense(3)), ValueError, r"\[\(2,\), \(3,\)\].*`joined_along=`"),
        (
            lambda: BlockDiagonalCovariance(dense(2), lx.MatrixLinearOperator(jnp.ones((2, 3)))),
            ValueError,
            r"`blocks\[1\]` takes .* expected a covariance",
        ),
        (
            lambda: BlockDiagonalCovariance(dense(2), dense(3), joined_along=1),
            ValueError,
            "`joined_along` is 1, expected",
        ),
        (
            lambda: BlockDiagonalCovariance(dense(2), dense(4, shape=(2, 2)), joined_along=0),
            ValueError,
            "expected shapes that differ only along axis 0",
        ),
        (
            lambda: BlockDiagonalCovariance([dense(2)], joined_along=0),
            ValueError,
            "`joined_along` goes with blocks given",
        ),
        (
            lambda: BlockDiagonalCovariance(dense(2), BlockDiagonalCovariance({"a": dense(2)})),
            ValueError,
            "a block acts on a pytree",
        ),
        (
            lambda: BlockDiagonalCovariance(*(DiagonalCovariance([1.0], dtype=d) for d in ("float32", "float16"))),
            ValueError,
            "blocks have the dtypes float16, float32",
        ),
    ],
)
def test_bad_blocks_are_refused(make, error, words):
    with pytest.raises(error, match=words):
        make()


def test_bad_values_of_batched_blocks_are_refused():
    ones = DenseCovariance(np.ones((3, 3)))
    with pytest.raises(ValueError, match="R between the observed entries is not positive definite"):
        BlockDiagonalCovariance(ones, ones).restrict(jnp.ones((2, 3)))
    with pytest.raises(ValueError, match="of 2 observed entries is zero"):
        BlockDiagonalCovariance(DiagonalCovariance([0.0, 1.0]), DiagonalCovariance([0.0, 0.0])).restrict(
            [[1, 1], [1, 0]]
        )
    with pytest.raises(ValueError, match=r"`mask` has shape \(3,\), expected \(2, 3\)"):
        BlockDiagonalCovariance(dense(3), dense(3)).restrict(jnp.ones(3))
    with pytest.raises(ValueError, match="`vector` is .* expected"):
        BlockDiagonalCovariance({"u": dense(3)}).mv(jnp.ones(3))
