r"""Two-level Lorenz-96, a few slow variables observed: single windows from a climatological background.

    K = 8 slow variables, J = 8 fast ones each, F = 20, h = 1, c = b = 10, RK4 with dt = 0.005
    windows of 40 steps; every second slow variable observed at every fourth step with a standard deviation of 0.5
    background: the mean of the climatology, B the diagonal of its variances, the same for every window

Each window is on its own, so a row shows what one analysis makes of one window; the score is the RMSE over the 72
variables, in the mean over the 41 states of each window. `OptimalInterpolation` and `ThreeDVar` take each state alone.
The truth has no model error; `WeakFourDVar` allows for some all the same (Q = xQ B).

Expected scores were measured with these settings ("measured", 200 windows, with the standard error); beside them what a
public benchmark of a comparable library states for one window of this case ("stated"), whose background is not known.
`IncrementalFourDVar` stops after three outer loops, before it has converged; with fifteen it is close to strong 4DVar.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

from vardax.experiments.config import ConfigError, setting
from vardax.experiments.lorenz96 import Expected

__all__ = ["EXPECTED", "QUICK", "Config", "TwoLevelConfig", "expected_scores", "run"]


@dataclasses.dataclass(frozen=True)
class TwoLevelConfig:
    """Settings of the experiment; the defaults are those that the expected scores belong to."""

    K: int = setting(8, "slow variables")
    J: int = setting(8, "fast variables for each slow one")
    forcing: float = setting(20.0, "F")
    dt: float = setting(0.005, "time step")
    steps: int = setting(40, "steps in a window")
    every: int = setting(4, "steps between observations")
    every_variable: int = setting(2, "one slow variable in so many is observed")
    obs_error: float = setting(0.5, "standard deviation of the observation errors")
    xQ: float = setting(1e-6, "Q = xQ times B, for methods that allow for model error; the model has none")
    cycles: int = setting(50, "windows")
    seed: int = setting(0, "of the truth and of the observation errors")
    precision: Literal["float32", "float64"] = setting("float64", "of all arrays")
    methods: tuple[str, ...] = setting((), "names of methods to run; empty for all")

    def __post_init__(self):
        for name in ("dt", "steps", "every", "every_variable", "obs_error", "xQ"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)!r}, expected a positive number.")
        if self.cycles < 2 or self.seed < 0:
            raise ConfigError("cycles must be at least 2 windows, and seed not negative.")


Config = TwoLevelConfig
"""The name under which the `vardax` command looks for an experiment's settings."""

QUICK = {"cycles": 6}
"""Settings of `vardax run lorenz96-two-level --quick`: to see that it works, not to compare scores."""

EXPECTED = {
    "climatology": Expected(None, 2.263, 0.029),
    "OptimalInterpolation": Expected(2.27, 2.069, 0.026),
    "ThreeDVar": Expected(None, 2.069, 0.026),
    "StrongFourDVar": Expected(1.75, 0.646, 0.059),
    "IncrementalFourDVar": Expected(None, 1.406, 0.059),
    "WeakFourDVar": Expected(1.58, 0.637, 0.058),
}
"""RMSE over window and state, for the default settings and any seed."""


def expected_scores(config: TwoLevelConfig) -> dict[str, Expected]:
    """`EXPECTED` where it applies: the default settings with at least as many windows, with any seed and precision."""
    free = {"seed", "cycles", "precision", "methods"}
    fixed = [field.name for field in dataclasses.fields(config) if field.name not in free]
    default = TwoLevelConfig()
    applies = config.cycles >= default.cycles and all(getattr(config, n) == getattr(default, n) for n in fixed)
    return EXPECTED if applies else {}


def run(config: TwoLevelConfig, watch: Callable[..., Any] | None = None) -> Any:
    """Run the experiment: `vardax.experiments.results.Results`, with the trajectories, scores and times of every row.

    `watch(total, label)` is a context manager that gives `advance(done)`; see `vardax.experiments.progress`.
    """
    # Late, so that `vardax show lorenz96-two-level` needs no JAX.
    from vardax.experiments.lorenz96_two_level_windows import assimilate_all

    return assimilate_all(config, expected_scores(config), watch)
