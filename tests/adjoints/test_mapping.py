"""Adjoints are recognised by name, whichever package they are from; what belongs elsewhere is refused with the slot."""

import dataclasses

import diffrax
import lineax as lx
import optimistix as optx
import pytest

import vardax.adjoints as adjoints
from vardax.adjoints.direct import DirectAdjoint
from vardax.adjoints.k_step import KStepAdjoint
from vardax.adjoints.mapping import to_diffrax_adjoint, to_optimistix_adjoint
from vardax.adjoints.one_step import OneStepAdjoint


def spec(name, **fields):
    """A specification of some other package: a class of this name with these fields."""
    return dataclasses.make_dataclass(name, fields, frozen=True)(**fields)


OWN = [optx.ImplicitAdjoint(), optx.RecursiveCheckpointAdjoint(4), DirectAdjoint(), KStepAdjoint(3), OneStepAdjoint()]


@pytest.mark.parametrize("adjoint", OWN, ids=lambda a: type(a).__name__)
def test_an_optimistix_adjoint_passes_as_it_is(adjoint):
    assert to_optimistix_adjoint(adjoint) is adjoint


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (spec("TruncatedAdjoint", k=3), KStepAdjoint(3)),
        (spec("TruncatedAdjoint", k=1), KStepAdjoint(1)),
        (spec("ImplicitAdjoint"), optx.ImplicitAdjoint()),
        (spec("ImplicitAdjoint", linear_solver=lx.CG(1e-3, 1e-3)), optx.ImplicitAdjoint(lx.CG(1e-3, 1e-3))),
        (spec("RecursiveCheckpointAdjoint", checkpoints=7), optx.RecursiveCheckpointAdjoint(7)),
        (spec("RecursiveCheckpointAdjoint"), optx.RecursiveCheckpointAdjoint()),
        (diffrax.RecursiveCheckpointAdjoint(5), optx.RecursiveCheckpointAdjoint(5)),
    ],
    ids=lambda a: type(a).__name__,
)
def test_a_foreign_specification_of_an_inner_solve_becomes_one(given, expected):
    found = to_optimistix_adjoint(given)
    assert type(found) is type(expected)
    assert found == expected


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        (spec("DirectAdjoint"), ValueError, "DirectAdjoint.*inner-solve layer.*`forward_adjoint`"),
        (diffrax.DirectAdjoint(), ValueError, "diffrax.DirectAdjoint.*inner-solve layer.*vardax has one of its own"),
        (diffrax.BacksolveAdjoint(), ValueError, "BacksolveAdjoint.*inner-solve layer"),
        (diffrax.ForwardMode(), ValueError, "ForwardMode.*inner-solve layer.*vardax.adjoints.DirectAdjoint"),
        (spec("Mystery"), ValueError, "Unrecognised adjoint spec 'Mystery'.*KStepAdjoint"),
        (None, ValueError, "Unrecognised adjoint spec 'NoneType'"),
        (KStepAdjoint, TypeError, r"the class KStepAdjoint, expected an instance: KStepAdjoint\(\)"),
        (spec("TruncatedAdjoint", k=0), ValueError, "k >= 1"),
    ],
    ids=lambda a: None,
)
def test_what_is_no_adjoint_of_an_inner_solve_is_refused(given, error, words):
    with pytest.raises(error, match=words):
        to_optimistix_adjoint(given)


NATIVE = [diffrax.RecursiveCheckpointAdjoint(2), diffrax.DirectAdjoint(), diffrax.BacksolveAdjoint()]


@pytest.mark.parametrize("adjoint", NATIVE, ids=lambda a: type(a).__name__)
def test_a_diffrax_adjoint_passes_as_it_is(adjoint):
    assert to_diffrax_adjoint(adjoint) is adjoint


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (DirectAdjoint(), diffrax.DirectAdjoint()),
        (optx.RecursiveCheckpointAdjoint(6), diffrax.RecursiveCheckpointAdjoint(6)),
        (optx.RecursiveCheckpointAdjoint(), diffrax.RecursiveCheckpointAdjoint()),
        (spec("ForwardMode"), diffrax.ForwardMode()),
        (spec("BacksolveAdjoint"), diffrax.BacksolveAdjoint()),
        (spec("BacksolveAdjoint", kwargs={"max_steps": 9}), diffrax.BacksolveAdjoint(max_steps=9)),
    ],
    ids=lambda a: type(a).__name__,
)
def test_a_specification_of_a_model_run_becomes_diffrax(given, expected):
    found = to_diffrax_adjoint(given)
    assert type(found) is type(expected)
    assert found == expected


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        (KStepAdjoint(2), ValueError, "`forward_adjoint` is KStepAdjoint, .*use it as `minimiser_adjoint`"),
        (OneStepAdjoint(), ValueError, "`forward_adjoint` is OneStepAdjoint, .*not a trajectory"),
        (spec("TruncatedAdjoint", k=2), ValueError, "TruncatedAdjoint.*`minimiser_adjoint`"),
        (optx.ImplicitAdjoint(), ValueError, "ImplicitAdjoint, .*converged solve, not a trajectory"),
        (spec("Mystery"), ValueError, "Unrecognised adjoint spec 'Mystery'.*BacksolveAdjoint"),
        (diffrax.DirectAdjoint, TypeError, r"the class DirectAdjoint, expected an instance: DirectAdjoint\(\)"),
    ],
    ids=lambda a: None,
)
def test_what_is_no_adjoint_of_a_model_run_is_refused(given, error, words):
    with pytest.raises(error, match=words):
        to_diffrax_adjoint(given)


def test_the_adjoints_of_optimistix_are_at_hand():
    for name in ("AbstractAdjoint", "ImplicitAdjoint", "RecursiveCheckpointAdjoint"):
        assert getattr(adjoints, name) is getattr(optx, name)
