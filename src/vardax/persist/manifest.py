"""What is written of a model beside its arrays: class, configuration, structure, dtypes, shapes, library versions."""

import hashlib
import json
import platform
from importlib.metadata import version
from typing import Any

from vardax.persist.differences import first_difference
from vardax.persist.encoding import Encoded

__all__ = ["FORMAT", "check_like", "manifest_of", "sha256"]

FORMAT = 1
LIBRARIES = ("vardax", "jax", "numpy", "equinox", "lineax", "optimistix", "diffrax")


def manifest_of(encoded: Encoded, weights: bytes) -> bytes:
    """The manifest of a model and of the bytes of its arrays."""
    tree = encoded.tree
    class_name = tree.get("class") or next(iter(tree)) if isinstance(tree, dict) else type(tree).__name__
    structure = _canonical({"model": tree, "arrays": encoded.described})
    manifest = {
        "format": FORMAT,
        "class": class_name,
        "model": tree,
        "arrays": encoded.described,
        "structure": sha256(structure),
        "weights": sha256(weights),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
    }
    return _canonical(manifest)


def check_like(manifest: dict[str, Any], skeleton: Any) -> None:
    """The skeleton has the structure of the stored model; the first difference is named."""
    here = Encoded(skeleton)
    if difference := first_difference(manifest["model"], here.tree):
        raise ValueError(f"persist.load: {difference} in `skeleton`; the stored model comes first.")
    for name, saved in manifest["arrays"].items():
        found = here.described[name]
        if (saved["dtype"], saved["shape"]) != (found["dtype"], found["shape"]):
            text = [f"{d['dtype']} of shape {tuple(d['shape'])}" for d in (saved, found)]
            raise ValueError(f"persist.load: `{name}` is {text[0]} in the registry, and {text[1]} in `skeleton`.")


def _canonical(manifest: dict[str, Any]) -> bytes:
    """One way to write it; the order of fields and of keys of a dictionary counts."""
    return json.dumps(manifest, indent=1, ensure_ascii=False, allow_nan=False).encode()


def sha256(data: bytes) -> str:
    """The hash, as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()
