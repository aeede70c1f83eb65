"""Every mutant dies by the check that is there for it, and the method it was made from survives that check."""

from __future__ import annotations

from collections import Counter

import pytest

from mmjax.optim import METHODS
from testing.mutants import GALLERY

SAMPLE = list(GALLERY)[::4]


def kills(name: str) -> bool:
    mutant = GALLERY[name]
    try:
        mutant.killed_by(mutant.make)
    except AssertionError:
        return True
    return False


@pytest.mark.parametrize("name", SAMPLE)
def test_sampled_mutant_is_killed(name):
    assert kills(name)


@pytest.mark.soak
@pytest.mark.parametrize("name", GALLERY)
def test_original_survives(name):
    GALLERY[name].killed_by(GALLERY[name].original)


@pytest.mark.soak
def test_at_least_95_percent_of_the_mutants_are_killed():
    alive = [name for name in GALLERY if not kills(name)]
    assert len(alive) <= 0.05 * len(GALLERY), alive


def test_three_mutants_a_method():
    count = Counter(name.split(":")[0] for name in GALLERY)
    assert not {name for name in METHODS if count[name] < 3}
