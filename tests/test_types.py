"""Batches, observations, grids and results: what they hold and refuse; a gap never reaches the algebra."""

import dataclasses

import equinox as eqx
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given

from vardax.types import (
    Analysis,
    Batch1D,
    Batch2D,
    Batch2DMultivar,
    Batch3D,
    CostSummary,
    CostTerms,
    Grid,
    History,
    LSTMState1D,
    LSTMState2D,
    LSTMState3D,
    Observations,
    Status,
    as_grid,
    observed_entries,
)

NAN = float("nan")
BATCHES = {
    Batch1D: (2, 3, 4),
    Batch2D: (2, 3, 4, 5),
    Batch2DMultivar: (2, 3, 2, 4, 5),
    Batch3D: (2, 3, 2, 4, 5),
}
each_batch = pytest.mark.parametrize(("batch_type", "shape"), BATCHES.items(), ids=lambda v: getattr(v, "__name__", ""))


def points(p=4, **fields):
    """p valid observations on a plane at times 0, 1, ..."""
    default = {
        "value": np.arange(p) + 1.0,
        "error": np.full(p, 0.5),
        "time": np.arange(p) * 1.0,
        "coords": np.stack([np.arange(p) * 1.0, np.arange(p) * 2.0], axis=1),
    }
    return Observations(**(default | fields))


# -- batches ---------------------------------------------------------------------------------------------------------


@each_batch
@pytest.mark.parametrize("dtype", [bool, np.int32, np.int8, np.float32])
def test_a_mask_of_any_dtype_is_stored_in_the_dtype_of_the_input(batch_type, shape, dtype):
    mask = (np.arange(np.prod(shape)).reshape(shape) % 2).astype(dtype)
    batch = batch_type(np.ones(shape, np.float32), mask)
    assert batch.mask.dtype == batch.input.dtype == jnp.float32
    np.testing.assert_array_equal(batch.mask, mask.astype(np.float32))
    np.testing.assert_array_equal(batch.input, mask.astype(np.float32))


@each_batch
def test_the_time_axis_may_be_left_out(batch_type, shape):
    single = (shape[0], *shape[2:])
    assert batch_type(np.ones(single), np.ones(single)).input.shape == single


@pytest.mark.x64
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_dtype_of_the_input_is_kept(dtype):
    batch = Batch1D(np.ones((1, 2, 3), dtype), np.ones((1, 2, 3), bool), obs_err=np.ones((1, 2, 3)))
    assert batch.input.dtype == batch.mask.dtype == batch.obs_err.dtype == dtype


def test_integers_become_the_default_float():
    assert Batch1D([[[1, 2]]], [[[1, 0]]]).input.dtype == jnp.result_type(float)


@pytest.mark.parametrize("hole", [NAN, np.inf, -np.inf])
def test_a_non_finite_entry_is_missing_and_zero(hole):
    batch = Batch1D([[[1.0, hole, 3.0]]], [[[1, 1, 0]]])
    assert batch.mask.tolist() == [[[1.0, 0.0, 0.0]]]
    assert batch.input.tolist() == [[[1.0, 0.0, 0.0]]]


def test_a_non_finite_entry_gives_no_nan_gradient():
    def loss(y):
        batch = Batch1D.from_observations(y)
        return jnp.sum(batch.mask * (batch.input - 2.0) ** 2)

    gradient = jax.grad(loss)(jnp.array([[[1.0, NAN, jnp.inf, 4.0]]]))
    assert gradient.tolist() == [[[-2.0, 0.0, 0.0, 4.0]]]


def test_a_nan_in_the_mask_is_refused():
    with pytest.raises(ValueError, match="`mask`"):
        Batch1D([[[1.0, 2.0]]], [[[1.0, NAN]]])


@each_batch
def test_from_observations_reads_the_gaps(batch_type, shape):
    y = np.ones(shape)
    y[0, 1] = NAN
    batch = batch_type.from_observations(y, target=np.zeros(shape))
    np.testing.assert_array_equal(batch.mask, np.isfinite(y))
    assert not np.isnan(batch.input).any()
    assert batch.target.shape == shape


