"""vardax: data assimilation on JAX.

Where things are, from the data to the report:

- `types`, `protocols`: what every stage receives and returns; the contracts between the parts
- `covariances`: B, R and Q with their square roots
- `obs_operators`: from a state to what is observed
- `adjoints`: how gradients are made
- `dynamics`: how the state moves; demonstration systems
- `priors`: what a learned method takes for plausible: models, autoencoders, or a background
- `grad_mod`: what a learned solver makes of a gradient; `networks`: the layers of all networks
- `minimisers`: the control-space problem and what solves it
- `primitives`: costs, BLUE and the control-variable transform as pure functions
- `latent`: latent maps, and what a method needs to work on few numbers instead of on the state
- `models`: the methods, one file each
- `training`: losses and steps for what is learned
- `posterior`: how sure an analysis is
- `cycle`: analysis -> forecast -> next background
- `simulation`: twins, a known truth with its observations and background
- `validation`: checks of your own models, operators and covariances
- `diagnostics`, `metrics`: what the numbers say
- `data`, `plotting`: xarray and figures, imported on demand
- `experiments`, `cli`: named twin problems, and the `vardax` command

Start with `OptimalInterpolation` (linear operator, one time), `ThreeDVar` (any operator), `StrongFourDVar` (a window).

Names are imported when they are first used, so that `import vardax` and the command line stay light (PEP 562).
"""

import importlib
import importlib.metadata
import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vardax.adjoints import (
        AbstractAdjoint,
        DirectAdjoint,
        ImplicitAdjoint,
        KStepAdjoint,
        OneStepAdjoint,
        RecursiveCheckpointAdjoint,
        to_diffrax_adjoint,
        to_optimistix_adjoint,
    )
    from vardax.cycle import DACycle, DAState, SmootherCycle, VarDACycle, VarSmootherCycle
    from vardax.grad_mod import (
        AttentionGradMod,
        ConvLSTMGradMod1D,
        ConvLSTMGradMod2D,
        ConvLSTMGradMod3D,
        IdentityGradMod,
        MLPGradMod,
    )
    from vardax.latent import (
        EncodedForwardModel,
        LatentPrior,
        LiftedObservationOperator,
        NeuralLatentForwardModel,
    )
    from vardax.models import (
        FourDVarNet,
        FourDVarNet1D,
        FourDVarNet2D,
        FourDVarNet3D,
        IncrementalConfig,
        IncrementalFourDVar,
        LatentHybridFourDVar,
        LatentStrongFourDVar,
        LatentThreeDVar,
        OptimalInterpolation,
        SolverConfig,
        StrongFourDVar,
        ThreeDVar,
        WeakFourDVar,
        one_step_solve_4dvarnet_1d,
        one_step_solve_4dvarnet_2d,
        solve_4dvarnet_1d,
        solve_4dvarnet_1d_fixedpoint,
        solve_4dvarnet_2d,
    )
    from vardax.obs_operators import (
        AveragingKernel,
        CallableObs,
        ColumnRetrieval,
        CompositeObs,
        InstrumentRegistry,
        InstrumentSpec,
        InterpObs,
        LinearObs,
        MaskedIdentity,
        MultiInstrumentFusion,
        PointObs,
        RetrievalKernel,
        averaging_kernel_from_l2,
        interp_obs_from_coords,
        is_linear,
    )
    from vardax.posterior import (
        EnsembleCovariance,
        GaussianMarkLikelihood,
        GaussNewtonHessian,
        LaplaceCovariance,
        LatentLaplaceCovariance,
        Posterior,
    )
    from vardax.priors import (
        BilinAEPrior1D,
        BilinAEPrior2D,
        BilinAEPrior2DMultivar,
        BilinAEPrior3D,
        ConvAEPrior,
        ConvAEPrior1D,
        DynamicalPrior,
        DynIncrements,
        DynTrajectory,
        GaussianPrior,
        IdentityPrior,
        L63Prior,
        L96Prior,
        MLPAEPrior1D,
        UNetPrior2D,
    )
    from vardax.protocols import (
        AnalysisStep,
        CostFunction,
        ForwardModel,
        GradModulator,
        LatentForwardModel,
        LatentMap,
        Minimiser,
        ObservationOperator,
        PosteriorAdapter,
        Prior,
        ReducedBasis,
        TemporalPrior,
    )
    from vardax.training import eval_step, reconstruction_loss, train_loss_fn, train_step
    from vardax.types import (
        Analysis,
        Batch1D,
        Batch2D,
        Batch2DMultivar,
        Batch3D,
        ConvergenceError,
        ConvergenceWarning,
        Grid,
        LSTMState1D,
        LSTMState2D,
        LSTMState3D,
        Observations,
        Status,
    )
    from vardax.validation import (
        adjoint_test,
        assert_adjoint_calibrated,
        assert_posterior_agreement,
        covariance_test,
        forward_model_test,
        gradient_test,
        observation_operator_test,
        simulation_based_calibration,
        taylor_test,
    )

