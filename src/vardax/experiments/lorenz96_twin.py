"""The Lorenz-96 experiment at work: its twin, and its rows. Settings and expected scores are in `lorenz96`.

Rows are the two without observations and one per exported method: from its constructor's slots (`recipes`), or from
`OWN_ROWS` where the standard recipe does not suit.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from vardax.covariances.dense import DenseCovariance
from vardax.covariances.diagonal import DiagonalCovariance
from vardax.dynamics.lorenz96 import Lorenz96
from vardax.experiments.config import ConfigError, unknown
from vardax.experiments.lorenz96 import Lorenz96Config
from vardax.experiments.recipes import exported_methods, lacking_slots, standard_row
from vardax.experiments.results import Results, score_rows
from vardax.experiments.twin import Row, Twin, climatology_forward, simulate
from vardax.obs_operators.identity import MaskedIdentity

__all__ = ["OWN_ROWS", "assimilate_all", "make_rows", "make_twin"]


def assimilate_all(
    config: Lorenz96Config, expected: Mapping[str, Any], watch: Callable[..., Any] | None = None
) -> Results:
    """Every row over the whole twin, in the precision asked for, and their scores."""
    with jax.enable_x64(config.precision == "float64"):
        twin = make_twin(config)
        rows, left_out = make_rows(config, twin)
        return score_rows(twin, rows, config.first_scored, expected=expected, left_out=left_out, watch=watch)


def make_twin(config: Lorenz96Config) -> Twin:
    """The truth and its observations."""
    dtype = jnp.dtype(config.precision)
    return simulate(
        jax.random.key(config.seed),
        Lorenz96(config.n, jnp.asarray(config.forcing, dtype), config.dt),
        MaskedIdentity(),
        DiagonalCovariance(jnp.full(config.n, config.obs_variance, dtype)),
        first_guess=jnp.zeros(config.n, dtype).at[0].set(1.0),
        x0_variance=config.x0_variance,
        n_cycles=config.cycles,
    )


def make_rows(config: Lorenz96Config, twin: Twin) -> tuple[list[Row], dict[str, list[str]]]:
    """The rows of the table, and the methods that are left out with the slots that they lack."""
    slots = {
        "forward": twin.forward,
        "obs_op": twin.obs_op,
        "prior_mean": twin.first_guess,
        "prior_cov_op": DenseCovariance(config.xB * twin.covariance),
        "obs_cov_op": twin.obs_cov_op,
    }
    rows, left_out = [climatology(twin), background(twin)], {}
    for name, method in chosen_methods(config.methods).items():
        missing = lacking_slots(method, slots)
        if name in OWN_ROWS:
            rows.append(OWN_ROWS[name](method, twin))
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


def optimal_interpolation(method: type, twin: Twin) -> Row:
    """Climatological mean and covariance at every observation time."""
    model = method(twin.obs_op, twin.mean, DenseCovariance(twin.covariance), twin.obs_cov_op)
    note = "background: the climatology, B = C; not cycled"
    return Row("OptimalInterpolation", note, climatology_forward(twin), model)


OWN_ROWS: dict[str, Callable[[type, Twin], Row]] = {"OptimalInterpolation": optimal_interpolation}
"""Methods that the standard recipe does not suit."""
