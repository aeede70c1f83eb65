"""Shapley values against the definition over orders, and their axioms."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from mmjax.evaluation.contribution import shapley_values


def table(names, seed):
    rng = np.random.default_rng(seed)
    values: dict[frozenset, float] = {}

    def value(subset):
        return values.setdefault(subset, float(rng.normal()))

    return value


@pytest.mark.parametrize("names", [["a"], ["a", "b"], ["a", "b", "c", "d"]])
def test_values_are_mean_marginal_contributions_over_all_orders(names):
    value = table(names, len(names))
    found = shapley_values(value, names)
    orders = list(permutations(names))
    for m in names:
        gains = [value(frozenset(o[: o.index(m) + 1])) - value(frozenset(o[: o.index(m)])) for o in orders]
        assert found[m] == pytest.approx(np.mean(gains), abs=1e-12)
    assert sum(found.values()) == pytest.approx(value(frozenset(names)) - value(frozenset()))


def test_known_games():
    gloves = shapley_values(lambda s: float("left" in s and ("r1" in s or "r2" in s)), ["left", "r1", "r2"])
    assert gloves == pytest.approx({"left": 2 / 3, "r1": 1 / 6, "r2": 1 / 6})
    worth = {"a": 1.0, "b": -2.0, "dummy": 0.0}
    assert shapley_values(lambda s: 5 + sum(worth[m] for m in s), worth) == pytest.approx(worth)


def test_each_subset_is_evaluated_once():
    seen = []
    shapley_values(lambda s: seen.append(s) or 0.0, "abc")
    assert len(seen) == 8 == len(set(seen))


def test_mistakes_are_named():
    for names in ([], ["a", "a"], [str(i) for i in range(17)]):
        with pytest.raises(ValueError, match="1 to 16 different names"):
            shapley_values(lambda s: 0.0, names)
