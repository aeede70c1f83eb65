"""Which subsets of the modalities a study or an evaluation goes through."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterable

ALL, LEAVE_ONE_OUT = "all", "leave-one-out"

Subset = tuple[str, ...]
"""Names of modalities, sorted."""


def subset_name(subset: Subset) -> str:
    """Return a subset as it is written: "audio+image".

    >>> subset_name(("audio", "image"))
    'audio+image'
    """
    return "+".join(subset)


def choose_subsets(wanted: Iterable[str], modalities: Iterable[str]) -> tuple[Subset, ...]:
    """Return the subsets to study, small ones first, none twice.

    wanted: "all" for every subset that is not empty (2^M - 1 of them), "leave-one-out" for the whole set, the whole set
    without each one, and each one alone; and subsets by name, "audio+image".

    Raises:
      ValueError: a subset that names a modality which the data do not hold (the nearest is shown) or one twice; no
        subset at all.

    >>> choose_subsets(["all"], ["b", "a"])
    (('a',), ('b',), ('a', 'b'))
    >>> choose_subsets(["a+b", "c"], ["a", "b", "c"])
    (('c',), ('a', 'b'))
    """
    names = sorted(modalities)
    found: set[Subset] = set()
    if isinstance(wanted, str):
        raise ValueError(f"subsets must be a sequence of names, such as [{wanted!r}]; got the string alone")
    for text in wanted:
        if not isinstance(text, str):
            raise ValueError(f"subsets must hold names, such as 'audio+image'; got {text!r}")
        if text == ALL:
            found.update(s for size in range(1, len(names) + 1) for s in itertools.combinations(names, size))
        elif text == LEAVE_ONE_OUT:
            found.update([tuple(names), *((name,) for name in names)])
            found.update(s for s in itertools.combinations(names, len(names) - 1) if s)
        else:
            found.add(_subset(text, names))
    if not found:
        raise ValueError(f"subsets is empty; name some, such as {subset_name(tuple(names))!r}, or take 'all'")
    return tuple(sorted(found, key=lambda subset: (len(subset), subset)))


def _subset(text: str, names: list[str]) -> Subset:
    parts = text.split("+")
    for part in parts:
        if part not in names:
            near = difflib.get_close_matches(part, [*names, ALL, LEAVE_ONE_OUT], n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(
                f"subset {text!r} names {part!r}, which the data do not hold{hint} (available: {', '.join(names)})"
            )
    if len(set(parts)) != len(parts):
        raise ValueError(f"subset {text!r} names a modality twice")
    return tuple(sorted(parts))
