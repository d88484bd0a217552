"""The public names: what the specification promises, and which of it exists.

`PAGE` is the whole promised interface, per module; ★ modules are shown by `vardax` itself as well. `TO_COME` lists
what does not exist yet. A name that arrives is taken out of `TO_COME`, and one that disappears fails: the page less
`TO_COME` is exactly what can be imported.
"""

import importlib
import importlib.util

import pytest

import vardax

PAGE = {
    "types ★": """
        Batch1D Batch2D Batch2DMultivar Batch3D Observations Grid Analysis LSTMState1D LSTMState2D
    """,
    "protocols ★": """
        ForwardModel ObservationOperator AnalysisStep LatentMap LatentForwardModel Prior TemporalPrior GradModulator
        CostFunction Minimiser PosteriorAdapter ReducedBasis
    """,
    "primitives": """
        obs_cost prior_cost model_error_cost variational_cost threedvar_cost incremental_cost blue_analysis
        cvt_transform cvt_inverse tangent_linear laplace_covariance gauss_newton_hessian gauss_newton_inner
        incremental_outer variational_cost_latent obs_misfit_latent_seq latent_incremental_cost identity_latent_map
        decode_jacobian
        BLUECost ThreeDVarCost StrongConstraintCost WeakConstraintCost IncrementalCost FourDVarNetCost
    """,
    "covariances": """
        DiagonalCovariance DenseCovariance MaternLinearOperator DiffusionCovariance Exact Randomised
        KroneckerCovariance LowRankCovariance LocalizedEnsembleCovariance HybridCovariance BlockDiagonalCovariance
        ScaledCovariance BalancedCovariance gaspari_cohn nmc_covariance fit_matern half inv_mv logdet sample
    """,
    "obs_operators ★": """
        MaskedIdentity LinearObs AveragingKernel InterpObs interp_obs_from_coords CallableObs CompositeObs PointObs
        InstrumentSpec InstrumentRegistry MultiInstrumentFusion RetrievalKernel ColumnRetrieval averaging_kernel_from_l2
        is_linear
    """,
    "dynamics": """
        ExternalForward DiffraxForward DiscreteForward NeuralForward SoftBoundedForward rollout
        Lorenz63 Lorenz96 TwoLevelLorenz96 AdvectionDiffusion1D ShallowWater2D QuasiGeostrophic2D GaussianPlume
        simulate_lorenz63 simulate_lorenz96
    """,
    "adjoints ★": """
        OneStepAdjoint KStepAdjoint DirectAdjoint RecursiveCheckpointAdjoint ImplicitAdjoint AbstractAdjoint
        to_optimistix_adjoint to_diffrax_adjoint
    """,
    "models ★": """
        OptimalInterpolation ThreeDVar StrongFourDVar WeakFourDVar IncrementalFourDVar FourDVarNet FourDVarNet1D
        FourDVarNet2D FourDVarNet3D AmortizedPosterior LatentThreeDVar LatentStrongFourDVar LatentHybridFourDVar
        IncrementalConfig SolverConfig AmortizedConfig
    """,
    "minimisers": """
        LanczosCG DualCG Backtracking Identity Exp Softplus LearnedMinimiser
    """,
    "priors ★": """
        BilinAEPrior1D BilinAEPrior2D BilinAEPrior2DMultivar ConvAEPrior1D ConvAEPrior MLPAEPrior1D UNetPrior2D
        IdentityPrior GaussianPrior DynamicalPrior DynIncrements DynTrajectory L63Prior L96Prior
    """,
    "grad_mod ★": """
        ConvLSTMGradMod1D ConvLSTMGradMod2D ConvLSTMGradMod3D MLPGradMod AttentionGradMod IdentityGradMod
    """,
    "posterior ★": """
        Posterior LaplaceCovariance GaussNewtonHessian EnsembleCovariance LatentLaplaceCovariance GaussianMarkLikelihood
    """,
    "training ★": """
        reconstruction_loss train_loss_fn train_step eval_step amortized_nll_loss_fn amortized_train_step
    """,
    "amortized ★": """
        IdentityObsEncoder MLPObsEncoder ConvObsEncoder RegressionHead ConditionalFlowHead ScoreDiffusionHead
    """,
    "latent ★": """
        LatentPrior NeuralLatentForwardModel EncodedForwardModel LiftedObservationOperator
    """,
    "persist": """
        save load LocalModelRegistry
    """,
    "cycle ★": """
        DAState DACycle VarDACycle SmootherCycle VarSmootherCycle LatentDACycle EnsembleOfAnalyses EnsembleTransform
    """,
    "validation ★": """
        assert_posterior_agreement assert_adjoint_calibrated simulation_based_calibration
        adjoint_test taylor_test gradient_test covariance_test observation_operator_test forward_model_test
    """,
    "experiments": """
        fit
    """,
    # Shown by `vardax` itself.
    "": """
        cite
        solve_4dvarnet_1d solve_4dvarnet_2d one_step_solve_4dvarnet_1d one_step_solve_4dvarnet_2d
        solve_4dvarnet_1d_fixedpoint
    """,
}


def promised() -> set[str]:
    """Every promised import path: `module.name`, and `name` for what `vardax` shows itself."""
    paths = set()
    for heading, names in PAGE.items():
        module = heading.removesuffix("★").strip()
        for name in names.split():
            if module:
                paths.add(f"{module}.{name}")
            if not module or heading.endswith("★"):
                paths.add(name)
    return paths


# Whole modules, or single names, that do not exist yet.
TO_COME = {
    "models": """
        AmortizedPosterior AmortizedConfig
    """,
    "training": "amortized_nll_loss_fn amortized_train_step",
    "amortized": PAGE["amortized ★"],
    "cycle": "LatentDACycle EnsembleOfAnalyses EnsembleTransform",
    "": "cite",
}


def to_come() -> set[str]:
    """The promised paths that do not exist yet; a name that is to come is to come in both its places."""
    stars = {heading.removesuffix("★").strip() for heading in PAGE if heading.endswith("★")}
    paths = set()
    for module, names in TO_COME.items():
        for name in names.split():
            if module:
                paths.add(f"{module}.{name}")
            if not module or module in stars:
                paths.add(name)
    return paths


def exists(path: str) -> bool:
    module, _, name = f"vardax.{path}".rpartition(".")
    try:
        found = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        found = None
    return found is not None and name in importlib.import_module(module).__all__


def test_what_is_to_come_was_promised():
    assert not to_come() - promised()


@pytest.mark.parametrize("path", sorted(promised() - to_come()))
def test_a_promised_name_exists(path):
    assert exists(path)


def test_what_exists_is_no_longer_to_come():
    arrived = {path for path in to_come() if exists(path)}
    assert not arrived, f"take {sorted(arrived)} out of TO_COME"


def test_vardax_shows_only_what_it_has():
    missing = [name for name in vardax.__all__ if not hasattr(vardax, name)]
    assert not missing
