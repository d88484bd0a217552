"""A folder of models, each under the hash of what it is.

    root/objects/<ref>/manifest.json         class, configuration, arrays with dtypes and shapes, library versions
    root/objects/<ref>/weights.safetensors   the arrays
    root/tags/<tag>                          the ref that a tag stands for
    root/incoming/                           what is being written

`ref` is the SHA-256 of the manifest, and the manifest holds that of the weights: one hash vouches for every bit. A
model is written beside the objects, flushed to the disk, and becomes an object by one rename: a writer that is killed
leaves the registry as it was. Readers check every hash and load nothing of what is damaged.
"""

import dataclasses
import json
import os
import pathlib
import re
import shutil
import uuid
from collections.abc import Sequence
from typing import Any

import numpy as np

from vardax.persist.decoding import MISSING, as_leaf, decode
from vardax.persist.encoding import Encoded
from vardax.persist.files import flush_folder, sweep, write_flushed
from vardax.persist.manifest import FORMAT, check_like, manifest_of, sha256
from vardax.persist.weights import from_bytes, restored, to_bytes

__all__ = ["LocalModelRegistry", "StoredModel", "load", "save"]

MANIFEST, WEIGHTS = "manifest.json", "weights.safetensors"
TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,199}")
SHORTEST_REF = 8


@dataclasses.dataclass(frozen=True)
class StoredModel:
    """A line of `LocalModelRegistry.list()`: the model's ref, class, tags, bytes of weights, and when it was stored."""

    ref: str
    class_name: str
    tags: tuple[str, ...]
    n_bytes: int
    stored_at: float


