"""A report is a table with a verdict."""

import dataclasses

import pytest

from vardax.validation import Check, ValidationError, ValidationReport

GOOD = Check("adjoint", 1e-16, 1e-12, "the adjoint is not the transpose")
BAD = Check("square root, adjoint", 2e-2, 1e-12, "the factor in half is missing")


def test_a_report_passes_when_all_rows_do():
    assert ValidationReport("it", (GOOD,))
    assert not ValidationReport("it", (GOOD, BAD))
    assert ValidationReport("it", (GOOD, BAD)).failures == (BAD,)


def test_not_a_number_never_passes():
    assert not Check("adjoint", float("nan"), 1e-12, "").passed
    assert not Check("order", float("nan"), 0.5, "", at_least=True).passed


def test_a_limit_can_be_a_lower_one():
    assert Check("order", 1.0, 0.5, "", at_least=True).passed
    assert not Check("order", 0.0, 0.5, "", at_least=True).passed
    assert ">= 0.5" in str(ValidationReport("it", (Check("order", 1.0, 0.5, "", at_least=True),)))


def test_the_table_is_aligned_and_ends_with_what_to_look_at():
    lines = str(ValidationReport("covariance_test of B", (GOOD, BAD), ("samples not checked",))).splitlines()
    assert lines[0] == "covariance_test of B"
    assert lines[2].index("<=") == lines[3].index("<=")
    assert lines[2].endswith("ok")
    assert lines[3].endswith("FAILED")
    assert lines[4] == "  note: samples not checked"
    assert lines[5].startswith("  FAILED: 1 of 2 checks: square root, adjoint. Look at: the factor in half")


def test_the_verdict_of_a_pass_counts_the_checks():
    assert ValidationReport("it", (GOOD,)).verdict == "PASSED: 1 check within the limits."
    assert ValidationReport("it", (GOOD, GOOD)).verdict == "PASSED: 2 checks within the limits."


def test_raise_if_failed_raises_the_table_and_returns_a_good_report():
    good, bad = ValidationReport("it", (GOOD,)), ValidationReport("it", (GOOD, BAD))
    assert good.raise_if_failed() is good
    with pytest.raises(ValidationError) as caught:
        bad.raise_if_failed()
    assert str(caught.value) == str(bad)
    assert isinstance(caught.value, AssertionError)


def test_rows_are_found_by_name():
    report = ValidationReport("it", (GOOD, BAD))
    assert report["adjoint"] is GOOD
    with pytest.raises(KeyError, match="no check named 'adjiont' in this report; it has adjoint, square root"):
        report["adjiont"]


def test_a_report_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ValidationReport("it", (GOOD,)).rows = ()
