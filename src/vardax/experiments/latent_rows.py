"""The rows of the latent methods: in the EOFs of the climatology, all of them.

    V = EOFs of the truth's states,   B_z = xB diag(their variances),   so that V B_z Vᵀ = xB C

The basis loses nothing, and B is that of the sibling in state space, so each row has to show the score of that sibling:
`LatentThreeDVar` that of `ThreeDVar`, the other two that of `StrongFourDVar`. The latent model of
`LatentStrongFourDVar` is the model between decoder and encoder.
"""

from typing import Any

from vardax.covariances.diagonal import DiagonalCovariance
from vardax.experiments.twin import Row, Twin
from vardax.latent.eof import EOFBasis
from vardax.latent.forward import EncodedForwardModel
from vardax.latent.prior import LatentPrior

__all__ = ["latent_hybrid_fourdvar", "latent_strong_fourdvar", "latent_threedvar"]

EOFS = "all EOFs of the climatology"


def _basis_and_prior(twin: Twin, config: Any) -> tuple[EOFBasis, LatentPrior]:
    entries, n = twin.truth.shape
    basis = EOFBasis.from_samples(twin.truth, min(n, entries - 1))
    B_z = DiagonalCovariance(config.xB * basis.variances)
    return basis, LatentPrior(basis, basis.encode(twin.first_guess), B_z)


def latent_threedvar(method: type, twin: Twin, config: Any) -> Row:
    """Every observation time alone; the forecast is encoded."""
    basis, prior = _basis_and_prior(twin, config)
    model = method(basis, twin.obs_op, prior, twin.obs_cov_op)
    return Row("LatentThreeDVar", f"background: the forecast; {EOFS}", twin.forward, model)


def latent_strong_fourdvar(method: type, twin: Twin, config: Any) -> Row:
    """Windows of one interval, by the latent model."""
    basis, prior = _basis_and_prior(twin, config)
    model = method(basis, EncodedForwardModel(basis, twin.forward), twin.obs_op, prior, twin.obs_cov_op)
    note = f"window of one interval, by the model in latent space; {EOFS}"
    return Row("LatentStrongFourDVar", note, twin.forward, model, takes_window=True)


def latent_hybrid_fourdvar(method: type, twin: Twin, config: Any) -> Row:
    """Windows of one interval, by the model of states."""
    basis, prior = _basis_and_prior(twin, config)
    model = method(basis, twin.forward, twin.obs_op, prior, twin.obs_cov_op)
    note = f"window of one interval, its end observed; {EOFS}"
    return Row("LatentHybridFourDVar", note, twin.forward, model, takes_window=True)
