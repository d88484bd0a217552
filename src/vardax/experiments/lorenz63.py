r"""Lorenz-63, all of it observed every 25 steps: the settings of Sakov, Oliver and Bertino (2012).

    dx/dt = σ (y - x),   dy/dt = x (ρ - z) - y,   dz/dt = x y - β z,   σ = 10,  ρ = 28,  β = 8/3,  RK4 with dt = 0.01
    x(0) ~ N((1.509, -1.531, 25.46), 2 I),   H = I,   R = 2 I,   B = xB C with C the covariance of the simulated truth

A quarter of a unit of time between observations is a third of a turn around a wing: the model is strongly nonlinear
over a window. Rows and scores are those of the experiment `lorenz96`: `OptimalInterpolation` has the climatology as its
background, the cycled methods B = xB C, and windows are one interval with their end observed (lag 1).

Reference: P. Sakov, D. S. Oliver and L. Bertino, An iterative EnKF for strongly nonlinear systems, Mon. Wea. Rev. 140
(2012), 1988-2004. Expected scores: nansencenter/DAPPER, mods/Lorenz63/sakov2012.py ("stated"), and DAPPER 1.8.1 run
with these settings ("measured"; `climatology` and `OptimalInterpolation` as stated).
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

from vardax.experiments.config import ConfigError, setting
from vardax.experiments.lorenz96 import Expected

__all__ = ["EXPECTED", "QUICK", "START", "Config", "Lorenz63Config", "expected_scores", "run"]

START = (1.509, -1.531, 25.46)
"""The first guess."""


@dataclasses.dataclass(frozen=True)
class Lorenz63Config:
    """Settings of the experiment; the defaults are those that the expected scores belong to."""

    dt: float = setting(0.01, "time step of the model")
    steps: int = setting(25, "steps between observations")
    x0_variance: float = setting(2.0, "variance of the truth's start about the first guess")
    obs_variance: float = setting(2.0, "variance of the observation errors")
    xB: float = setting(0.1, "B = xB times the covariance of the truth, for the cycled methods")
    xQ: float = setting(0.01, "Q = xQ times B, for methods that allow for model error; the model has none")
    cycles: int = setting(10_000, "observation times")
    burn_in: float = setting(16.0, "time before which nothing is scored")
    seed: int = setting(0, "of the truth and of the observation errors")
    precision: Literal["float32", "float64"] = setting("float64", "of all arrays")
    methods: tuple[str, ...] = setting((), "names of methods to run; empty for all")

    def __post_init__(self):
        for name in ("dt", "steps", "x0_variance", "obs_variance", "xB", "xQ"):
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
        return round(self.burn_in / (self.dt * self.steps))


Config = Lorenz63Config
"""The name under which the `vardax` command looks for an experiment's settings."""

QUICK = {"cycles": 400, "burn_in": 10.0}
"""Settings of `vardax run lorenz63 --quick`: to see that it works, not to compare scores."""

EXPECTED = {
    "climatology": Expected(7.6, 7.6),
    "OptimalInterpolation": Expected(1.25, 1.25),
    "ThreeDVar": Expected(1.04, 1.030),
    "StrongFourDVar": Expected(None, 0.787, 0.015),
}
"""Analysis RMSE after burn-in, for the default settings and any seed."""

LONG_ENOUGH = 5_000
"""Cycles from which on the scores can be compared."""


def expected_scores(config: Lorenz63Config) -> dict[str, Expected]:
    """`EXPECTED` where it applies: a long run with the default settings, with any seed and precision."""
    free = {"seed", "cycles", "burn_in", "precision", "methods"}
    fixed = [field.name for field in dataclasses.fields(config) if field.name not in free]
    default = Lorenz63Config()
    applies = config.cycles >= LONG_ENOUGH and all(getattr(config, name) == getattr(default, name) for name in fixed)
    return EXPECTED if applies else {}


def run(config: Lorenz63Config, watch: Callable[..., Any] | None = None) -> Any:
    """Run the experiment: `vardax.experiments.results.Results`, with the trajectories, scores and times of every row.

    `watch(total, label)` is a context manager that gives `advance(done)`; see `vardax.experiments.progress`.
    """
    # Late, so that `vardax show lorenz63` needs no JAX.
    from vardax.experiments.cycled import assimilate_all
    from vardax.experiments.lorenz63_twin import make_twin

    return assimilate_all(config, make_twin, expected_scores(config), watch)
