"""Every registered method has the properties that all must have, and keeps what it promises."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
import pytest

import mmjax
from mmjax.optim import METHODS, Promise
from mmjax.testing import BrokenPropertiesError, check_combiner
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


def biased_later(after: int):
    """Uniform for so many steps, then the second objective counts double."""

    def update(grads, state, params=None, *, active=None, **extra_args):
        def combine(rows):
            weights = jnp.ones(rows.shape[0]).at[1:2].set(jnp.where(state >= after, 2.0, 1.0))
            here = jnp.ones(rows.shape[0], bool) if active is None else active
            rows = jnp.where(here.reshape(-1, *[1] * (rows.ndim - 1)), rows, 0)
            return jnp.tensordot(weights, rows, axes=1)

        return jax.tree.map(combine, grads), state + 1

    return optax.GradientTransformationExtraArgs(lambda params: jnp.zeros((), jnp.int32), update)


@pytest.mark.parametrize("promise", ["permutation_equivariant", "uniform_when_balanced", "absent_objectives"])
def test_a_promise_is_to_last_for_a_run(promise):
    promises = {promise} & set(Promise)
    arguments = {"only": [promise], "num_objectives": (2, 3), "forms": ["stacked"]}
    with pytest.raises(BrokenPropertiesError, match="at step 3 of a run"):
        # of three, an absent second objective leaves one whose weight is 1 where without it the next counts double
        check_combiner(lambda k: biased_later(2), promises, **arguments)
    check_combiner(lambda k: biased_later(2), promises, steps=2, **arguments)
    with pytest.raises(ValueError, match="steps must be an integer >= 1, got 0"):
        check_combiner(lambda k: biased_later(2), promises, steps=0, **arguments)