def test_from_observations_passes_the_other_fields_on():
    batch = Batch1D.from_observations([[[1.0, NAN]]], obs_err=[[[0.5, NAN]]], instrument=[[[0, 2]]], times=[3.0])
    assert batch.n_instruments == 3
    assert batch.times.tolist() == [3.0]
    assert batch.obs_err[0, 0, 0] == 0.5
    assert np.isfinite(batch.obs_err).all()


@each_batch
@pytest.mark.parametrize("field", ["mask", "obs_err", "instrument", "target"])
def test_a_field_of_another_shape_is_refused_by_name(batch_type, shape, field):
    wrong = (shape[0] + 1, *shape[1:])
    fields = {"mask": np.ones(shape), field: np.ones(wrong, int)}
    with pytest.raises(ValueError) as error:
        batch_type(np.ones(shape), **fields)
    message = str(error.value)
    assert batch_type.__name__ in message
    assert f"`{field}`" in message
    assert str(wrong) in message
    assert str(shape) in message or "2 samples" in message


@each_batch
def test_an_input_with_a_wrong_number_of_axes_is_refused(batch_type, shape):
    wrong = (2, *shape, 2)
    with pytest.raises(ValueError, match=rf"{batch_type.__name__}: `input` has shape .*expected {len(shape)} axes"):
        batch_type(np.ones(wrong), np.ones(wrong))


def test_times_are_one_per_entry():
    with pytest.raises(ValueError, match=r"`times` has shape \(2,\), expected \(3,\)"):
        Batch1D(np.ones((1, 3, 2)), np.ones((1, 3, 2)), times=[0.0, 1.0])


@pytest.mark.parametrize("bad", [0.0, -1.0, NAN])
def test_an_observation_error_of_an_observed_entry_is_positive(bad):
    with pytest.raises(ValueError, match=r"`obs_err` must be positive; found 1 "):
        Batch1D([[[1.0, 2.0]]], [[[1, 1]]], obs_err=[[[0.5, bad]]])


def test_an_observation_error_of_a_missing_entry_does_not_matter():
    assert np.isfinite(Batch1D([[[1.0, 2.0]]], [[[1, 0]]], obs_err=[[[0.5, NAN]]]).obs_err).all()


def test_instrument_ids_are_integers_from_zero():
    with pytest.raises(TypeError, match=r"`instrument` has dtype float.*expected integer"):
        Batch1D([[[1.0]]], [[[1]]], instrument=[[[0.5]]])
    with pytest.raises(ValueError, match=r"ids 0, 1, \.\.\.; found -1"):
        Batch1D([[[1.0]]], [[[1]]], instrument=[[[-1]]])
    with pytest.raises(ValueError, match=r"id 3, but n_instruments=2"):
        Batch1D([[[1.0]]], [[[1]]], instrument=[[[3]]], n_instruments=2)


def test_complex_or_text_input_is_refused():
    with pytest.raises((TypeError, ValueError), match="`input`"):
        Batch1D(np.ones((1, 1, 2), complex), np.ones((1, 1, 2)))


def test_a_batch_is_built_under_jit_and_vmap():
    y = jnp.array([[[1.0, NAN]], [[NAN, 2.0]]])
    assert jax.jit(lambda y: Batch1D.from_observations(y).mask)(y).tolist() == [[[1.0, 0.0]], [[0.0, 1.0]]]
    assert jax.vmap(lambda y: Batch1D.from_observations(y[None]).mask)(y).tolist() == [[[[1.0, 0.0]]], [[[0.0, 1.0]]]]


def test_a_traced_instrument_needs_its_count():
    ids = jnp.array([[[0, 1]]])
    with pytest.raises(ValueError, match="pass `n_instruments`"):
        jax.jit(lambda i: Batch1D([[[1.0, 2.0]]], [[[1, 1]]], instrument=i).mask)(ids)
    traced = jax.jit(lambda i: Batch1D([[[1.0, 2.0]]], [[[1, 1]]], instrument=i, n_instruments=2).instrument)(ids)
    assert traced.tolist() == ids.tolist()


def test_every_array_of_a_batch_is_a_traced_leaf():
    batch = Batch1D(
        np.ones((1, 1, 2)), [[[True, False]]], obs_err=np.ones((1, 1, 2)), instrument=[[[0, 1]]], times=[0.0]
    )
    fields = [f.name for f in dataclasses.fields(batch) if f.name not in ("n_instruments", "target")]
    assert all(isinstance(getattr(batch, name), jax.Array) for name in fields)


