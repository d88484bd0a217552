"""The contracts are structural: any object with the members is one, whichever package it comes from."""

import inspect
from types import SimpleNamespace

import pytest

from vardax import protocols

MEMBERS = {
    "ForwardModel": ("step", "dt", "state_signature"),
    "ObservationOperator": ("__call__", "linearize"),
    "AnalysisStep": ("__call__",),
    "LatentMap": ("encode", "decode"),
    "LatentForwardModel": ("step", "dt", "latent_signature"),
    "Prior": ("__call__",),
    "TemporalPrior": ("__call__", "loss"),
    "GradModulator": ("__call__",),
    "CostFunction": ("__call__",),
    "Minimiser": ("__call__",),
    "PosteriorAdapter": ("__call__",),
    "ReducedBasis": ("operg", "prior_inv", "nbasis"),
}
SIGNATURES = {
    ("ForwardModel", "step"): ["state", "dt"],
    ("ObservationOperator", "__call__"): ["state"],
    ("ObservationOperator", "linearize"): ["state"],
    ("AnalysisStep", "__call__"): ["forecast", "obs", "obs_op", "obs_err_cov"],
    ("LatentForwardModel", "step"): ["latent", "dt"],
    ("Prior", "__call__"): ["x"],
    ("TemporalPrior", "__call__"): ["x", "ts"],
    ("TemporalPrior", "loss"): ["x", "ts", "x_gt", "params"],
    ("GradModulator", "__call__"): ["grad", "state", "carry"],
    ("CostFunction", "__call__"): ["x", "batch", "kw"],
    ("Minimiser", "__call__"): ["cost_fn", "x0", "batch"],
    ("PosteriorAdapter", "__call__"): ["analysis", "model", "batch"],
    ("ReducedBasis", "operg"): ["t", "X", "state"],
    ("ReducedBasis", "prior_inv"): ["X"],
}


def with_members(*names):
    """An object with exactly these members (special methods count on the class)."""
    return type("Foreign", (), {name: (lambda self, *args, **kw: None) for name in names})()


def test_every_contract_of_the_specification_exists():
    assert sorted(protocols.__all__) == sorted(MEMBERS)


@pytest.mark.parametrize("name", MEMBERS)
def test_an_object_with_the_members_satisfies_the_protocol(name):
    assert isinstance(with_members(*MEMBERS[name]), getattr(protocols, name))


@pytest.mark.parametrize(("name", "missing"), [(n, m) for n, members in MEMBERS.items() for m in members])
def test_an_object_that_lacks_a_member_does_not(name, missing):
    others = [member for member in MEMBERS[name] if member != missing]
    assert not isinstance(with_members(*others), getattr(protocols, name))


@pytest.mark.parametrize(("name", "method"), SIGNATURES)
def test_the_arguments_are_those_of_the_specification(name, method):
    parameters = list(inspect.signature(getattr(getattr(protocols, name), method)).parameters)
    assert parameters[1:] == SIGNATURES[name, method]


def test_the_options_of_an_analysis_step_are_keywords():
    parameters = inspect.signature(protocols.AnalysisStep.__call__).parameters
    assert parameters["obs_op"].kind == parameters["obs_err_cov"].kind == inspect.Parameter.KEYWORD_ONLY


def test_attributes_may_be_set_on_the_instance():
    assert isinstance(
        SimpleNamespace(step=lambda state, dt: state, dt=0.1, state_signature=None), protocols.ForwardModel
    )


def test_a_latent_map_needs_neither_dimension_nor_signature():
    assert isinstance(with_members("encode", "decode"), protocols.LatentMap)
