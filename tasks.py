#!/usr/bin/env python3
"""Set up vardax in a virtual environment of its own and do one thing with it.

    python3 tasks.py demo      run `vardax run lorenz96`
    python3 tasks.py test      the tests (more arguments go to pytest: `python3 tasks.py test tests/models -k gradient`)

Only Python 3.11 or newer is needed: nothing is installed outside the folder `.venv` beside this file, no root, no other
tool. What is already installed is not installed again. The other tasks are for developers:

    slow       the tests that take longer than a few seconds
    float32    the tests in a process without 64-bit floats
    lint       ruff: rules and format
    types      pyright
    docs       the site, built strictly, and every code block of every page
    figures    the figures of the pages, written again (all pages, or those named)
    bench      every benchmark in its `--quick` form
    ci         all of these, as the continuous integration runs them
    python     the environment's own interpreter, with the arguments that follow

`VARDAX_VENV=DIR` puts the environment elsewhere, for example to keep one for each Python version.
"""

import hashlib
import multiprocessing.pool
import os
import pathlib
import shutil
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent
VENV = pathlib.Path(os.environ.get("VARDAX_VENV", str(ROOT / ".venv")))
BIN = VENV / ("Scripts" if os.name == "nt" else "bin")
PYTHON = BIN / ("python.exe" if os.name == "nt" else "python")
OLDEST = (3, 11)
NEWER = ("python3.14", "python3.13", "python3.12", "python3.11")

# What each task needs: extras of vardax, and dependency groups, both from pyproject.toml.
USE = ("io,plot,progress", ())
TEST = ("all", ("test",))
LINT = ("all", ("test", "lint"))
DOCS = ("all", ("test", "docs"))


# ---------------------------------------------------------------------------------------------------------- set-up


def can_make_environments(python):
    """Whether this interpreter starts and brings all that a virtual environment with pip needs."""
    probe = [python, "-c", "import venv, ensurepip"]
    return subprocess.call(probe, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) == 0


def use_a_new_enough_python():
    """Go on in a newer interpreter when this one is too old or incomplete, or say what to install."""
    here = "Python {}.{} ({})".format(*sys.version_info[:2], sys.executable)
    new_enough = sys.version_info >= OLDEST
    if PYTHON.exists() and new_enough or new_enough and can_make_environments(sys.executable):
        return
    for found in filter(None, map(shutil.which, NEWER)):
        if os.path.realpath(found) != os.path.realpath(sys.executable) and can_make_environments(found):
            print(f"{here} cannot be used: going on with {found}", flush=True)
            sys.exit(subprocess.call([found, *sys.argv]))
    if not new_enough:
        sys.exit(
            f"vardax needs Python 3.11 or newer. This is {here}, and no newer one that works is on the PATH.\n"
            "Install a newer Python, then run this with it, for example: python3.12 tasks.py test"
        )


