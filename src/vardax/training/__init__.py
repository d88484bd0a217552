"""Training: losses, steps, and the batches that they are given.

    optimizer = optax.adam(1e-3)
    opt_state = optimizer.init(eqx.filter(model, eqx.is_array))
    for batch in minibatches(data, 16, key):
        model, opt_state, loss = train_step(model, batch, optimizer, opt_state)

| module | holds |
|---|---|
| `losses` | the reconstruction loss, and losses for loops of other libraries |
| `field_losses` | losses of gradients of fields and of the prior |
| `steps` | `train_step` and `eval_step`; steps that are not finite are skipped |
| `trainable`, `optimiser_state` | what of a model is trained, and where its part of an optimiser's state is |
| `minibatches` | minibatches and random patches of a batch of many windows |
| `data_parallel` | the same step on several devices |

`vardax.experiments.fit` is a trainer made of these, with validation, early stopping, checkpoints and a log.
"""

from vardax.training.data_parallel import replicate, shard_windows
from vardax.training.field_losses import field_loss, gradient_loss, prior_loss
from vardax.training.losses import as_external_loss, reconstruction_loss, train_loss_fn
from vardax.training.minibatches import minibatches, patches, take_windows
from vardax.training.steps import eval_step, train_step
from vardax.training.trainable import learned

__all__ = [
    "as_external_loss",
    "eval_step",
    "field_loss",
    "gradient_loss",
    "learned",
    "minibatches",
    "patches",
    "prior_loss",
    "reconstruction_loss",
    "replicate",
    "shard_windows",
    "take_windows",
    "train_loss_fn",
    "train_step",
]