__version__ = importlib.metadata.version("vardax")

__all__ = [
    "AbstractAdjoint",
    "Analysis",
    "AnalysisStep",
    "AttentionGradMod",
    "AveragingKernel",
    "Batch1D",
    "Batch2D",
    "Batch2DMultivar",
    "Batch3D",
    "BilinAEPrior1D",
    "BilinAEPrior2D",
    "BilinAEPrior2DMultivar",
    "BilinAEPrior3D",
    "CallableObs",
    "ColumnRetrieval",
    "CompositeObs",
    "ConvAEPrior",
    "ConvAEPrior1D",
    "ConvLSTMGradMod1D",
    "ConvLSTMGradMod2D",
    "ConvLSTMGradMod3D",
    "ConvergenceError",
    "ConvergenceWarning",
    "CostFunction",
    "DACycle",
    "DAState",
    "DirectAdjoint",
    "DynIncrements",
    "DynTrajectory",
    "DynamicalPrior",
    "EncodedForwardModel",
    "EnsembleCovariance",
    "ForwardModel",
    "FourDVarNet",
    "FourDVarNet1D",
    "FourDVarNet2D",
    "FourDVarNet3D",
    "GaussNewtonHessian",
    "GaussianMarkLikelihood",
    "GaussianPrior",
    "GradModulator",
    "Grid",
    "IdentityGradMod",
    "IdentityPrior",
    "ImplicitAdjoint",
    "IncrementalConfig",
    "IncrementalFourDVar",
    "InstrumentRegistry",
    "InstrumentSpec",
    "InterpObs",
    "KStepAdjoint",
    "L63Prior",
    "L96Prior",
    "LSTMState1D",
    "LSTMState2D",
    "LSTMState3D",
    "LaplaceCovariance",
    "LatentForwardModel",
    "LatentHybridFourDVar",
    "LatentLaplaceCovariance",
    "LatentMap",
    "LatentPrior",
    "LatentStrongFourDVar",
    "LatentThreeDVar",
    "LiftedObservationOperator",
    "LinearObs",
    "MLPAEPrior1D",
    "MLPGradMod",
    "MaskedIdentity",
    "Minimiser",
    "MultiInstrumentFusion",
    "NeuralLatentForwardModel",
    "ObservationOperator",
    "Observations",
    "OneStepAdjoint",
    "OptimalInterpolation",
    "PointObs",
    "Posterior",
    "PosteriorAdapter",
    "Prior",
    "RecursiveCheckpointAdjoint",
    "ReducedBasis",
    "RetrievalKernel",
    "SmootherCycle",
    "SolverConfig",
    "Status",
    "StrongFourDVar",
    "TemporalPrior",
    "ThreeDVar",
    "UNetPrior2D",
    "VarDACycle",
    "VarSmootherCycle",
    "WeakFourDVar",
    "adjoint_test",
    "assert_adjoint_calibrated",
    "assert_posterior_agreement",
    "averaging_kernel_from_l2",
    "covariance_test",
    "eval_step",
    "forward_model_test",
    "gradient_test",
    "interp_obs_from_coords",
    "is_linear",
    "observation_operator_test",
    "one_step_solve_4dvarnet_1d",
    "one_step_solve_4dvarnet_2d",
    "reconstruction_loss",
    "simulation_based_calibration",
    "solve_4dvarnet_1d",
    "solve_4dvarnet_1d_fixedpoint",
    "solve_4dvarnet_2d",
    "taylor_test",
    "to_diffrax_adjoint",
    "to_optimistix_adjoint",
    "train_loss_fn",
    "train_step",
]

