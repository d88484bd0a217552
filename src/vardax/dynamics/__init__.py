"""How the state moves between observations.

A model is a step function (`DiscreteForward`, or any object with `step(state, dt)` and `dt`), and one `rollout` runs
it over a window, for values, tangents and adjoints.

| module | holds |
|---|---|
| `discrete` | `DiscreteForward`: a model from a step function |
| `diffrax_forward` | `DiffraxForward`: a model from a vector field and a solver of diffrax |
| `rollout` | `rollout`, and what it keeps for the adjoint (`rollout_memory`, `forward_memory`) |
| `backsolve` | the continuous adjoint of a rollout |
| `stepping`, `runge_kutta` | which arguments a step asks for; explicit Runge-Kutta steps |
| `lorenz63`, `lorenz96`, `two_level_lorenz96` | the systems of E. N. Lorenz, `simulate_lorenz63`, `simulate_lorenz96` |
"""

from vardax.dynamics.diffrax_forward import DiffraxForward
from vardax.dynamics.discrete import DiscreteForward
from vardax.dynamics.lorenz63 import Lorenz63, simulate_lorenz63
from vardax.dynamics.lorenz96 import Lorenz96, simulate_lorenz96
from vardax.dynamics.rollout import rollout, rollout_memory
from vardax.dynamics.two_level_lorenz96 import TwoLevelLorenz96

__all__ = [
    "DiffraxForward",
    "DiscreteForward",
    "Lorenz63",
    "Lorenz96",
    "TwoLevelLorenz96",
    "rollout",
    "rollout_memory",
    "simulate_lorenz63",
    "simulate_lorenz96",
]
