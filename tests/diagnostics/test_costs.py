"""A report of J shows its terms, by instrument, and their sum."""

import numpy as np
import pytest

from vardax.diagnostics.costs import cost_report


def test_terms_are_those_of_the_analysis_and_add_up(small_case, close):
    analysis = small_case.analysis
    report = cost_report(analysis, ["buoys", "satellite"])
    assert [row.name for row in report.rows] == ["J_b", "J_o[buoys]", "J_o[satellite]", "J"]
    last = analysis.cost.last
    close(report["J"].analysis, float(np.sum(last.total)))
    close(report["J_o[satellite]"].analysis, float(np.sum(last.J_o_by_instrument[:, 1])))
    assert report["J_b"].background == 0
    assert report["J"].analysis < report["J"].background


def test_j_is_that_of_the_dense_formula(small_case, close):
    expected = 0.0
    for s in small_case.samples:
        d = s.y - s.H @ s.x_b
        expected += 0.5 * d @ np.linalg.solve(s.H @ s.B @ s.H.T + s.R, d)
    close(cost_report(small_case.analysis)["J"].analysis, expected)


def test_it_prints_one_line_for_each_term(small_case):
    lines = str(cost_report(small_case.analysis)).splitlines()
    assert [line.split()[0] for line in lines] == ["term", "J_b", "J_o[0]", "J_o[1]", "J"]


def test_wrong_names_are_refused(small_case):
    with pytest.raises(ValueError, match="`instruments` has 1 names, expected 2"):
        cost_report(small_case.analysis, ["buoys"])
    with pytest.raises(KeyError, match="no term named 'J_q'.*it has J_b"):
        cost_report(small_case.analysis)["J_q"]
