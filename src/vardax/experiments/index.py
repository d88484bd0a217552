"""The experiments that `vardax run` knows."""

__all__ = ["EXPERIMENTS", "module_name"]

EXPERIMENTS = ("lorenz63", "lorenz96", "lorenz96-two-level")
"""Each is a module of `vardax.experiments` (with underscores), with `Config`, `QUICK`, `EXPECTED` and `run`."""


def module_name(experiment: str) -> str:
    """Where an experiment is.

    >>> module_name("lorenz96-two-level")
    'vardax.experiments.lorenz96_two_level'
    """
    return "vardax.experiments." + experiment.replace("-", "_")