class LocalModelRegistry:
    """A registry of models in the folder `root`, which is made when the first model is stored.

    Any number of processes may read and write it at once.
    """

    def __init__(self, root: str | os.PathLike):
        self.root = pathlib.Path(root)
        if self.root.exists() and not self.root.is_dir():
            raise ValueError(f"LocalModelRegistry: `root` is {str(root)!r}, a file; expected a folder.")

    def __repr__(self) -> str:
        return f"LocalModelRegistry({str(self.root)!r})"

    def store(self, model: Any, *, tags: Any = None) -> str:
        """Write `model`, and give it `tags`; returns its ref. The same model is stored once."""
        tags = _checked_tags(tags)
        encoded = Encoded(model)
        weights = to_bytes(encoded.arrays)
        manifest = manifest_of(encoded, weights)
        ref = sha256(manifest)
        if not self._is_sound(ref):
            self._write(ref, {MANIFEST: manifest, WEIGHTS: weights})
        self.tag(ref, *tags)
        return ref

    def load(self, ref: Any, skeleton: Any = None) -> Any:
        """The model with this ref (or its first 8 or more digits, or a tag), bit for bit.

        Without a `skeleton` it is made from the manifest, which takes classes and functions of vardax, jax, equinox,
        lineax, optimistix and diffrax only. A `skeleton` is a model of the same structure: code of yours comes from it,
        and the first field in which it is not like the stored model is named by a `ValueError`.
        """
        ref = self._full(ref)
        manifest = self._manifest_of(ref)
        loaded = self._weights_of(ref, manifest)
        described, tree = manifest["arrays"], manifest["model"]
        if skeleton is not None:
            check_like(manifest, skeleton)
        arrays = {}
        for name, array in loaded.items():
            try:
                arrays[name] = as_leaf(array, described[name])
            except ValueError as error:
                raise ValueError(f"persist.load: `{name}` of {ref[:12]} cannot be loaded: {error}") from error
        return decode(tree, "", arrays, MISSING if skeleton is None else skeleton)

    def load_weights(self, ref: Any) -> dict[str, np.ndarray]:
        """The arrays alone, as numpy arrays, by their place in the model."""
        ref = self._full(ref)
        manifest = self._manifest_of(ref)
        found = self._weights_of(ref, manifest)
        return {name: restored(array, manifest["arrays"][name]["dtype"]) for name, array in found.items()}

    def manifest(self, ref: Any) -> dict[str, Any]:
        """What is written of a model: class, configuration, arrays, structure, versions."""
        return self._manifest_of(self._full(ref))

    def list(self) -> list[StoredModel]:
        """Every stored model, oldest first."""
        by_ref: dict[str, list[str]] = {}
        for tag, ref in self._tags().items():
            by_ref.setdefault(ref, []).append(tag)
        found = []
        for ref in self._refs():
            folder = self._folder(ref)
            class_name = self._manifest_of(ref)["class"]
            size, when = (folder / WEIGHTS).stat().st_size, (folder / MANIFEST).stat().st_mtime
            found.append(StoredModel(ref, class_name, tuple(sorted(by_ref.get(ref, ()))), size, when))
        return sorted(found, key=lambda entry: (entry.stored_at, entry.ref))

    def tag(self, ref: Any, *tags: str) -> None:
        """Let `tags` stand for a stored model; a tag that stood for another one moves."""
        ref = self._full(ref)
        for tag in _checked_tags(tags):
            folder = self.root / "tags"
            folder.mkdir(parents=True, exist_ok=True)
            self._incoming().mkdir(parents=True, exist_ok=True)
            written = self._incoming() / uuid.uuid4().hex
            write_flushed(written, ref.encode())
            os.replace(written, folder / tag)
            flush_folder(folder)

    def remove(self, ref: Any) -> None:
        """Remove a stored model and its tags. Whoever is reading it meanwhile gets an error, not half a model."""
        ref = self._full(ref)
        for tag in [tag for tag, stored in self._tags().items() if stored == ref]:
            (self.root / "tags" / tag).unlink(missing_ok=True)
        self._incoming().mkdir(parents=True, exist_ok=True)
        leaving = self._incoming() / uuid.uuid4().hex
        os.rename(self._folder(ref), leaving)
        flush_folder(self._folder(ref).parent)
        shutil.rmtree(leaving, ignore_errors=True)

    # ------------------------------------------------------------------------------------------------------ reading

    def _folder(self, ref: str) -> pathlib.Path:
        return self.root / "objects" / ref

    def _incoming(self) -> pathlib.Path:
        return self.root / "incoming"

    def _refs(self) -> Sequence[str]:
        folder = self.root / "objects"
        return sorted(p.name for p in folder.iterdir() if _is_ref(p.name)) if folder.is_dir() else []

    def _tags(self) -> dict[str, str]:
        folder = self.root / "tags"
        return {p.name: p.read_text("ascii") for p in folder.iterdir()} if folder.is_dir() else {}

    def _full(self, ref: Any) -> str:
        """The whole ref of a ref, of its beginning, or of a tag."""
        if not isinstance(ref, str):
            raise TypeError(f"`ref` is {type(ref).__name__}, expected the text that `save` returned, or a tag.")
        if _is_ref(ref) and self._folder(ref).is_dir():
            return ref
        tags = self._tags()
        if ref in tags:
            return tags[ref]
        begins = [full for full in self._refs() if len(ref) >= SHORTEST_REF and full.startswith(ref)]
        if len(begins) == 1:
            return begins[0]
        known = f"; its tags: {', '.join(sorted(tags)) or 'none'}"
        what = f"{len(begins)} models whose ref begins with" if begins else "no model with the ref or tag"
        raise ValueError(f"{self!r} has {what} {ref!r}{known}. `list()` shows all.")

    def _read(self, ref: str, name: str) -> bytes:
        try:
            return (self._folder(ref) / name).read_bytes()
        except OSError as error:
            raise ValueError(
                f"{self!r}: {name} of {ref[:12]} cannot be read ({error}); store the model again."
            ) from error

    def _manifest_of(self, ref: str) -> dict[str, Any]:
        data = self._read(ref, MANIFEST)
        if sha256(data) != ref:
            raise ValueError(_damaged(self, ref, MANIFEST, sha256(data), ref))
        manifest = json.loads(data)
        if manifest.get("format") != FORMAT:
            found = manifest.get("format")
            raise ValueError(
                f"{self!r}: {ref[:12]} has the format {found!r}, expected {FORMAT}; vardax is too old for it."
            )
        return manifest

    def _weights_of(self, ref: str, manifest: dict[str, Any]) -> dict[str, np.ndarray]:
        data = self._read(ref, WEIGHTS)
        if sha256(data) != manifest["weights"]:
            raise ValueError(_damaged(self, ref, WEIGHTS, sha256(data), manifest["weights"]))
        return from_bytes(data)

    def _is_sound(self, ref: str) -> bool:
        """Whether the object exists and is not damaged."""
        try:
            return sha256(self._read(ref, WEIGHTS)) == self._manifest_of(ref)["weights"]
        except ValueError:
            return False

    # ------------------------------------------------------------------------------------------------------ writing

    def _write(self, ref: str, files: dict[str, bytes]) -> None:
        """Write the files beside the objects; one rename makes them an object."""
        incoming, target = self._incoming(), self._folder(ref)
        target.parent.mkdir(parents=True, exist_ok=True)
        incoming.mkdir(parents=True, exist_ok=True)
        sweep(incoming)
        folder = incoming / uuid.uuid4().hex
        folder.mkdir()
        for name, data in files.items():
            write_flushed(folder / name, data)
        flush_folder(folder)
        if target.exists() and not self._is_sound(ref):
            os.rename(target, incoming / uuid.uuid4().hex)  # damaged: make room
        try:
            os.rename(folder, target)
        except OSError:
            shutil.rmtree(folder, ignore_errors=True)
            if not self._is_sound(ref):  # otherwise another writer was first, with the same bytes
                raise
        flush_folder(target.parent)


