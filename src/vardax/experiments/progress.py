"""Progress of a long run, on a terminal and nowhere else.

Driven from the host between compiled pieces, never from inside one. With tqdm (extra `progress`) it is a bar, without
it a line now and then; where the stream is no terminal it is nothing.
"""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["progress"]

SECONDS_BETWEEN_LINES = 2.0


@contextlib.contextmanager
def progress(total: int, label: str, unit: str = "cycles", stream: Any = None) -> Iterator[Callable[[int], object]]:
    """`with progress(1000, "ThreeDVar") as advance: advance(100)`."""
    stream = sys.stderr if stream is None else stream
    if not stream.isatty():
        yield lambda done: None
        return
    try:
        import tqdm
    except ImportError:
        yield _lines(total, label, unit, stream)
        return
    with tqdm.tqdm(total=total, desc=label, unit=f" {unit}", file=stream, leave=False) as bar:
        yield bar.update


def _lines(total: int, label: str, unit: str, stream: Any) -> Callable[[int], None]:
    """A line when the last one is some seconds old."""
    state = {"done": 0, "next": time.monotonic() + SECONDS_BETWEEN_LINES}

    def advance(done: int) -> None:
        state["done"] += done
        if time.monotonic() >= state["next"]:
            state["next"] = time.monotonic() + SECONDS_BETWEEN_LINES
            print(f"{label}: {state['done']} of {total} {unit}", file=stream, flush=True)

    return advance
