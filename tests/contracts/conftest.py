"""What every kind of object owes its user beside its own contract."""

import numpy as np
import pytest

from vardax.persist import LocalModelRegistry
from vardax.persist.encoding import Encoded


@pytest.fixture
def comes_back(tmp_path):
    """A check that `make()` comes back from a registry bit for bit; code of the tests comes from a skeleton."""

    def check(make):
        registry, model = LocalModelRegistry(tmp_path / "registry"), make()
        ref = registry.store(model)
        needs_skeleton = '"foreign"' in repr(registry.manifest(ref)).replace("'", '"') or not _ours(registry, ref)
        if needs_skeleton:
            with pytest.raises(ValueError, match="skeleton"):
                registry.load(ref)
        loaded = registry.load(ref, model if needs_skeleton else None)
        assert type(loaded) is type(model)
        saved, found = Encoded(model), Encoded(loaded)
        assert found.tree == saved.tree
        assert found.described == saved.described
        for name, array in saved.arrays.items():
            assert found.arrays[name].tobytes() == np.asarray(array).tobytes(), name
        assert registry.store(loaded) == ref

    return check


def _ours(registry, ref):
    """Whether every class of a manifest is one that is found by its name."""
    from vardax.persist.names import is_known

    def classes(node):
        if isinstance(node, dict):
            yield from [node["class"]] if "class" in node else []
            node = list(node.values())
        for part in node if isinstance(node, list) else []:
            yield from classes(part)

    return all(map(is_known, classes(registry.manifest(ref)["model"])))
