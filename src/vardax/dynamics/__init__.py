"""How the state moves between observations.

A model is a step function (`DiscreteForward`, or any object with `step(state, dt)` and `dt`), and one `rollout` runs
it over a window, for values, tangents and adjoints.

| module | holds |
|---|---|
| `discrete`, `diffrax_forward` | a model from a step function; from a vector field and a solver of diffrax |
| `neural_forward`, `external_forward` | a model that is a network; one that is not written in JAX |
| `soft_bounded_forward` | a model whose states cannot leave a bound |
| `rollout`, `adjoint_memory`, `backsolve` | running a model; what it keeps for the adjoint; the continuous adjoint |
| `stepping`, `runge_kutta` | which arguments a step asks for; explicit Runge-Kutta steps |
| `lorenz63`, `lorenz96`, `two_level_lorenz96` | the systems of E. N. Lorenz, `simulate_lorenz63`, `simulate_lorenz96` |
| `advection_diffusion`, `shallow_water`, `quasi_geostrophic` | a tracer in one dimension; flows in two |
| `gaussian_plume` | emissions and the steady plumes that they make |
"""

from vardax.dynamics.advection_diffusion import AdvectionDiffusion1D
from vardax.dynamics.diffrax_forward import DiffraxForward
from vardax.dynamics.discrete import DiscreteForward
from vardax.dynamics.external_forward import ExternalForward
from vardax.dynamics.gaussian_plume import GaussianPlume
from vardax.dynamics.lorenz63 import Lorenz63, simulate_lorenz63
from vardax.dynamics.lorenz96 import Lorenz96, simulate_lorenz96
from vardax.dynamics.neural_forward import NeuralForward
from vardax.dynamics.quasi_geostrophic import QuasiGeostrophic2D
from vardax.dynamics.rollout import rollout, rollout_memory
from vardax.dynamics.shallow_water import ShallowWater2D
from vardax.dynamics.soft_bounded_forward import SoftBoundedForward
from vardax.dynamics.two_level_lorenz96 import TwoLevelLorenz96

__all__ = [
    "AdvectionDiffusion1D",
    "DiffraxForward",
    "DiscreteForward",
    "ExternalForward",
    "GaussianPlume",
    "Lorenz63",
    "Lorenz96",
    "NeuralForward",
    "QuasiGeostrophic2D",
    "ShallowWater2D",
    "SoftBoundedForward",
    "TwoLevelLorenz96",
    "rollout",
    "rollout_memory",
    "simulate_lorenz63",
    "simulate_lorenz96",
]