def make_environment():
    """Make the virtual environment, with a pip that knows dependency groups."""
    if (VENV / "ready").exists() and PYTHON.exists():
        return
    if VENV.exists() and any(VENV.iterdir()) and not (VENV / "pyvenv.cfg").exists():
        sys.exit(f"{VENV} is not empty and not a virtual environment: name another folder in VARDAX_VENV.")
    print(f"making the virtual environment {VENV}", flush=True)
    if can_make_environments(sys.executable):
        run(sys.executable, "-m", "venv", "--clear", VENV)
        pip = [PYTHON, "-m", "pip"]
    else:  # Debian splits ensurepip from Python; a pip outside can still fill an environment without one.
        run(sys.executable, "-m", "venv", "--clear", "--without-pip", VENV)
        pip = [sys.executable, "-m", "pip", "--python", PYTHON]
        if subprocess.call([str(p) for p in pip] + ["--version"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL):
            shutil.rmtree(str(VENV))
            here = "{}.{}".format(*sys.version_info[:2])
            sys.exit(
                f"This Python ({sys.executable}) has neither ensurepip nor pip to fill an environment with.\n"
                f"On Debian and Ubuntu: apt install python{here}-venv. Without root: use another Python 3.11 or newer\n"
                "(from python.org, conda, pyenv or uv), by its name: /path/to/python3 tasks.py test"
            )
    run(*pip, "install", "--quiet", "--upgrade", "pip>=25.1")
    (VENV / "ready").touch()


def install(needs):
    """Install vardax, editable, with the extras and groups that a task needs, unless that was done before."""
    extras, groups = needs
    files = b"".join((ROOT / name).read_bytes() for name in ("pyproject.toml", "constraints.txt"))
    stamp = VENV / ("installed-" + hashlib.sha256(files + repr((str(ROOT), needs)).encode()).hexdigest()[:16])
    if stamp.exists():
        return
    print(f"installing vardax[{extras}]", *groups, flush=True)
    chosen = [argument for group in groups for argument in ("--group", group)]
    run(PYTHON, "-m", "pip", "install", "--quiet", "-c", "constraints.txt", "-e", f".[{extras}]", *chosen)
    stamp.touch()


def run(*command, **environment):
    """Run a command from the root of the project; end with its exit code if it fails."""
    code = call(*command, **environment)
    if code:
        sys.exit(code)


def call(*command, **environment):
    """Run a command from the root of the project and return its exit code."""
    return subprocess.call([str(part) for part in command], cwd=str(ROOT), env={**os.environ, **environment})


# ----------------------------------------------------------------------------------------------------------- tasks


def pytest(*arguments, **environment):
    """Run pytest in the environment."""
    install(TEST)
    return call(PYTHON, "-m", "pytest", *arguments, **environment)


def pytest_on_all(chosen, *arguments, **environment):
    """Run pytest: what the user has chosen in one process, everything in several, each taking whole files.

    A file forgets what it compiled when it ends, so files share nothing that a second process would compile again.
    """
    return pytest(*arguments, *(chosen or in_parallel("loadfile")), **environment)


def in_parallel(unit):
    """Arguments to pytest for as many processes as there are cores, at most four for the sake of memory."""
    return ("-n", str(min(4, os.cpu_count() or 1)), "--dist", unit)


def demo(*arguments):
    """Run the first experiment."""
    install(USE)
    return call(BIN / "vardax", "run", "lorenz96", *arguments)


def test(*arguments):
    """Run the tests."""
    return pytest_on_all(arguments)


def slow(*arguments):
    """Run the long tests."""
    return pytest_on_all(arguments, "-m", "slow", "--ignore=tests/docs")


def float32(*arguments):
    """Run the tests without 64-bit floats."""
    return pytest_on_all(arguments, VARDAX_TEST_X64="0")


def numerics32():
    """The part of `float32` that computes, for the continuous integration.

    Tests that name float32 ask for it themselves: they say as much in `test`, where it is not all that there is.
    """
    folders = [f"tests/{name}" for name in ("contracts", "minimisers", "models", "posterior", "primitives", "dynamics")]
    return pytest(*folders, "-k", "not float32 and not registry", *in_parallel("loadfile"), VARDAX_TEST_X64="0")


def lint():
    """Check the rules and the format of the code."""
    install(LINT)
    return call(PYTHON, "-m", "ruff", "check", ".") or call(PYTHON, "-m", "ruff", "format", "--check", ".")


def types():
    """Check the types."""
    install(LINT)
    return call(PYTHON, "-m", "pyright", "--pythonpath", PYTHON)


def docs():
    """Build the site and run its code."""
    install(DOCS)
    built = call(PYTHON, "-m", "mkdocs", "build", "--strict", "--quiet", NO_MKDOCS_2_WARNING="1")
    return built or pytest("tests/docs", "-m", "slow or not slow", *in_parallel("load"))


def figures(*pages):
    """Run the pages of the documentation and write their figures."""
    install(DOCS)
    drawn = [page for page in sorted((ROOT / "docs").rglob("*.md")) if "assets/img/" in page.read_text("utf-8")]
    return max(
        [call(PYTHON, "docs/run_page.py", "--write", page, MPLBACKEND="agg") for page in pages or drawn], default=0
    )


def bench():
    """Every benchmark that is a program, several at a time: what `--quick` measures means nothing."""
    install(TEST)
    programs = [p for p in sorted((ROOT / "benchmarks").glob("*.py")) if "--quick" in p.read_text(encoding="utf-8")]
    failed = 0
    with multiprocessing.pool.ThreadPool(min(4, os.cpu_count() or 1)) as pool:
        for program, done in pool.imap(quickly, programs):
            print("\n" + program.name + (" failed" if done.returncode else "") + "\n" + done.stdout, flush=True)
            failed = failed or done.returncode
    return failed


def quickly(program):
    """A benchmark and its run in the small form, with what it printed."""
    command = [str(PYTHON), str(program), "--quick"]
    return program, subprocess.run(
        command, cwd=str(ROOT), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )


def python(*arguments):
    """Run the environment's interpreter."""
    install(TEST)
    return call(PYTHON, *arguments)


def ci():
    """Every stage, also after one has failed; the table at the end says which."""
    rows = []
    for stage in (lint, types, test, slow, numerics32, docs, bench, demo):
        print("\n===== " + stage.__name__ + " =====", flush=True)
        start = time.monotonic()
        try:
            code = stage()
        except SystemExit as stopped:
            code = stopped.code
        rows.append((stage.__name__, f"failed ({code})" if code else "passed", time.monotonic() - start))
    print("\n===== summary =====")
    for name, verdict, seconds in rows:
        print(f"{name:10s} {verdict:12s} {seconds:6.0f} s")
    return int(any(verdict != "passed" for _, verdict, _ in rows))


TASKS = {task.__name__: task for task in (demo, test, slow, float32, lint, types, docs, figures, bench, ci, python)}


def main():
    """Set up, then do the task."""
    if len(sys.argv) < 2 or sys.argv[1] not in TASKS:
        print(__doc__)
        sys.exit(0 if sys.argv[1:] in (["-h"], ["--help"]) else 2)
    use_a_new_enough_python()
    make_environment()
    sys.exit(TASKS[sys.argv[1]](*sys.argv[2:]))


if __name__ == "__main__":
    main()
