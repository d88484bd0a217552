r"""Lorenz-96, every variable observed at every step: the settings of Sakov and Oke (2008).

    dx_i/dt = (x_{i+1} - x_{i-2}) x_{i-1} - x_i + F,   N = 40,   F = 8,   RK4 with dt = 0.05
    x(0) ~ N((1, 0, .., 0), 0.001 I),   H = R = I,   B = xB C with C the covariance of the simulated truth

Methods cycle over 10,000 observation times and are scored from time 20 on: the time mean of the root mean square error
over the state, with a 95 % interval that allows for its autocorrelation. Beside the exported methods there are two
rows without observations: `climatology` (always the mean of the truth) and `background` (the model from the first
guess on). `OptimalInterpolation` has the classical meaning of the name, background = climatological mean and B = C;
with a cycled forecast and B = xB C it is `ThreeDVar`, which is exact for this linear H. The latent methods work in all
EOFs of the climatology with the same B, and so score as their siblings do (`latent_rows`).

Reference: P. Sakov and P. R. Oke, A deterministic formulation of the ensemble Kalman filter, Tellus A 60 (2008),
361-371. Expected scores: nansencenter/DAPPER, mods/Lorenz96/sakov2008.py ("stated"), and DAPPER 1.8.1 run with these
settings ("measured", with its standard error). Runs under 5,000 cycles are biased high and are not compared.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

from vardax.experiments.config import ConfigError, setting

__all__ = ["EXPECTED", "QUICK", "Config", "Expected", "Lorenz96Config", "expected_scores", "run"]


@dataclasses.dataclass(frozen=True)
class Lorenz96Config:
    """Settings of the experiment; the defaults are those that the expected scores belong to."""

    n: int = setting(40, "number of variables")
    forcing: float = setting(8.0, "F")
    dt: float = setting(0.05, "time step, and time between observations")
    x0_variance: float = setting(0.001, "variance of the truth's start about the first guess")
    obs_variance: float = setting(1.0, "variance of the observation errors")
    xB: float = setting(0.02, "B = xB times the covariance of the truth, for the cycled methods")
    xQ: float = setting(0.01, "Q = xQ times B, for methods that allow for model error; the model has none")
    cycles: int = setting(10_000, "observation times")
    burn_in: float = setting(20.0, "time before which nothing is scored")
    seed: int = setting(0, "of the truth and of the observation errors")
    precision: Literal["float32", "float64"] = setting("float64", "of all arrays")
    methods: tuple[str, ...] = setting((), "names of methods to run; empty for all")

    def __post_init__(self):
        for name in ("dt", "x0_variance", "obs_variance", "xB", "xQ"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)!r}, expected a positive number.")
        if self.burn_in < 0 or self.seed < 0:
            raise ConfigError("burn_in and seed must not be negative.")
        if self.cycles < 2 or self.first_scored >= self.cycles:
            raise ConfigError(
                f"cycles is {self.cycles}, expected more than {max(self.first_scored, 1)}: the first {self.burn_in:g} "
                f"units of time ({self.first_scored} cycles) are not scored. Give more cycles or a shorter burn_in."
            )

    @property
    def first_scored(self) -> int:
        """The number of the first cycle that is scored."""
        return round(self.burn_in / self.dt)


Config = Lorenz96Config
"""The name under which the `vardax` command looks for an experiment's settings."""

QUICK = {"cycles": 600, "burn_in": 10.0}
"""Settings of `vardax run lorenz96 --quick`: to see that it works, not to compare scores."""


@dataclasses.dataclass(frozen=True)
class Expected:
    """A score to reproduce: as the settings file of DAPPER states it, and as measured, with the standard error."""

    stated: float | None
    measured: float
    standard_error: float | None = None


EXPECTED = {
    "climatology": Expected(3.6, 3.629),
    "OptimalInterpolation": Expected(0.95, 0.946, 0.001),
    "ThreeDVar": Expected(0.41, 0.410, 0.002),
    "StrongFourDVar": Expected(None, 0.376, 0.001),
    "LatentThreeDVar": Expected(None, 0.411, 0.002),
    "LatentStrongFourDVar": Expected(None, 0.376, 0.001),
    "LatentHybridFourDVar": Expected(None, 0.376, 0.001),
}
"""Analysis RMSE after burn-in, for the default settings and any seed; those of the latent methods measured here."""


LONG_ENOUGH = 5_000
"""Cycles from which on the scores can be compared: shorter runs are biased high by the transient."""


def expected_scores(config: Lorenz96Config) -> dict[str, Expected]:
    """`EXPECTED` where it applies: a long run with the default settings, with any seed and precision."""
    free = {"seed", "cycles", "burn_in", "precision", "methods"}
    default = Lorenz96Config()
    fixed = [field.name for field in dataclasses.fields(config) if field.name not in free]
    applies = config.cycles >= LONG_ENOUGH and all(getattr(config, name) == getattr(default, name) for name in fixed)
    return EXPECTED if applies else {}


def run(config: Lorenz96Config, watch: Callable[..., Any] | None = None) -> Any:
    """Run the experiment: `vardax.experiments.results.Results`, with the trajectories, scores and times of every row.

    `watch(total, label)` is a context manager that gives `advance(done)`; see `vardax.experiments.progress`.
    """
    # Late, so that `vardax show lorenz96` needs no JAX.
    from vardax.experiments.cycled import assimilate_all
    from vardax.experiments.lorenz96_twin import make_twin

    return assimilate_all(config, make_twin, expected_scores(config), watch)
