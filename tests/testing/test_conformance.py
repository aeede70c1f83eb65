"""Every registered method has the properties that all must have, and keeps what it promises."""

from __future__ import annotations

import pytest

import mmjax
from mmjax.optim import METHODS, Promise
from mmjax.testing import check_combiner
from testing.methods import QUICK, THOROUGH, cases_of, maker

ALL = [(name, case) for name in METHODS for case in cases_of(name)]


def check(name, case, num_objectives):
    case = cases_of(name)[case]
    promises = case.promised(name)
    only = None if case.only is None else promises
    arguments = {"num_objectives": num_objectives} | dict(case.checks)
    return check_combiner(maker(name, case.options), promises, only=only, **arguments), promises


@pytest.mark.parametrize(("name", "case"), ALL)
def test_method_keeps_its_promises(name, case):
    report, promises = check(name, case, QUICK)
    assert promises <= set(report.held) | set(report.skipped)
    assert "finite" in report.held or cases_of(name)[case].only is not None


@pytest.mark.soak
@pytest.mark.parametrize(("name", "case"), ALL)
def test_method_keeps_its_promises_for_any_number_of_objectives(name, case):
    report, promises = check(name, case, THOROUGH)
    assert promises <= set(report.held)  # with several numbers of objectives none is skipped


@pytest.mark.parametrize("name", METHODS)
def test_every_promise_is_checked_by_some_case(name):
    assert METHODS[name].promises <= set(Promise)
    assert frozenset().union(*(case.promised(name) for case in cases_of(name).values())) == METHODS[name].promises


def test_what_was_not_checked_is_not_held():
    with pytest.raises(ValueError, match="only names stationary, which is not among the promises"):
        check_combiner(mmjax.optim.cagrad(), only=["stationary"], num_objectives=(3,))
    report = check_combiner(mmjax.optim.uniform(), {"uniform_when_balanced"}, num_objectives=(1,), forms=["stacked"])
    assert report.skipped["uniform_when_balanced"] == "shows only with 2 objectives or more"
