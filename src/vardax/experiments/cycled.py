"""Cycled experiments at work: every exported method over one twin.

Rows are the two without observations and one per exported method: from its constructor's slots (`recipes`), or from
`OWN_ROWS` where the standard recipe does not suit. The experiment brings a configuration with `xB`, `xQ`, `methods`,
`precision` and `first_scored`, and a function that makes its twin.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from vardax.covariances.dense import DenseCovariance
from vardax.experiments.config import ConfigError, unknown
from vardax.experiments.latent_rows import latent_hybrid_fourdvar, latent_strong_fourdvar, latent_threedvar
from vardax.experiments.recipes import exported_methods, lacking_slots, standard_row
from vardax.experiments.results import Results, score_rows
from vardax.experiments.twin import Row, Twin, climatology_forward

__all__ = ["OWN_ROWS", "assimilate_all", "chosen_methods", "make_rows"]


def assimilate_all(
    config: Any,
    make_twin: Callable[[Any], Twin],
    expected: Mapping[str, Any],
    watch: Callable[..., Any] | None = None,
) -> Results:
    """Every row over the whole twin, in the precision asked for, and their scores."""
    with jax.enable_x64(config.precision == "float64"):
        twin = make_twin(config)
        rows, left_out = make_rows(config, twin)
        return score_rows(twin, rows, config.first_scored, expected=expected, left_out=left_out, watch=watch)


def make_rows(config: Any, twin: Twin) -> tuple[list[Row], dict[str, list[str]]]:
    """The rows of the table, and the methods that are left out with the slots that they lack."""
    slots = {
        "forward": twin.forward,
        "obs_op": twin.obs_op,
        "prior_mean": twin.first_guess,
        "prior_cov_op": DenseCovariance(config.xB * twin.covariance),
        "obs_cov_op": twin.obs_cov_op,
        "model_err_cov_op": DenseCovariance(config.xB * config.xQ * twin.covariance),
    }
    rows, left_out = [climatology(twin), background(twin)], {}
    for name, method in chosen_methods(config.methods).items():
        missing = lacking_slots(method, slots)
        if name in OWN_ROWS:
            rows.append(OWN_ROWS[name](method, twin, config))
        elif missing:
            left_out[name] = missing
        else:
            rows.append(standard_row(method, slots, twin))
    return rows, left_out


def chosen_methods(names: tuple[str, ...]) -> dict[str, type]:
    """The exported methods of these names; all of them for none."""
    methods = exported_methods()
    for name in names:
        if name not in methods:
            raise ConfigError(unknown("method", name, methods))
    return {name: methods[name] for name in names or methods}


def climatology(twin: Twin) -> Row:
    """Always the mean of the truth; its spread is that of the truth about it."""
    spread = float(jnp.sqrt(jnp.mean(jnp.diagonal(twin.covariance))))
    return Row("climatology", "the mean of the truth", climatology_forward(twin), spread=spread)


def background(twin: Twin) -> Row:
    """The model alone."""
    return Row("background", "the model from the first guess on, without observations", twin.forward)


def optimal_interpolation(method: type, twin: Twin, config: Any) -> Row:
    """Climatological mean and covariance at every observation time."""
    model = method(twin.obs_op, twin.mean, DenseCovariance(twin.covariance), twin.obs_cov_op)
    note = "background: the climatology, B = C; not cycled"
    return Row("OptimalInterpolation", note, climatology_forward(twin), model)


OWN_ROWS: dict[str, Callable[[type, Twin, Any], Row]] = {
    "OptimalInterpolation": optimal_interpolation,
    "LatentThreeDVar": latent_threedvar,
    "LatentStrongFourDVar": latent_strong_fourdvar,
    "LatentHybridFourDVar": latent_hybrid_fourdvar,
}
"""Methods that the standard recipe does not suit."""
