"""The strict environment in which every test runs, and the count of what is compiled.

Everything that has to be set before JAX starts is set here, before `vardax` is imported anywhere:

- two host CPU devices, so that code which silently assumes one device fails;
- float64 by default; `VARDAX_TEST_X64=0` runs the suite in JAX's own default, float32. Tests marked `x64` are
  meaningless there and are then left out of the run (deselected, not skipped);
- strict dtype promotion and no rank promotion: neither a dtype nor a shape is ever mended silently;
- run-time checks of every jaxtyping annotation in `vardax`, with beartype;
- warnings are errors (in `pyproject.toml`);
- a persistent compilation cache under pytest's own cache folder, which makes a second run several times faster;
- XLA's older emitters of fused loops, where the release still has both: they compile in about half the time. The pages
  of the documentation, the benchmarks and the tests on newer releases run with the newer ones.

Each run ends with a section that says how much was compiled, and by which tests. A test that must not compile says so:

    def test_second_call_does_not_compile(count_compilations):
        model(first_batch)
        with count_compilations() as compiled:
            model(second_batch)
        assert compiled.n == 0, compiled.names
"""

import importlib.metadata
import os

os.environ["XLA_FLAGS"] = (os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2").strip()
if importlib.metadata.version("jaxlib").startswith("0.10."):  # XLA stops at a flag that it does not know
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "agg")

import collections
import contextlib
import json

import hypothesis
import jax
import jax.monitoring
import jaxtyping
import pytest

X64 = os.environ.get("VARDAX_TEST_X64", "1") != "0"

jax.config.update("jax_enable_x64", X64)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

jaxtyping.install_import_hook("vardax", "beartype.beartype")

# Compilation makes first examples slow, and a run must say the same every time.
hypothesis.settings.register_profile("vardax", deadline=None, derandomize=True, max_examples=20)
hypothesis.settings.load_profile("vardax")

# JAX reports one such event per executable that it makes, also when the executable comes from the persistent cache.
COMPILED = "/jax/core/compile/backend_compile_duration"
TRACED = "/jax/core/compile/jaxpr_trace_duration"

MOST_KEPT = 150
"""Executables that a process keeps."""

_kept = 0
_counters: list["Compilations"] = []
_per_test: collections.Counter[str] = collections.Counter()


class Compilations:
    """What JAX traced and compiled while this counter was open: `n` executables, `n_traces` traces, their `names`."""

    def __init__(self):
        self.names: list[str] = []
        self.n_traces = 0

    @property
    def n(self) -> int:
        return len(self.names)


@contextlib.contextmanager
def _count_compilations():
    counter = Compilations()
    _counters.append(counter)
    try:
        yield counter
    finally:
        _counters.remove(counter)


def _on_duration(event: str, duration: float, **labels) -> None:
    for counter in _counters:
        if event == COMPILED:
            counter.names.append(str(labels.get("fun_name")))
        elif event == TRACED:
            counter.n_traces += 1


jax.monitoring.register_event_duration_secs_listener(_on_duration)


@pytest.fixture
def count_compilations():
    """The context manager that counts compilations: `with count_compilations() as compiled: ...; compiled.n`."""
    return _count_compilations


def pytest_configure(config: pytest.Config) -> None:
    """Keep compiled programs between runs, under pytest's own cache folder."""
    jax.config.update("jax_compilation_cache_dir", str(config.cache.mkdir("jax-compilations")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the tests that need float64 out of a float32 run."""
    if X64:
        return
    float64_only = [item for item in items if item.get_closest_marker("x64")]
    if float64_only:
        config.hook.pytest_deselected(items=float64_only)
        items[:] = [item for item in items if not item.get_closest_marker("x64")]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None):
    """Count the compilations of each test, its fixtures included."""
    with _count_compilations() as counter:
        result = yield
    _per_test[item.nodeid] += counter.n
    _forget_if_many(counter.n)
    return result


def _forget_if_many(n: int) -> None:
    """Forget executables within a long file too: each maps some tens of pieces of memory, and Linux allows 65530."""
    global _kept
    _kept += n
    if _kept > MOST_KEPT:
        jax.clear_caches()
        _kept = 0


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A process that runs a part of the suite hands its counts to the one that reports."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["compilations"] = dict(_per_test)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error) -> None:
    """Take over the counts of a process that has finished."""
    _per_test.update(getattr(node, "workeroutput", {}).get("compilations", {}))


def pytest_terminal_summary(terminalreporter, exitstatus: int, config: pytest.Config) -> None:
    """Say how much was compiled, and write it to `compilations.json` in pytest's cache folder."""
    worst = [(test, n) for test, n in _per_test.most_common(10) if n]
    report = {
        "jax": jax.__version__,
        "x64": X64,
        "tests": len(_per_test),
        "compilations": sum(_per_test.values()),
        "worst": dict(worst),
    }
    path = config.cache.mkdir("compilations") / f"compilations-{'x64' if X64 else 'x32'}.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    terminalreporter.section(f"compilations: {report['compilations']} in {report['tests']} tests")
    for test, n in worst:
        terminalreporter.line(f"{n:6d}  {test}")


@pytest.fixture(autouse=True, scope="module")
def _forget_compiled_programs():
    """Each file leaves its executables behind: kept until the end, they would need tens of gigabytes."""
    yield
    global _kept
    _kept = 0
    jax.clear_caches()
