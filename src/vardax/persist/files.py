"""Files that survive a killed writer and a lost power supply."""

import os
import pathlib
import shutil
import time

__all__ = ["STALE_SECONDS", "flush_folder", "sweep", "write_flushed"]

STALE_SECONDS = 3600.0
"""What a killed writer left is swept away by a later one after this long."""


def write_flushed(path: pathlib.Path, data: bytes) -> None:
    """Write a file, and return when the disk has it."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def flush_folder(path: pathlib.Path) -> None:
    """Let the disk know the names in a folder, where the system can."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep(incoming: pathlib.Path) -> None:
    """Remove what writers left behind that were killed long ago."""
    for path in incoming.iterdir():
        try:
            if time.time() - path.stat().st_mtime > STALE_SECONDS:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        except OSError:
            continue  # another writer sweeps too
