"""The experiments that `vardax run` knows."""

__all__ = ["EXPERIMENTS"]

EXPERIMENTS = ("lorenz63", "lorenz96")
"""Each is a module of `vardax.experiments`, with `Config`, `QUICK`, `EXPECTED` and `run`."""
