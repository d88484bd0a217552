"""A registry keeps every bit, says when it could not, and is never left with half a model."""

import json
import os
import subprocess
import sys
import textwrap
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax import persist
from vardax.covariances.dense import DenseCovariance
from vardax.covariances.diagonal import DiagonalCovariance
from vardax.dynamics.lorenz63 import Lorenz63
from vardax.dynamics.neural_forward import NeuralForward
from vardax.persist import files
from vardax.persist.registry import MANIFEST, WEIGHTS, LocalModelRegistry


@pytest.fixture
def registry(tmp_path):
    return LocalModelRegistry(tmp_path / "registry")


def model(seed=0):
    return NeuralForward(eqx.nn.MLP(3, 3, 8, 2, key=jax.random.key(seed)), 0.1)


def test_a_model_comes_back_without_a_skeleton_and_with_one(registry):
    ref = registry.store(model())
    for loaded in (registry.load(ref), registry.load(ref, skeleton=model(1))):
        assert eqx.tree_equal(loaded, model())
    x = jnp.array([1.0, 2.0, 3.0])
    assert registry.load(ref).step(x, 0.1).tolist() == model().step(x, 0.1).tolist()


def test_the_ref_is_that_of_the_content(registry):
    ref = registry.store(model())
    assert registry.store(model()) == ref
    changed = eqx.tree_at(lambda m: m.net.layers[0].bias, model(), replace_fn=lambda b: b.at[0].add(1e-7))
    assert registry.store(changed) != ref
    assert registry.store(NeuralForward(model().net, 0.2)) != ref
    assert len(registry.list()) == 3


def test_the_manifest_says_what_is_stored(registry):
    manifest = registry.manifest(registry.store(model()))
    assert manifest["class"] == "vardax.dynamics.neural_forward:NeuralForward"
    assert manifest["arrays"]["net.layers[0].weight"]["shape"] == [8, 3]
    assert {"python", "vardax", "jax", "equinox"} <= set(manifest["versions"])
    same_structure = registry.manifest(registry.store(model(1)))
    assert same_structure["structure"] == manifest["structure"]
    assert registry.manifest(registry.store(Lorenz63()))["structure"] != manifest["structure"]


def test_weights_alone_are_arrays_by_their_place(registry):
    weights = registry.load_weights(registry.store(model()))
    assert np.array_equal(weights["net.layers[1].bias"], model().net.layers[1].bias)


def test_tags_stand_for_models_and_move(registry):
    first = registry.store(model(), tags=["best", "v1.0"])
    second = registry.store(model(1))
    registry.tag(second, "best")
    assert eqx.tree_equal(registry.load("best"), model(1))
    assert eqx.tree_equal(registry.load("v1.0"), model())
    assert {entry.ref: entry.tags for entry in registry.list()} == {first: ("v1.0",), second: ("best",)}


def test_a_removed_model_takes_its_tags_along(registry):
    first = registry.store(model(), tags=["best", "v1.0"])
    second = registry.store(model(1), tags=["latest"])
    registry.remove("best")
    assert [entry.ref for entry in registry.list()] == [second]
    for gone in (first, "best", "v1.0"):
        with pytest.raises(ValueError, match="no model with the ref or tag"):
            registry.load(gone)
    with pytest.raises(ValueError, match="no model with the ref or tag"):
        registry.remove(first)
    assert not list((registry.root / "incoming").iterdir())
    assert registry.store(model()) == first


def test_a_ref_may_be_shortened(registry):
    ref = registry.store(model())
    assert eqx.tree_equal(registry.load(ref[:8]), model())
    for unknown in (ref[:7], "0" * 64, "nothing"):
        with pytest.raises(ValueError, match="no model with the ref or tag"):
            registry.load(unknown)
    with pytest.raises(TypeError, match="`ref` is int"):
        registry.load(3)


@pytest.mark.parametrize("tag", ["", "a/b", "../up", "a b", "0" * 64, ".hidden"])
def test_a_tag_that_is_no_file_name_is_refused_before_anything_is_written(registry, tag):
    with pytest.raises(ValueError, match="`tags` holds"):
        registry.store(model(), tags=[tag])
    assert not registry.root.exists()


def test_tags_are_a_sequence(registry):
    with pytest.raises(TypeError, match=r"expected a sequence of tags: \['best'\]"):
        registry.store(model(), tags="best")


def test_save_and_load_take_a_folder_or_a_registry(tmp_path):
    ref = persist.save(DiagonalCovariance(jnp.array([1.0, 4.0])), tmp_path, tags=["b"])
    for place in (tmp_path, str(tmp_path), LocalModelRegistry(tmp_path)):
        assert persist.load(place, ref).variance.tolist() == [1.0, 4.0]
    with pytest.raises(TypeError, match="`registry_or_path` is int"):
        persist.save(Lorenz63(), 3)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="a file; expected a folder"):
        persist.load(tmp_path / "file", ref)


