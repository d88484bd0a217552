"""A model whose weights go in and out as bytes: what external training loops and model servers ask for."""

from typing import Any

import equinox as eqx

from vardax.persist.decoding import as_leaf, decode
from vardax.persist.encoding import Encoded
from vardax.persist.weights import from_bytes, restored, to_bytes

__all__ = ["SavedModel"]


class SavedModel(eqx.Module):
    """`model`, called as itself, with `serialize_weights()` and `with_weights(bytes)`.

    The bytes are those of a safetensors file: raw arrays by their place in the model, no code.

    >>> from vardax.covariances.diagonal import DiagonalCovariance
    >>> one, two = SavedModel(DiagonalCovariance([1.0, 4.0])), SavedModel(DiagonalCovariance([2.0, 3.0]))
    >>> one.with_weights(two.serialize_weights()).model.variance.tolist()
    [2.0, 3.0]
    """

    model: Any

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        return self.model(*arguments, **keywords)

    def serialize_weights(self) -> bytes:
        """Every array of the model."""
        return to_bytes(Encoded(self.model).arrays)

    def with_weights(self, data: bytes) -> "SavedModel":
        """The same model with other arrays; the first one that does not fit is named by a `ValueError`."""
        here = Encoded(self.model)
        found = from_bytes(data)
        if missing := sorted(here.arrays.keys() ^ found.keys()):
            where = "the bytes" if missing[0] in here.arrays else "the model"
            raise ValueError(f"with_weights: `{missing[0]}` is missing in {where}.")
        arrays = {}
        for name, described in here.described.items():
            try:
                array = restored(found[name], described["dtype"])
            except ValueError as error:
                raise ValueError(f"with_weights: `{name}` is not {described['dtype']}: {error}") from error
            if (str(array.dtype), list(array.shape)) != (described["dtype"], described["shape"]):
                raise ValueError(
                    f"with_weights: `{name}` is {array.dtype} of shape {array.shape}, expected {described['dtype']} of "
                    f"shape {tuple(described['shape'])}."
                )
            arrays[name] = as_leaf(found[name], described)
        return SavedModel(decode(here.tree, "", arrays, self.model))
