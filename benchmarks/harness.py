"""What all benchmarks share: timing, peak memory, the machine, tables and result files.

A benchmark is a program. It measures each case in a fresh process (`in_fresh_process`), so that the peak memory is that
of the case, prints a table (`print_table`) and writes one JSON file with the machine, the versions and the medians
(`save`). `--quick` runs a small version of everything in seconds, for CI, and writes nothing.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
REPEATS = 5


def arguments(description: str, argv: Sequence[str] | None = None, **choices: Sequence[str]) -> argparse.Namespace:
    """`--quick`, `--repeats` and, for the fresh processes, one hidden option for each of `choices`."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small version, in seconds; writes no results")
    parser.add_argument("--repeats", type=int, default=REPEATS, help="runs after compilation; the median is reported")
    for name, values in choices.items():
        parser.add_argument(f"--{name}", choices=values, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def timed(function: Callable[[], Any], repeats: int = REPEATS) -> tuple[Any, dict[str, float]]:
    """The result, and seconds: the first call (with compilation), the median call, its CPU time, and its spread.

    CPU seconds well below the wall seconds times the number of threads mean that the machine was busy.
    """
    import jax

    start = time.perf_counter()
    result = jax.block_until_ready(function())
    first = time.perf_counter() - start
    wall, cpu = [], []
    for _ in range(repeats):
        start, cpu_start = time.perf_counter(), time.process_time()
        result = jax.block_until_ready(function())
        wall.append(time.perf_counter() - start)
        cpu.append(time.process_time() - cpu_start)
    seconds = statistics.median(wall)
    return result, {
        "compile_s": round(first - seconds, 3),
        "run_s": round(seconds, 4),
        "run_min_s": round(min(wall), 4),
        "run_max_s": round(max(wall), 4),
        "cpu_s": round(statistics.median(cpu), 4),
    }


def alternately(functions: dict[str, Callable[[], Any]], repeats: int = REPEATS) -> dict[str, dict[str, float]]:
    """The same for several functions, called in turn in one run: what disturbs one disturbs the others."""
    import jax

    records: dict[str, list[tuple[float, float]]] = {name: [] for name in functions}
    compiled = {}
    for name, function in functions.items():
        start, cpu_start = time.perf_counter(), time.process_time()
        jax.block_until_ready(function())
        compiled[name] = time.perf_counter() - start, time.process_time() - cpu_start
    for _ in range(repeats):
        for name, function in functions.items():
            start, cpu_start = time.perf_counter(), time.process_time()
            jax.block_until_ready(function())
            records[name].append((time.perf_counter() - start, time.process_time() - cpu_start))
    medians = {
        name: [statistics.median(column) for column in zip(*record, strict=True)] for name, record in records.items()
    }
    return {
        name: {
            "compile_s": round(compiled[name][0] - wall, 3),
            "compile_cpu_s": round(compiled[name][1] - cpu, 3),
            "run_s": round(wall, 5),
            "cpu_s": round(cpu, 5),
        }
        for name, (wall, cpu) in medians.items()
    }


def peak_memory_mb() -> float:
    """The largest resident memory of this process so far, in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1e6 if sys.platform == "darwin" else 1e3), 1)


def in_fresh_process(program: str, *options: str, **environment: str) -> dict[str, Any]:
    """Run `program` with `options` in a process of its own; it reports by `report`."""
    command = [sys.executable, program, *options]
    done = subprocess.run(command, env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def report(result: dict[str, Any]) -> None:
    """Hand `result` to the process that started this one, with the peak memory."""
    print(json.dumps({**result, "peak_mb": peak_memory_mb()}))


def machine() -> dict[str, Any]:
    """Processor, cores and versions."""
    names = ("vardax", "jax", "jaxlib", "equinox", "lineax", "numpy")
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
        "versions": {name: metadata.version(name) for name in names},
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def save(name: str, results: Any) -> Path:
    """Write `results` with the machine to `results/<name>.json`."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": machine(), "results": results}, indent=1) + "\n")
    return path


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """Rows with the same keys as an aligned table."""
    columns = list(rows[0])
    cells = [columns, *([_text(row[column]) for column in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    for line in cells:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