def save(model: Any, registry_or_path: Any, *, tags: Any = None) -> str:
    """Store `model` in a registry, or in the one in the folder of that path; returns its ref.

    >>> import tempfile
    >>> from vardax.covariances.diagonal import DiagonalCovariance
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     ref = save(DiagonalCovariance([1.0, 4.0]), folder, tags=["b"])
    ...     load(folder, "b").variance.tolist()
    [1.0, 4.0]
    """
    return _as_registry(registry_or_path).store(model, tags=tags)


def load(registry_or_path: Any, ref: Any, skeleton: Any = None) -> Any:
    """The model with this ref or tag; see `LocalModelRegistry.load`. Damage raises a `ValueError`."""
    return _as_registry(registry_or_path).load(ref, skeleton)


def _as_registry(registry_or_path: Any) -> Any:
    """A registry: ours, any other object with `store` and `load`, or that of a folder."""
    if hasattr(registry_or_path, "store") and hasattr(registry_or_path, "load"):
        return registry_or_path
    if isinstance(registry_or_path, str | os.PathLike):
        return LocalModelRegistry(registry_or_path)
    raise TypeError(
        f"`registry_or_path` is {type(registry_or_path).__name__}, expected a folder or a registry with `store` and "
        "`load`, such as LocalModelRegistry(folder)."
    )


def _is_ref(name: str) -> bool:
    return re.fullmatch(r"[0-9a-f]{64}", name) is not None


def _checked_tags(tags: Any) -> Sequence[str]:
    if isinstance(tags, str):
        raise TypeError(f"`tags` is the text {tags!r}, expected a sequence of tags: [{tags!r}].")
    for tag in tags or ():
        if not isinstance(tag, str) or not TAG.fullmatch(tag) or _is_ref(tag):
            raise ValueError(
                f"`tags` holds {tag!r}, expected letters, digits, '.', '_', '+' and '-', and a letter or digit first."
            )
    return tags or ()


def _damaged(registry: LocalModelRegistry, ref: str, name: str, found: str, expected: str) -> str:
    return (
        f"{registry!r}: {name} of {ref[:12]} is damaged or truncated: its SHA-256 is {found[:12]}..., expected "
        f"{expected[:12]}...; nothing was loaded. Store the model again."
    )
