"""A mark goes through JSON and comes back bit for bit, and its density is that of independent Gaussians."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from vardax.covariances.dense import DenseCovariance
from vardax.covariances.diagonal import DiagonalCovariance
from vardax.posterior.marks import GaussianMarkLikelihood
from vardax.posterior.posterior import Posterior

RANDOM = np.random.default_rng(1)
METADATA = {"basin": "Permian", "time": 12.25, "n": 3, "ok": True, "place": np.array([31.9, -102.2]), "none": None}


def through_json(mark):
    return GaussianMarkLikelihood.from_dict(json.loads(json.dumps(mark.to_dict(), allow_nan=False)))


def bits(tree):
    return [(np.asarray(x).dtype, np.asarray(x).shape, np.asarray(x).tobytes()) for x in jax.tree.leaves(tree)]


@pytest.mark.parametrize("dtype", ["float32", pytest.param("float64", marks=pytest.mark.x64), "bfloat16"])
def test_arrays_come_back_bit_for_bit(dtype):
    mean = jnp.asarray(RANDOM.normal(size=(2, 3)) * 10.0 ** RANDOM.integers(-30, 30, (2, 3)), dtype)
    mean = mean.at[0, 0].set(-0.0).at[1, 2].set(jnp.finfo(dtype).tiny)
    samples = jnp.asarray(RANDOM.normal(size=(4, 2, 3)), dtype)
    mark = GaussianMarkLikelihood(Posterior(mean, samples=samples), METADATA)
    back = through_json(mark)
    assert bits(back.mean) == bits(mean)
    assert bits(back.cov_diag) == bits(mark.cov_diag)
    assert bits(back.posterior.samples) == bits(samples)
    assert back.to_dict() == mark.to_dict()


def test_pytrees_keep_their_structure_and_dtypes():
    mean = {"u": jnp.asarray([1.0, 2.0], "float32"), "pair": (jnp.zeros(()), [jnp.ones((0, 2))])}
    samples = jax.tree.map(lambda m: jnp.stack([m, m + 1, m + 3]), mean)
    back = through_json(GaussianMarkLikelihood(Posterior(mean, samples=samples), {}))
    assert jax.tree.structure(back.mean) == jax.tree.structure(mean)
    assert bits(back.mean) == bits(mean)
    assert jax.tree.structure(back.posterior.samples) == jax.tree.structure(samples)
    np.testing.assert_allclose(back.posterior.std()["u"], np.std([0.0, 1.0, 3.0], ddof=1) * np.ones(2), rtol=1e-6)


def test_the_provenance_and_the_metadata_come_back():
    provenance = {"method": "OI", "cost": jnp.array([1.5]), "converged": jnp.array([True]), "versions": {"jax": "0.10"}}
    posterior = Posterior(jnp.zeros((1, 2)), samples=jnp.ones((3, 1, 2)), provenance=provenance)
    mark = GaussianMarkLikelihood(posterior, METADATA)
    back = through_json(mark)
    assert set(mark.to_dict()) == {"mean", "cov_diag", "samples", "provenance", "event_metadata"}
    assert bits(back.posterior.provenance) == bits(provenance)
    assert back.posterior.provenance["versions"] == {"jax": "0.10"}
    assert {k: v for k, v in back.event_metadata.items() if k != "place"} == {
        k: v for k, v in METADATA.items() if k != "place"
    }
    np.testing.assert_array_equal(back.event_metadata["place"], METADATA["place"])


def test_what_is_not_finite_is_written_in_words():
    back = through_json(GaussianMarkLikelihood(Posterior(jnp.zeros(1), samples=jnp.zeros((3, 1))), {"x": float("nan")}))
    assert np.isnan(back.event_metadata["x"])
    written = GaussianMarkLikelihood(Posterior(jnp.array([jnp.inf]), samples=jnp.zeros((3, 1)))).to_dict()
    assert written["mean"]["values"] == ["Infinity"]
    assert json.dumps(written, allow_nan=False)


def test_the_density_is_that_of_independent_gaussians():
    mean, matrix, x = np.array([1.0, -2.0]), np.array([[2.0, 0.5], [0.5, 0.3]]), np.array([0.3, -1.0])
    mark = GaussianMarkLikelihood(Posterior(jnp.asarray(mean), DenseCovariance(matrix)), {})
    expected = scipy.stats.norm(mean, np.sqrt(np.diag(matrix))).logpdf(x).sum()
    np.testing.assert_allclose(mark.log_prob(jnp.asarray(x)), expected, rtol=1e-5)
    np.testing.assert_allclose(jax.vmap(mark.log_prob)(jnp.asarray(x)[None])[0], expected, rtol=1e-5)
    gradient = jax.grad(mark.log_prob)(jnp.asarray(x))
    np.testing.assert_allclose(gradient, (mean - x) / np.diag(matrix), rtol=1e-5)


def test_what_makes_no_mark_is_refused():
    spread = Posterior(jnp.zeros(2), DiagonalCovariance(jnp.array([1.0, 0.0])))
    with pytest.raises(ValueError, match="has neither `cov` nor `samples`"):
        GaussianMarkLikelihood(Posterior(jnp.zeros(2)), {})
    with pytest.raises(TypeError, match=r"`event_metadata\['when'\]` is object, expected strings, numbers"):
        GaussianMarkLikelihood(spread, {"when": object()})
    with pytest.raises(ValueError, match="1 variances are not positive, so there is no density"):
        GaussianMarkLikelihood(spread).log_prob(jnp.zeros(2))
    with pytest.raises(ValueError, match=r"`x` has shape \(3,\), expected \(2,\)"):
        GaussianMarkLikelihood(spread).log_prob(jnp.zeros(3))
    with pytest.raises(ValueError, match=r"`record` lacks \['cov_diag'"):
        GaussianMarkLikelihood.from_dict({"mean": 1.0})


def test_doubles_are_not_rounded_in_silence():
    record = GaussianMarkLikelihood(Posterior(jnp.zeros(1), samples=jnp.zeros((2, 1)))).to_dict()
    record["mean"]["dtype"] = "float64"
    with jax.enable_x64(False), pytest.raises(ValueError, match="`mean` was written in float64.*set `jax_enable_x64`"):
        GaussianMarkLikelihood.from_dict(record)
