"""Models on disk: content-addressed, written whole or not at all, read without executing anything.

    registry = persist.LocalModelRegistry("models")
    ref = persist.save(model, registry, tags=["ssh-v1"])
    model = persist.load(registry, "ssh-v1")

A model is any pytree of vardax's own classes and those of equinox, lineax, optimistix and diffrax: methods, priors,
covariances, operators, forward models. Its arrays go to a file of raw numbers in the safetensors format, everything
else to a JSON manifest; nothing is pickled. `ref` is the SHA-256 of the manifest, which holds that of the arrays.
"""

from vardax.persist.registry import LocalModelRegistry, StoredModel, load, save
from vardax.persist.saved_model import SavedModel

__all__ = ["LocalModelRegistry", "SavedModel", "StoredModel", "load", "save"]