def test_a_sample_keeps_its_arrays_without_the_batch_axis():
    y = np.arange(12.0).reshape(2, 3, 2)
    batch = Batch1D(y, np.ones_like(y), obs_err=np.ones_like(y), times=[0.0, 0.5, 2.0])
    sample = batch.sample(1)
    np.testing.assert_array_equal(sample.input, y[1])
    assert sample.mask.shape == sample.obs_err.shape == (3, 2)
    np.testing.assert_array_equal(sample.times, [0.0, 0.5, 2.0])


@given(st.lists(st.sampled_from([0.0, 1.5, NAN, np.inf]), min_size=1, max_size=6), st.data())
def test_the_effective_mask_is_the_mask_and_what_is_finite(values, data):
    mask = data.draw(st.lists(st.booleans(), min_size=len(values), max_size=len(values)))
    filled, effective = observed_entries(jnp.asarray(values), mask)
    expected = np.asarray(mask) & np.isfinite(values)
    np.testing.assert_array_equal(effective, expected)
    np.testing.assert_array_equal(filled, np.where(expected, values, 0.0))


# -- observations ----------------------------------------------------------------------------------------------------


def test_a_window_is_half_open():
    window = points(5).window(1.0, 3.0)
    assert window.time.tolist() == [1.0, 2.0]
    assert window.value.tolist() == [2.0, 3.0]
    assert window.coords.shape == (2, 2)


def test_a_window_remembers_when_it_starts():
    assert float(points(5).start) == 0.0
    assert float(points(5).window(1.0, 3.0).start) == 1.0
    assert float(points(5).window(1.0, 3.0).pad_to(4).start) == 1.0
    assert float(points(5, start=2.5).start) == 2.5
    assert float(jax.jit(lambda o, t: o.window(t, t + 2.0).start)(points(4), jnp.asarray(1.0))) == 1.0
    with pytest.raises(ValueError, match=r"Observations: `start` has shape \(2,\), expected \(\) \(one time\)"):
        points(3, start=[0.0, 1.0])


def test_only_points_that_were_padded_keep_their_count():
    padded = points(3).pad_to(4)
    assert padded.padded
    assert not points(3).padded
    assert not padded.window(-1.0, 9.0).padded


def test_a_window_takes_every_field_along():
    obs = points(4, instrument=[0, 1, 2, 1], aux={"kernel": np.arange(8.0).reshape(4, 2)})
    window = obs.window(1.0, 2.5)
    assert window.instrument.tolist() == [1, 2]
    assert window.aux["kernel"].tolist() == [[2.0, 3.0], [4.0, 5.0]]
    assert window.n_instruments == obs.n_instruments == 3


def test_a_window_while_tracing_keeps_the_length_and_invalidates_the_others():
    obs = points(4)
    valid = jax.jit(lambda o, t: o.window(t, t + 2.0).valid)(obs, jnp.asarray(1.0))
    assert valid.tolist() == [0.0, 1.0, 1.0, 0.0]


def test_an_empty_window_is_allowed():
    empty = points(3).window(10.0, 11.0)
    assert empty.value.shape == (0,)
    assert empty.pad_to(4).valid.tolist() == [0.0] * 4


def test_padding_adds_invalid_points_inside_the_domain():
    obs = points(3, instrument=[0, 1, 1], aux={"kernel": np.ones((3, 2))})
    padded = obs.pad_to(5)
    assert padded.valid.tolist() == [1.0, 1.0, 1.0, 0.0, 0.0]
    assert padded.aux["kernel"].shape == (5, 2)
    assert padded.n_instruments == obs.n_instruments
    assert (np.asarray(padded.error) > 0).all()
    for row in np.asarray(padded.coords[3:]):
        assert row.tolist() in np.asarray(obs.coords).tolist()


def test_padding_takes_the_smallest_bucket_that_fits():
    assert points(3).pad_to([16, 4, 8]).value.shape == (4,)
    assert points(4).pad_to(4).value.shape == (4,)


def test_padding_to_less_than_there_is_is_refused():
    with pytest.raises(ValueError, match=r"3 observations do not fit in `bucket` \[2\]"):
        points(3).pad_to(2)


