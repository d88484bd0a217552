"""`FourDVarNet1D`, `FourDVarNet2D`, `FourDVarNet3D`: 4DVarNet with the default networks of a number of dimensions.

The method is `FourDVarNet`. These fill the slots that are not given: a bilinear autoencoder as the prior and a ConvLSTM
as the modulator, both with the times of the window as channels, and the number of iterations. Sizes are those of the
defaults, and say nothing where `prior`, `grad_mod` or `config` is given. First weights come from `key`, which is
`jax.random.key(0)` if not given. Further slots are those of `FourDVarNet`: `solver_adjoint`, `forward_adjoint`,
`obs_cov_op`, `start`, `prior_mean`, `strict`, ...
"""

from collections.abc import Sequence
from typing import Any

from jaxtyping import PRNGKeyArray

from vardax.minimisers.solver_config import SolverConfig
from vardax.models.default_networks import MODULATORS, config_of, keys_of, required, signature_on
from vardax.models.fourdvarnet import FourDVarNet
from vardax.obs_operators.identity import MaskedIdentity
from vardax.priors.bilinear_grid import BilinAEPrior2D, BilinAEPrior2DMultivar, BilinAEPrior3D
from vardax.priors.dense_autoencoders import BilinAEPrior1D

__all__ = ["FourDVarNet1D", "FourDVarNet2D", "FourDVarNet3D"]


class FourDVarNet1D(FourDVarNet):
    """4DVarNet of windows (n_time, state_dim), as in `Batch1D`.

    >>> import jax.numpy as jnp
    >>> from vardax.types import Batch1D
    >>> model = FourDVarNet1D(state_dim=6, n_time=5, latent_dim=4, hidden_dim=4, n_solver_steps=3)
    >>> model(Batch1D.from_observations(jnp.ones((2, 5, 6)))).shape
    (2, 5, 6)
    """

    def __init__(
        self,
        state_dim: int | None = None,
        n_time: int | None = None,
        latent_dim: int = 32,
        hidden_dim: int = 32,
        n_solver_steps: int = 15,
        *,
        obs_op: Any = MaskedIdentity(),  # noqa: B008  (an immutable value)
        prior: Any = None,
        grad_mod: Any = None,
        config: SolverConfig | None = None,
        key: PRNGKeyArray | None = None,
        **slots: Any,
    ):
        for_prior, for_grad_mod = keys_of(key)
        if prior is None:
            state_dim, n_time = required("FourDVarNet1D", state_dim=state_dim, n_time=n_time)
            prior = BilinAEPrior1D(state_dim, n_time, latent_dim, key=for_prior)
        if grad_mod is None:
            (n_time,) = required("FourDVarNet1D", n_time=n_time)
            grad_mod = MODULATORS[1](n_time, hidden_dim, key=for_grad_mod)
        super().__init__(prior, obs_op, grad_mod, config_of(config, n_solver_steps), **slots)


class FourDVarNet2D(FourDVarNet):
    """4DVarNet of windows (n_time, H, W), as in `Batch2D`; with `n_channels` > 1 of (n_time, n_channels, H, W).

    The default networks are convolutional: trained on patches, they run on any grid. `grid_shape` (H, W) makes another
    grid an error.

    >>> import jax.numpy as jnp
    >>> from vardax.types import Batch2D
    >>> model = FourDVarNet2D(n_time=3, latent_dim=4, hidden_dim=4, n_solver_steps=2)
    >>> model(Batch2D.from_observations(jnp.ones((1, 3, 8, 10)))).shape
    (1, 3, 8, 10)
    """

    def __init__(
        self,
        n_time: int | None = None,
        grid_shape: Sequence[int] | None = None,
        n_channels: int = 1,
        latent_dim: int = 32,
        hidden_dim: int = 32,
        n_solver_steps: int = 15,
        *,
        obs_op: Any = MaskedIdentity(),  # noqa: B008  (an immutable value)
        prior: Any = None,
        grad_mod: Any = None,
        config: SolverConfig | None = None,
        key: PRNGKeyArray | None = None,
        **slots: Any,
    ):
        for_prior, for_grad_mod = keys_of(key)
        if prior is None or grad_mod is None or grid_shape is not None:
            (times,) = required("FourDVarNet2D", n_time=n_time)
            several = n_channels > 1
            if prior is None and several:
                prior = BilinAEPrior2DMultivar(times, n_channels, latent_dim, key=for_prior)
            elif prior is None:
                prior = BilinAEPrior2D(times, latent_dim, key=for_prior)
            if grad_mod is None:
                grad_mod = MODULATORS[2](times * n_channels, hidden_dim, key=for_grad_mod)
            axes = (times, n_channels) if several else (times,)
            slots.setdefault("state_signature", signature_on(grid_shape, axes, 2, "FourDVarNet2D"))
        super().__init__(prior, obs_op, grad_mod, config_of(config, n_solver_steps), **slots)


class FourDVarNet3D(FourDVarNet):
    """4DVarNet of windows (n_time, D, H, W), as in `Batch3D`; the rest is as in `FourDVarNet2D`.

    >>> import jax.numpy as jnp
    >>> from vardax.types import Batch3D
    >>> model = FourDVarNet3D(n_time=2, latent_dim=2, hidden_dim=2, n_solver_steps=2)
    >>> model(Batch3D.from_observations(jnp.ones((1, 2, 4, 5, 6)))).shape
    (1, 2, 4, 5, 6)
    """

    def __init__(
        self,
        n_time: int | None = None,
        grid_shape: Sequence[int] | None = None,
        n_channels: int = 1,
        latent_dim: int = 16,
        hidden_dim: int = 16,
        n_solver_steps: int = 15,
        *,
        obs_op: Any = MaskedIdentity(),  # noqa: B008  (an immutable value)
        prior: Any = None,
        grad_mod: Any = None,
        config: SolverConfig | None = None,
        key: PRNGKeyArray | None = None,
        **slots: Any,
    ):
        if n_channels != 1:
            raise ValueError(f"FourDVarNet3D: `n_channels` is {n_channels}, expected 1: Batch3D has one variable.")
        for_prior, for_grad_mod = keys_of(key)
        if prior is None or grad_mod is None or grid_shape is not None:
            (times,) = required("FourDVarNet3D", n_time=n_time)
            prior = BilinAEPrior3D(times, latent_dim, key=for_prior) if prior is None else prior
            grad_mod = MODULATORS[3](times, hidden_dim, key=for_grad_mod) if grad_mod is None else grad_mod
            slots.setdefault("state_signature", signature_on(grid_shape, (times,), 3, "FourDVarNet3D"))
        super().__init__(prior, obs_op, grad_mod, config_of(config, n_solver_steps), **slots)