_HOMES = {
    "adjoints": """
        AbstractAdjoint DirectAdjoint ImplicitAdjoint KStepAdjoint OneStepAdjoint RecursiveCheckpointAdjoint
        to_diffrax_adjoint to_optimistix_adjoint
    """,
    "cycle": "DACycle DAState SmootherCycle VarDACycle VarSmootherCycle",
    "grad_mod": """
        AttentionGradMod ConvLSTMGradMod1D ConvLSTMGradMod2D ConvLSTMGradMod3D IdentityGradMod MLPGradMod
    """,
    "latent": "EncodedForwardModel LatentPrior LiftedObservationOperator NeuralLatentForwardModel",
    "models": """
        FourDVarNet FourDVarNet1D FourDVarNet2D FourDVarNet3D IncrementalConfig IncrementalFourDVar LatentHybridFourDVar
        LatentStrongFourDVar LatentThreeDVar OptimalInterpolation SolverConfig StrongFourDVar ThreeDVar WeakFourDVar
        one_step_solve_4dvarnet_1d one_step_solve_4dvarnet_2d solve_4dvarnet_1d solve_4dvarnet_1d_fixedpoint
        solve_4dvarnet_2d
    """,
    "obs_operators": """
        AveragingKernel CallableObs ColumnRetrieval CompositeObs InstrumentRegistry InstrumentSpec InterpObs LinearObs
        MaskedIdentity MultiInstrumentFusion PointObs RetrievalKernel averaging_kernel_from_l2 interp_obs_from_coords
        is_linear
    """,
    "posterior": """
        EnsembleCovariance GaussNewtonHessian GaussianMarkLikelihood LaplaceCovariance LatentLaplaceCovariance
        Posterior
    """,
    "priors": """
        BilinAEPrior1D BilinAEPrior2D BilinAEPrior2DMultivar BilinAEPrior3D ConvAEPrior ConvAEPrior1D DynIncrements
        DynTrajectory DynamicalPrior GaussianPrior IdentityPrior L63Prior L96Prior MLPAEPrior1D UNetPrior2D
    """,
    "protocols": """
        AnalysisStep CostFunction ForwardModel GradModulator LatentForwardModel LatentMap Minimiser
        ObservationOperator PosteriorAdapter Prior ReducedBasis TemporalPrior
    """,
    "training": "eval_step reconstruction_loss train_loss_fn train_step",
    "types": """
        Analysis Batch1D Batch2D Batch2DMultivar Batch3D ConvergenceError ConvergenceWarning Grid
        LSTMState1D LSTMState2D LSTMState3D Observations Status
    """,
    "validation": """
        adjoint_test assert_adjoint_calibrated assert_posterior_agreement covariance_test forward_model_test
        gradient_test observation_operator_test simulation_based_calibration taylor_test
    """,
}
_HOME = {name: package for package, names in _HOMES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    """A public name, or a package, at its first use."""
    if name in _HOME:
        value = getattr(importlib.import_module(f"vardax.{_HOME[name]}"), name)
        globals()[name] = value
        return value
    if not name.startswith("_") and importlib.util.find_spec(f"vardax.{name}") is not None:
        return importlib.import_module(f"vardax.{name}")
    raise AttributeError(f"module 'vardax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