def test_thirty_counts_compile_at_most_three_times(count_compilations):
    @jax.jit
    def total(obs):
        return jnp.sum(obs.value * obs.valid)

    expected = [p * (p + 1) / 2 for p in range(10, 40)]
    with count_compilations() as compiled:
        totals = [total(points(40).window(-1.0, p - 0.5).pad_to([16, 32, 64])) for p in range(10, 40)]
    np.testing.assert_allclose(totals, expected)
    assert compiled.n <= 3, compiled.names


def test_non_finite_points_are_invalid_and_zero():
    obs = points(3, value=[1.0, NAN, 3.0], valid=[1, 1, 0])
    assert obs.valid.tolist() == [1.0, 0.0, 0.0]
    assert obs.value.tolist() == [1.0, 0.0, 0.0]


def test_scalars_serve_all_points():
    obs = points(3, error=0.5, time=2.0)
    assert obs.error.tolist() == [0.5] * 3
    assert obs.time.tolist() == [2.0] * 3


@pytest.mark.parametrize("field", ["error", "time", "instrument", "valid"])
def test_a_field_of_observations_of_another_length_is_refused_by_name(field):
    with pytest.raises(ValueError, match=rf"Observations: `{field}` has shape \(4,\), expected \(3,\)"):
        points(3, **{field: np.ones(4, int)})


def test_observations_refuse_what_they_cannot_read():
    with pytest.raises(ValueError, match=r"`value` has shape \(2, 2\), expected \(p,\)"):
        points(3, value=np.ones((2, 2)))
    with pytest.raises(ValueError, match=r"`coords` has shape \(3,\), expected \(3, d\)"):
        points(3, coords=np.ones(3))
    with pytest.raises(ValueError, match=r"`aux\['kernel'\]` has shape \(2,\), expected \(3, \.\.\.\)"):
        points(3, aux={"kernel": np.ones(2)})
    with pytest.raises(ValueError, match=r"`error` must be positive; found 3 "):
        points(3, error=0.0)
    with pytest.raises(TypeError, match=r"`instrument` has dtype float"):
        points(3, instrument=np.ones(3))


def test_every_array_of_observations_is_a_traced_leaf():
    obs = points(3, value=np.ones(3), error=[1.0] * 3, valid=np.ones(3, bool), aux={"k": np.ones(3)})
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(obs))
    assert len(jax.tree.leaves(obs)) == 8


# -- grids -----------------------------------------------------------------------------------------------------------


def test_a_bare_shape_has_unit_spacing():
    grid = as_grid((3, 4))
    assert grid.shape == (3, 4)
    assert [float(s) for s in grid.spacing] == [1.0, 1.0]
    assert as_grid(5).shape == (5,)
    assert as_grid(grid) is grid


@pytest.mark.parametrize("shape", [(), (0,), (3, -1)])
def test_a_bad_shape_is_refused(shape):
    with pytest.raises(ValueError, match=r"`shape` is .*positive whole numbers"):
        as_grid(shape)


def test_a_grid_knows_its_spacing_and_its_periodic_axes():
    grid = Grid(
        [np.arange(4) * 0.5, np.arange(3)[::-1] * 2.0], periodic=(-1,), mask=np.ones((4, 3)), area=np.ones((4, 3))
    )
    assert [float(s) for s in grid.spacing] == [0.5, 2.0]
    assert grid.periodic == (1,)
    assert grid.ndim == 2
    assert grid.mask.dtype == bool


def test_a_grid_with_uneven_steps_has_a_size_for_each_cell():
    grid = Grid([np.array([0.0, 1.0, 3.0, 7.0]), np.arange(3.0)])
    np.testing.assert_allclose(grid.cell_size[0], [1.0, 1.5, 3.0, 4.0])
    assert grid.cell_size[1].shape == ()
    traced = jax.jit(lambda axis: Grid([axis]).cell_size[0])(jnp.arange(4.0))
    np.testing.assert_allclose(traced, np.ones(4))


def test_cells_between_latitudes_cover_the_sphere():
    globe = Grid.latlon(np.linspace(-90, 90, 37), np.arange(0, 360, 5.0), radius=2.0)
    assert globe.periodic == (1,)
    np.testing.assert_allclose(jnp.sum(globe.area), 4 * np.pi * 2.0**2, rtol=1e-5)
    assert float(globe.cell_size[1].min()) > 0  # at the poles too
    north, east = globe.cell_size
    np.testing.assert_allclose(north[18], 2.0 * np.deg2rad(5.0), rtol=1e-6)
    np.testing.assert_allclose(east[30, 0], 2.0 * np.deg2rad(5.0) * np.cos(np.deg2rad(60)), rtol=1e-3)


