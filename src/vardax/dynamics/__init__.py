"""How the state moves between observations.

A model is a step function (`DiscreteForward`, or any object with `step(state, dt)` and `dt`), and one `rollout` runs
it over a window, for values, tangents and adjoints. `Lorenz96` is the first demonstration system.

| module | holds |
|---|---|
| `discrete` | `DiscreteForward`: a model from a step function |
| `rollout` | `rollout`, and what it keeps for the adjoint (`rollout_memory`, `forward_memory`) |
| `stepping` | which arguments a step asks for |
| `lorenz96` | `Lorenz96`, `simulate_lorenz96` |
"""

from vardax.dynamics.discrete import DiscreteForward
from vardax.dynamics.lorenz96 import Lorenz96, simulate_lorenz96
from vardax.dynamics.rollout import rollout, rollout_memory

__all__ = ["DiscreteForward", "Lorenz96", "rollout", "rollout_memory", "simulate_lorenz96"]
