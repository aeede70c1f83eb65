"""What each modality contributes: exact Shapley values over subsets of modalities."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from itertools import combinations

LARGEST = 16
"""Modalities whose 2**M subsets are still evaluated."""


def shapley_values(value: Callable[[frozenset[str]], float], modalities: Iterable[str]) -> dict[str, float]:
    """Return each modality's Shapley value, φ_m = Σ_S |S|! (M−|S|−1)! / M! (v(S ∪ m) − v(S)) over subsets S without m.

    value: the set function, for instance the accuracy of a model that is given only these modalities; called once for
    each of the 2**M subsets, the empty one included (what is known without any input: chance). The values add up to
    v(all) − v(none). Source: Shapley, "A Value for n-Person Games".

    Raises:
      ValueError: no modality, a name twice, or more than 16.

    >>> accuracy = {"": 0.1, "a": 0.5, "i": 0.7, "ai": 0.9}
    >>> found = shapley_values(lambda s: accuracy["".join(sorted(s))], ["a", "i"])
    >>> {m: round(v, 3) for m, v in found.items()}
    {'a': 0.3, 'i': 0.5}
    """
    names = list(modalities)
    if not names or len(set(names)) != len(names) or len(names) > LARGEST:
        raise ValueError(f"modalities must be 1 to {LARGEST} different names, got {names}")
    subsets = [frozenset(s) for size in range(len(names) + 1) for s in combinations(names, size)]
    values = {subset: float(value(subset)) for subset in subsets}
    total = math.factorial(len(names))
    weight = [math.factorial(s) * math.factorial(len(names) - s - 1) / total for s in range(len(names))]
    return {m: sum(weight[len(s)] * (values[s | {m}] - values[s]) for s in subsets if m not in s) for m in names}