def test_a_part_of_the_sphere_does_not_close_unless_told():
    latitude, longitude = np.arange(60.0, 20.0, -1.0), np.arange(-20.0, 10.0)
    region = Grid.latlon(latitude, longitude, mask=np.ones((40, 30)))
    assert region.periodic == ()
    assert bool(region.mask.all())
    assert Grid.latlon(latitude, longitude, periodic=(1,)).periodic == (1,)


def test_positions_on_the_sphere_may_be_curvilinear_and_cross_the_date_line():
    latitude, longitude = np.meshgrid(np.arange(60.0, 20.0, -1.0), np.arange(170.0, 200.0), indexing="ij")
    axes = Grid.latlon(latitude[:, 0], longitude[0])
    fields = Grid.latlon(latitude, (longitude + 180) % 360 - 180)
    assert fields.curvilinear
    assert fields.periodic == ()
    np.testing.assert_allclose(fields.cell_size[1], axes.cell_size[1], rtol=1e-4)
    np.testing.assert_allclose(fields.cell_size[0], np.broadcast_to(axes.cell_size[0][:, None], (40, 30)), rtol=1e-4)
    with pytest.raises(ValueError, match=r"Grid: the last two `coords` have shapes \(40, 30\) and \(40, 29\)"):
        Grid.latlon(latitude, longitude[:, 1:])


def test_a_grid_takes_cell_sizes():
    grid = Grid([np.arange(3.0)], cell_size=[[1.0, 2.0, 3.0]])
    assert float(grid.spacing[0]) == 2.0


def test_a_grid_refuses_what_is_not_one():
    with pytest.raises(ValueError, match=r"`coords\[1\]` has shape \(2, 2\), expected a 1-D axis"):
        Grid([np.arange(3), np.ones((2, 2))])
    with pytest.raises(ValueError, match=r"`coords\[0\]` must increase or decrease"):
        Grid([[0.0, 2.0, 1.0]])
    with pytest.raises(ValueError, match=r"`mask` has shape \(2,\), expected \(3,\)"):
        Grid([np.arange(3)], mask=np.ones(2))
    with pytest.raises(ValueError, match=r"`area` has shape \(2,\), expected \(3,\)"):
        Grid([np.arange(3)], area=np.ones(2))
    with pytest.raises(ValueError, match=r"`cell_size` has 2 entries, expected 1"):
        Grid([np.arange(3)], cell_size=[1.0, 1.0])
    with pytest.raises(ValueError, match=r"`cell_size\[0\]` must be positive"):
        Grid([np.arange(3)], cell_size=[-1.0])
    with pytest.raises(ValueError, match=r"`periodic` is \(1,\), expected axis numbers below 1"):
        Grid([np.arange(3)], periodic=(1,))


def rotated(degrees=30.0, shape=(3, 4)):
    """Unit cells on axes that are turned."""
    i, j = np.meshgrid(*map(np.arange, shape), indexing="ij")
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return c * i - s * j, s * i + c * j


def test_a_curvilinear_grid_knows_the_distances_between_its_cells():
    grid = Grid(rotated(), periodic=(1,))
    assert grid.curvilinear
    assert grid.shape == (3, 4)
    for size in grid.cell_size:
        np.testing.assert_allclose(size, np.ones((3, 4)), rtol=1e-6)
    np.testing.assert_allclose(Grid([rotated()[0], 3 * rotated()[1]]).cell_size[0], np.hypot(0.75**0.5, 1.5), rtol=1e-6)


def test_levels_stand_on_a_curvilinear_grid():
    grid = Grid([np.array([0.0, 5.0]), *rotated()], mask=np.ones((2, 3, 4)))
    assert grid.shape == (2, 3, 4)
    assert [size.shape for size in grid.cell_size] == [(), (3, 4), (3, 4)]
    assert float(grid.spacing[0]) == 5.0


