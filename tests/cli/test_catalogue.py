"""What is listed without importing anything heavy is what is really there."""

import inspect

from vardax.cli.catalogue import experiments, methods, summary
from vardax.experiments import lorenz96
from vardax.experiments.index import EXPERIMENTS
from vardax.experiments.recipes import exported_methods


def test_the_methods_are_those_that_are_exported():
    found = methods()
    assert list(found) == list(exported_methods())
    for name, method in exported_methods().items():
        assert found[name].class_text == inspect.getdoc(method)
        assert found[name].module_text == inspect.cleandoc(inspect.getmodule(method).__doc__)


def test_the_experiments_are_the_named_ones():
    found = experiments()
    assert tuple(found) == EXPERIMENTS
    assert found["lorenz96"].module_text == inspect.cleandoc(lorenz96.__doc__)


def test_everything_has_one_line():
    for entry in [*experiments().values(), *methods().values()]:
        assert entry.line
        assert "\n" not in entry.line


def test_a_summary_is_the_first_line():
    assert summary("\n  One.\n\nTwo.") == "One."
    assert summary("") == ""
