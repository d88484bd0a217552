"""Run the Python blocks of a documentation page, from top to bottom in one namespace, and make its figures.

    python docs/run_page.py docs/index.md            run it, and keep nothing
    python docs/run_page.py --write docs/index.md    run it, and write its figures to where the page shows them

On a page,

- a fenced block `python` is run; one inside an HTML comment is run too, but the reader does not see it;
- a fenced block `output` is what the blocks since the last such block print, word for word;
- an image under `assets/img/` is the figure that the blocks above it drew last.

The page runs as a reader's own program would: in a fresh process with JAX's defaults.
"""

import argparse
import contextlib
import dataclasses
import io
import pathlib
import re
import sys
import textwrap

FENCE = re.compile(r"^(?P<indent> *)(?P<ticks>```+)(?P<language>[^\n`]*)\n(?P<body>.*?)^ *(?P=ticks) *$", re.M | re.S)
IMAGE = re.compile(r"(?<!`)!\[(?P<caption>[^\]]*)\]\((?P<file>[^)\s]+)\)")
COMMENT = re.compile(r"<!--.*?-->", re.S)


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, the line of its first line on the page, and whether it is hidden."""

    language: str
    text: str
    line: int
    hidden: bool


@dataclasses.dataclass(frozen=True)
class Image:
    """An image of the page: its file, its caption, and its line."""

    file: pathlib.Path
    caption: str
    line: int


def parts(page: pathlib.Path) -> list[Block | Image]:
    """The blocks and images of a page in the order in which they stand there."""
    text = page.read_text(encoding="utf-8")
    comments = [match.span() for match in COMMENT.finditer(text)]
    found: list[tuple[int, Block | Image]] = []
    covered = []
    for match in FENCE.finditer(text):
        start = match.start()
        hidden = any(first <= start < last for first, last in comments)
        line = text.count("\n", 0, start) + 2
        found.append((start, Block(match["language"].strip(), textwrap.dedent(match["body"]), line, hidden)))
        covered.append(match.span())
    for match in IMAGE.finditer(text):
        if not any(first <= match.start() < last for first, last in covered + comments):
            line = text.count("\n", 0, match.start()) + 1
            found.append((match.start(), Image((page.parent / match["file"]).resolve(), match["caption"], line)))
    return [part for _, part in sorted(found, key=lambda item: item[0])]


def run(page: pathlib.Path, write: bool) -> None:
    """Run a page. Raises `AssertionError` where a printed output or a figure is not what the page shows."""
    namespace = {"__name__": "__main__"}
    printed = io.StringIO()
    for part in parts(page):
        where = f"{page}:{part.line}"
        if isinstance(part, Image):
            show(part, write, where)
        elif part.language == "python":
            code = compile("\n" * (part.line - 1) + part.text, str(page), "exec")
            with contextlib.redirect_stdout(printed):
                exec(code, namespace)
        elif part.language == "output":
            found, printed = printed.getvalue(), io.StringIO()
            assert tidy(found) == tidy(part.text), f"{where}: the page shows\n{part.text}\nbut the code prints\n{found}"


def tidy(text: str) -> str:
    """The text without blanks at the ends of its lines and without empty lines around it."""
    return "\n".join(line.rstrip() for line in text.strip("\n").splitlines())


def show(image: Image, write: bool, where: str) -> None:
    """Compare a figure with its file, or write the file. Without an open figure the file belongs to another page."""
    pyplot = sys.modules.get("matplotlib.pyplot")
    if pyplot is not None and pyplot.get_fignums():
        figure = pyplot.gcf()
        if write:
            image.file.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(image.file, dpi=110, metadata={"Software": None})
        else:
            figure.savefig(io.BytesIO(), dpi=110)
        pyplot.close("all")
    assert image.file.exists(), f"{where}: {image.file.name} does not exist; write it with `tasks.py figures`"


def main() -> None:
    """Run the pages named on the command line, one after another."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("page", type=pathlib.Path)
    options.add_argument("--write", action="store_true", help="write the figures of the page")
    chosen = options.parse_args()
    run(chosen.page, chosen.write)


if __name__ == "__main__":
    main()