def test_a_single_row_is_a_curvilinear_grid_too():
    grid = Grid([np.zeros((1, 3)), np.arange(3.0)[None]])
    assert grid.shape == (1, 3)
    assert float(grid.spacing[1]) == 1.0


def test_land_of_a_curvilinear_grid_needs_no_position():
    y, x = rotated()
    y[0, 1] = NAN
    mask = np.isfinite(y)
    assert Grid([y, x], mask=mask).shape == (3, 4)
    with pytest.raises(ValueError, match=r"Grid: 1 cells have a position in `coords` that is not finite; mask them"):
        Grid([y, x])


def test_a_curvilinear_grid_refuses_what_is_not_one():
    y, x = rotated()
    with pytest.raises(ValueError, match=r"last two `coords` have shapes \(3, 4\) and \(3, 3\), expected one shape"):
        Grid([y, x[:, 1:]])
    with pytest.raises(ValueError, match=r"`coords\[0\]` has shape \(3, 4\), expected a 1-D axis"):
        Grid([y, y, x])
    with pytest.raises(ValueError, match=r"`coords` is empty"):
        Grid([])


# -- results ---------------------------------------------------------------------------------------------------------


def analysis(status=(0,), converged=(True,)):
    terms = CostTerms(jnp.array([1.0]), jnp.array([[2.0, 3.0]]), jnp.array([0.5]))
    J_b, J_o = jnp.array([[1.0, 2.0]]), jnp.array([[[2.0, 3.0], [1.0, 1.0]]])
    history = History(J_b, J_o, jnp.array([[0.5, 0.25]]), jnp.array([[1.0, 0.1]]))
    return Analysis(
        state=jnp.zeros((1, 2)),
        control=jnp.zeros((1, 2)),
        cost=CostSummary(terms, terms),
        n_iterations=jnp.array([7]),
        converged=jnp.array(converged),
        status=jnp.array(status),
        history=history,
        gradient_norm=jnp.array([0.25]),
    )


def test_cost_terms_add_up():
    terms = analysis().cost.last
    assert terms.J_o.tolist() == [5.0]
    assert terms.total.tolist() == [6.5]
    assert analysis().history.total.tolist() == [[6.5, 4.25]]


def test_an_analysis_passes_through_jit_vmap_and_scan():
    one = analysis()
    through = jax.jit(lambda a: a)(one)
    assert eqx.tree_equal(through, one)
    mapped = jax.vmap(lambda a: a)(one)
    assert eqx.tree_equal(mapped, one)
    _, stacked = jax.lax.scan(lambda c, _: (c, one), 0, None, length=2)
    assert stacked.state.shape == (2, 1, 2)


@pytest.mark.parametrize("status", list(Status))
def test_every_status_has_words(status):
    assert status.words
    assert status.words in analysis(status=(int(status),)).message()
    assert "iterations 7" in analysis(status=(int(status),)).message()


def test_observations_do_not_change_with_the_arrays_that_they_were_made_of():
    source = {"value": np.ones(512), "error": np.ones(512), "time": np.zeros(512), "coords": np.zeros((512, 2))}
    obs = Observations(**source, aux={"k": (extra := np.zeros(512))})
    before = jax.tree.map(np.array, obs)
    for array in (*source.values(), extra):
        array += 1.0
    assert eqx.tree_equal(jax.tree.map(np.array, obs), before)


@pytest.mark.parametrize(("cls", "space"), [(LSTMState1D, (5,)), (LSTMState2D, (4, 3)), (LSTMState3D, (2, 4, 3))])
def test_the_memory_of_an_lstm_starts_at_zero(cls, space):
    state = cls.zeros(space, 6, groups=(7,), dtype=jnp.float32)
    assert state.h.shape == state.c.shape == (7, *space, 6)
    assert state.h.dtype == jnp.float32
    assert not jnp.any(state.h)
    assert not jnp.any(state.c)
    assert cls.zeros(space, 6).c.dtype == jnp.result_type(float)


def test_a_memory_on_a_grid_of_other_dimensions_is_refused():
    with pytest.raises(ValueError, match=r"LSTMState2D: `shape` is \(5,\), expected 2 sizes \(H, W\)"):
        LSTMState2D.zeros(5, 4)
    with pytest.raises(ValueError, match="`hidden_dim` is 0, expected at least 1"):
        LSTMState1D.zeros(5, 0)
