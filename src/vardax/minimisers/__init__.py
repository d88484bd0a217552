"""The control-space problem and what solves it.

`ControlSpaceProblem` (one sample) and `BatchedProblem` are what every method poses: a background, `ObservedEntries`
with their restricted R, B^{1/2}, and `Snapshot` or `Window`, which predict observations from a state. Scattered ones
lie between the entries of a window, whose trajectory is read `LinearInTime()` or `NearestInTime()`. `minimise` and
`iterate` run any optimistix solver on a problem, wrapped in a `RecordingSolver`; `solve_blue_problem` solves the
linear-Gaussian ones directly. `GaussNewtonKrylov` is the incremental minimiser: outer loops, and inside `LanczosCG` or
`DualCG`; `last_hessian` gives the eigenpairs that its last loop leaves behind. The transforms `Identity`, `Exp`,
`Softplus` keep states positive.

`LearnedMinimiser` is the learned iteration of 4DVarNet, an optimistix minimiser of any cost; `SolverConfig` holds its
settings, and `ConstantStep()` or `AnnealedStep(...)` makes its steps. `FreeState` is what a learned method observes: a
state whose prior is a term of the cost (`ReconstructionTerm`, `PriorCostTerm`).
"""

from vardax.minimisers.blow_up import GuardedProblem
from vardax.minimisers.blue import solve_blue_problem
from vardax.minimisers.closed_form import NormalFactor
from vardax.minimisers.conjugate_gradients import RelativeCG
from vardax.minimisers.dense_cholesky import MappedCholesky
from vardax.minimisers.free_state import FreeState, PriorCostTerm, ReconstructionTerm
from vardax.minimisers.gauss_newton import (
    AbstractInnerSolver,
    Backtracking,
    DualCG,
    GaussNewtonKrylov,
    IncrementalConfig,
    LanczosCG,
    Simplification,
)
from vardax.minimisers.joint_window import JointWindow
from vardax.minimisers.krylov import solve_blue
from vardax.minimisers.krylov_result import KrylovResult
from vardax.minimisers.lanczos import AbstractVectors, ControlVectors, ImageVectors, KrylovRecord, RitzPairs
from vardax.minimisers.last_hessian import last_hessian
from vardax.minimisers.latent_window import DecodedStart, DecodedWindow
from vardax.minimisers.lbfgs import LimitedMemoryBFGS, RoundingArmijo
from vardax.minimisers.learned import (
    AbstractStepRule,
    AnnealedStep,
    ConstantStep,
    LearnedMinimiser,
    LearnedRecord,
    LearnedState,
)
from vardax.minimisers.minimise import iterate, minimise
from vardax.minimisers.moments import (
    AbstractMoments,
    AbstractTimeInterpolation,
    BetweenEntries,
    EveryEntry,
    LinearInTime,
    NearestInTime,
)
from vardax.minimisers.observed import ObservedEntries, ObservedSamples
from vardax.minimisers.problem import BatchedProblem, ControlSpaceProblem
from vardax.minimisers.recording import Record, RecordingSolver
from vardax.minimisers.solver_config import InPrecision, SolverConfig
from vardax.minimisers.sub_windows import SubWindows
from vardax.minimisers.transforms import AbstractControlTransform, Exp, Identity, Softplus
from vardax.minimisers.windows import AbstractObserving, InnerWindow, Snapshot, WeakWindow, Window

__all__ = [
    "AbstractControlTransform",
    "AbstractInnerSolver",
    "AbstractMoments",
    "AbstractObserving",
    "AbstractStepRule",
    "AbstractTimeInterpolation",
    "AbstractVectors",
    "AnnealedStep",
    "Backtracking",
    "BatchedProblem",
    "BetweenEntries",
    "ConstantStep",
    "ControlSpaceProblem",
    "ControlVectors",
    "DecodedStart",
    "DecodedWindow",
    "DualCG",
    "EveryEntry",
    "Exp",
    "FreeState",
    "GaussNewtonKrylov",
    "GuardedProblem",
    "Identity",
    "ImageVectors",
    "InPrecision",
    "IncrementalConfig",
    "InnerWindow",
    "JointWindow",
    "KrylovRecord",
    "KrylovResult",
    "LanczosCG",
    "LearnedMinimiser",
    "LearnedRecord",
    "LearnedState",
    "LimitedMemoryBFGS",
    "LinearInTime",
    "MappedCholesky",
    "NearestInTime",
    "NormalFactor",
    "ObservedEntries",
    "ObservedSamples",
    "PriorCostTerm",
    "ReconstructionTerm",
    "Record",
    "RecordingSolver",
    "RelativeCG",
    "RitzPairs",
    "RoundingArmijo",
    "Simplification",
    "Snapshot",
    "Softplus",
    "SolverConfig",
    "SubWindows",
    "WeakWindow",
    "Window",
    "iterate",
    "last_hessian",
    "minimise",
    "solve_blue",
    "solve_blue_problem",
]
