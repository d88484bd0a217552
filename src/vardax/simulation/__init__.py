"""Twins: a truth that is known, its observations, and a background with errors of the right size.

What is tested, tuned or scored with a simulated truth begins here. Every function takes a key, gives the same numbers
for the same key, and works under `jit` and `vmap`:

| function | draws |
|---|---|
| `perturb` | a state around another one: a background around a truth, or a truth around a background |
| `simulate_trajectory` | a run of a model that errs, with errors of covariance Q |
| `observe` | observations of a trajectory, with errors of covariance R, and gaps |
| `simulate_twin` | all of these from parts of yours: truth, trajectory, batch and background |
| `draw_twin` | the same from the prior, model and observation errors of a method |
"""

from vardax.simulation.drawn import draw_twin
from vardax.simulation.observations import observe
from vardax.simulation.states import perturb, simulate_trajectory
from vardax.simulation.twins import Twin, simulate_twin

__all__ = ["Twin", "draw_twin", "observe", "perturb", "simulate_trajectory", "simulate_twin"]