@pytest.mark.parametrize(
    ("skeleton", "message"),
    [
        (lambda: DenseCovariance(jnp.eye(2)), "the model is of class .*DiagonalCovariance, .*DenseCovariance"),
        (lambda: DiagonalCovariance(jnp.ones(3)), r"`variance` is float\d+ of shape \(2,\) in the registry"),
        (lambda: DiagonalCovariance(jnp.ones(2, jnp.float16)), "and float16 of shape"),
    ],
)
def test_a_skeleton_that_differs_is_refused(registry, skeleton, message):
    ref = registry.store(DiagonalCovariance(jnp.ones(2)))
    with pytest.raises(ValueError, match=message):
        registry.load(ref, skeleton())


@pytest.mark.parametrize("name", [MANIFEST, WEIGHTS])
@pytest.mark.parametrize("damage", ["flipped", "truncated", "emptied", "removed"])
def test_damage_is_named_nothing_is_loaded_and_storing_again_mends_it(registry, name, damage):
    ref = registry.store(DiagonalCovariance(jnp.arange(1.0, 4.0)))
    path = registry.root / "objects" / ref / name
    data = path.read_bytes()
    if damage == "removed":
        path.unlink()
    else:
        middle = len(data) // 2
        flipped = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        path.write_bytes({"flipped": flipped, "truncated": data[:-1], "emptied": b""}[damage])
    for read in (registry.load, registry.load_weights):
        with pytest.raises(ValueError, match=f"{name} of .*(damaged or truncated|cannot be read)"):
            read(ref)
    assert registry.store(DiagonalCovariance(jnp.arange(1.0, 4.0))) == ref
    assert registry.load(ref).variance.tolist() == [1.0, 2.0, 3.0]


def test_a_later_format_is_refused(registry):
    ref = registry.store(Lorenz63())
    manifest = {**registry.manifest(ref), "format": 99}
    data = json.dumps(manifest).encode()
    other = persist.registry.sha256(data)
    (registry.root / "objects" / other).mkdir()
    (registry.root / "objects" / other / MANIFEST).write_bytes(data)
    with pytest.raises(ValueError, match="format 99, expected 1"):
        registry.load(other)


def test_a_writer_that_comes_second_finds_the_model_there(registry, monkeypatch):
    rename = os.rename

    def first_comes_another(source, target):
        monkeypatch.setattr(os, "rename", rename)
        LocalModelRegistry(registry.root).store(model())
        rename(source, target)

    monkeypatch.setattr(os, "rename", first_comes_another)
    ref = registry.store(model())
    assert eqx.tree_equal(registry.load(ref), model())
    assert not list((registry.root / "incoming").iterdir())


def test_leftovers_are_swept_when_they_are_old(registry):
    registry.store(model())
    old, new = (registry.root / "incoming" / name for name in ("old", "new"))
    for folder in (old, new):
        folder.mkdir()
        (folder / WEIGHTS).write_bytes(b"half")
    long_ago = time.time() - 2 * files.STALE_SECONDS
    os.utime(old, (long_ago, long_ago))
    registry.store(model(1))
    assert [path.name for path in (registry.root / "incoming").iterdir()] == ["new"]


KILLED = """
    import os, signal, sys, warnings
    warnings.simplefilter("ignore")
    import numpy as np
    from vardax.persist.registry import LocalModelRegistry
    from vardax.persist import files

    root, steps = sys.argv[1], 0
    model = {"weights": np.arange(1000.0), "name": "new"}

    def dying(function, step):
        def call(*arguments):
            global steps
            steps += 1
            if steps == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments)
        return call

    for step in range(1, 100):
        child = os.fork()
        if child == 0:
            for name in ("rename", "replace", "fsync", "mkdir"):
                setattr(os, name, dying(getattr(os, name), step))
            LocalModelRegistry(root).store(model, tags=["current"])
            os._exit(0)
        _, status = os.waitpid(child, 0)
        registry = LocalModelRegistry(root)
        current = registry.load("current")["name"]
        for entry in registry.list():
            registry.load(entry.ref)
        print(step, os.WIFSIGNALED(status), current, len(registry.list()), flush=True)
        if not os.WIFSIGNALED(status):
            break
"""


def test_a_writer_killed_at_any_step_leaves_the_old_model_or_the_new_one(registry, tmp_path):
    registry.store({"weights": np.zeros(1000), "name": "old"}, tags=["current"])
    program = tmp_path / "killed.py"
    program.write_text(textwrap.dedent(KILLED))
    done = subprocess.run(
        [sys.executable, str(program), str(registry.root)], capture_output=True, text=True, check=True, timeout=120
    )
    lines = [line.split() for line in done.stdout.splitlines()]
    killed = [line for line in lines if line[1] == "True"]
    assert len(killed) >= 6
    assert lines[-1][1:] == ["False", "new", "2"]
    assert {line[2] for line in killed} <= {"old", "new"}
    assert killed[0][2:] == ["old", "1"]
    assert registry.load("current")["name"] == "new"
