"""The methods: siblings that solve the same problem and swap in one line.

`OptimalInterpolation` (linear operator, closed form), `ThreeDVar` (any operator, one time), `StrongFourDVar` (a window
under a model), `IncrementalFourDVar` (the same by outer and inner loops, set by `IncrementalConfig`), `WeakFourDVar` (a
window under a model that errs). `LatentThreeDVar`, `LatentStrongFourDVar` and `LatentHybridFourDVar` do the same for a
latent vector, which decodes to the state (`vardax.latent`). Each has
`model(batch)`, `analyse`, `analyse_one`, `iterate`, `posterior`, `with_`, `as_analysis_step`. `AbstractAnalysisMethod`
is what a method subclasses, `MethodAnalysisStep` a method as the update of a cycle.

`FourDVarNet` learns both its prior and its solver; `FourDVarNet1D`, `2D` and `3D` have default networks, `SolverConfig`
the settings of the iteration, and `solve_4dvarnet_1d` and its siblings are the same as functions. It starts where
`Interpolated()`, `Observed()` or `Zeros()` says.

The methods of a window estimate more than a state with `joint=`: a `JointControl` of parameters, a `ForcingBias`, an
`ObservationBias` or an `InstrumentBias`, or several. `terms=` adds further terms to the cost, such as `DigitalFilter`.
"""

from vardax.minimisers.gauss_newton import IncrementalConfig
from vardax.minimisers.solver_config import SolverConfig
from vardax.models.analysis_step import MethodAnalysisStep
from vardax.models.biases import ForcingBias, InstrumentBias, ObservationBias
from vardax.models.digital_filter import DigitalFilter
from vardax.models.first_states import AbstractFirstState, Interpolated, Observed, Zeros
from vardax.models.fourdvarnet import FourDVarNet
from vardax.models.functional_4dvarnet import (
    one_step_solve_4dvarnet_1d,
    one_step_solve_4dvarnet_2d,
    solve_4dvarnet_1d,
    solve_4dvarnet_1d_fixedpoint,
    solve_4dvarnet_2d,
)
from vardax.models.incremental_fourdvar import IncrementalFourDVar
from vardax.models.joint_control import AbstractJointControl, JointControl
from vardax.models.latent_hybrid_fourdvar import LatentHybridFourDVar
from vardax.models.latent_strong_fourdvar import LatentStrongFourDVar
from vardax.models.latent_threedvar import LatentThreeDVar
from vardax.models.method import AbstractAnalysisMethod
from vardax.models.optimal_interpolation import OptimalInterpolation
from vardax.models.recompilation import RecompilationWarning
from vardax.models.sized_fourdvarnets import FourDVarNet1D, FourDVarNet2D, FourDVarNet3D
from vardax.models.strong_fourdvar import StrongFourDVar
from vardax.models.threedvar import ThreeDVar
from vardax.models.weak_fourdvar import WeakFourDVar

__all__ = [
    "AbstractAnalysisMethod",
    "AbstractFirstState",
    "AbstractJointControl",
    "DigitalFilter",
    "ForcingBias",
    "FourDVarNet",
    "FourDVarNet1D",
    "FourDVarNet2D",
    "FourDVarNet3D",
    "IncrementalConfig",
    "IncrementalFourDVar",
    "InstrumentBias",
    "Interpolated",
    "JointControl",
    "LatentHybridFourDVar",
    "LatentStrongFourDVar",
    "LatentThreeDVar",
    "MethodAnalysisStep",
    "ObservationBias",
    "Observed",
    "OptimalInterpolation",
    "RecompilationWarning",
    "SolverConfig",
    "StrongFourDVar",
    "ThreeDVar",
    "WeakFourDVar",
    "Zeros",
    "one_step_solve_4dvarnet_1d",
    "one_step_solve_4dvarnet_2d",
    "solve_4dvarnet_1d",
    "solve_4dvarnet_1d_fixedpoint",
    "solve_4dvarnet_2d",
]
