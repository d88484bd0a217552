"""Every page of the documentation runs, prints what it shows, and has its figures."""

import importlib.util
import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
LANGUAGES = {"python", "output", "text", "toml", "bash", "bibtex"}
MOST_HIDDEN_LINES = 5


def load(path: pathlib.Path):
    """A module from a file that is not part of a package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


run_page = load(ROOT / "docs" / "run_page.py")
tasks = load(ROOT / "tasks.py")

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def blocks(page: pathlib.Path):
    return [part for part in run_page.parts(page) if isinstance(part, run_page.Block)]


def images(page: pathlib.Path):
    return [part for part in run_page.parts(page) if isinstance(part, run_page.Image)]


def run_python(request, *arguments) -> subprocess.CompletedProcess:
    """A fresh interpreter with JAX's defaults, warnings as errors, and a cache of compiled programs."""
    settings = {
        "JAX_COMPILATION_CACHE_DIR": str(request.config.cache.mkdir("docs-compilations")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "MPLBACKEND": "agg",
    }
    inherited = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "JAX_ENABLE_X64")}
    command = [sys.executable, "-W", "error", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=inherited | settings, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [page for page in PAGES if "```python" in page.read_text()], ids=lambda page: str(page.relative_to(ROOT))
)
def test_the_code_of_a_page_runs(page, request):
    done = run_python(request, "docs/run_page.py", page.relative_to(ROOT))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_the_examples_of_the_docstrings_run(request):
    done = run_python(request, "docs/run_docstrings.py")
    assert done.returncode == 0, done.stdout + done.stderr


@every_page
def test_a_code_block_says_its_language(page):
    """And nothing else: there is no mark with which a block could be left out."""
    unknown = [f"{block.language!r} in line {block.line}" for block in blocks(page) if block.language not in LANGUAGES]
    assert not unknown, f"{page.name}: use one of {sorted(LANGUAGES)} for {unknown}"


@every_page
def test_a_page_hides_little(page):
    hidden = sum(len(block.text.strip().splitlines()) for block in blocks(page) if block.hidden)
    assert hidden <= MOST_HIDDEN_LINES


@every_page
def test_the_images_of_a_page_exist_and_have_captions(page):
    for image in images(page):
        assert image.file.exists(), f"{image.file.name} is missing: `python3 tasks.py figures` writes it"
        assert image.caption.strip(), f"{image.file.name} has no caption"


@every_page
def test_the_tasks_that_a_page_names_exist(page):
    named = re.findall(r"tasks\.py +([a-z]\w*)", page.read_text(encoding="utf-8"))
    assert set(named) <= set(tasks.TASKS)


def test_no_image_is_left_over():
    shown = {image.file for page in PAGES for image in images(page)}
    assert not set((ROOT / "docs" / "assets" / "img").glob("*")) - shown


def write_page(folder: pathlib.Path, text: str) -> pathlib.Path:
    page = folder / "page.md"
    page.write_text(text, encoding="utf-8")
    return page


def test_blocks_share_a_page_and_their_output_is_compared(tmp_path):
    hidden, shown = "<!--\n```python\na = 1\n```\n-->\n\n", "- item\n\n    ```python\n    print(a + 1)\n    ```\n\n"
    good = hidden + shown + "```output\n2\n```\n"
    run_page.run(write_page(tmp_path, good), write=False)
    with pytest.raises(AssertionError, match="the code prints"):
        run_page.run(write_page(tmp_path, good.replace("output\n2", "output\n3")), write=False)


def test_an_error_on_a_page_names_its_line(tmp_path):
    page = write_page(tmp_path, "Words.\n\n```python\na = 1\na.missing\n```\n")
    with pytest.raises(AttributeError) as caught:
        run_page.run(page, write=False)
    assert (caught.traceback[-1].path, caught.traceback[-1].lineno + 1) == (page, 5)


def test_a_figure_is_written_where_the_page_shows_it(tmp_path):
    text = "```python\nimport matplotlib.pyplot as plt\nplt.plot([1, 2])\n```\n\n![A line](img/line.png)\n"
    page = write_page(tmp_path, text)
    with pytest.raises(AssertionError, match="line.png does not exist"):
        run_page.run(page, write=False)
    run_page.run(page, write=True)
    assert (tmp_path / "img" / "line.png").stat().st_size > 1000
    run_page.run(page, write=False)
