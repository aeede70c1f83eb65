"""Who goes where: a split code an example, read from the source or drawn with a seed."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

SPLIT_NAMES = ("train", "validation", "test")
"""Names of the splits; the position of a name is its code."""

TRAIN, VALIDATION, TEST = range(3)


def check_fractions(**fractions: float) -> None:
    """Raise ValueError unless every share of the examples is in (0, 1) and together they leave some to train on.

    >>> check_fractions(validation_fraction=0.5, test_fraction=0.5)
    Traceback (most recent call last):
    ...
    ValueError: validation_fraction + test_fraction = 1.0 leave nothing to train on; their sum must be below 1
    """
    for name, value in fractions.items():
        if not 0.0 < value < 1.0:
            raise ValueError(f"{name} must be above 0 and below 1, got {value}")
    if sum(fractions.values()) >= 1.0:
        total = sum(fractions.values())
        raise ValueError(f"{' + '.join(fractions)} = {total} leave nothing to train on; their sum must be below 1")


def draw(strata: np.ndarray, sizes: Mapping[int, int], seed: int) -> np.ndarray:
    """Return a split code an example, int8 [N]: `sizes` {code: examples} are drawn, the rest is TRAIN.

    strata: int [N]; every stratum (class) is spread evenly over the splits by giving its n members, in random order,
    the places 1/n, 2/n, ..., 1 on a line that is then cut at the sizes. Training is the end of the line, where every
    class has its last member: however small, a class is in training as long as that has room for one of each.

    >>> codes = draw(np.repeat([0, 1], 10), {VALIDATION: 4, TEST: 6}, seed=0)
    >>> [np.bincount(codes[i : i + 10]).tolist() for i in (0, 10)]
    [[5, 2, 3], [5, 2, 3]]
    """
    rng = np.random.default_rng([seed, len(strata)])
    shuffled = rng.permutation(len(strata))
    places = np.empty(len(strata))
    for stratum in np.unique(strata):
        members = shuffled[strata[shuffled] == stratum]
        places[members] = (np.arange(len(members)) + 1) / len(members)
    line = shuffled[np.argsort(places[shuffled], kind="stable")]
    codes = np.full(len(strata), TRAIN, np.int8)
    start = 0
    for code in sorted(sizes, reverse=True):
        codes[line[start : start + sizes[code]]] = code
        start += sizes[code]
    return codes


def split_problems(split: np.ndarray) -> list[str]:
    """Return what is wrong with an array of split names or codes; empty if nothing is.

    >>> split_problems(np.array(["train", "val"]))
    ["split[1] is 'val'; it must be 'train', 'validation' or 'test' (or 0, 1, 2)"]
    """
    if split.ndim != 1:
        return [f"split must have one entry an example, shape [N]; got shape {split.shape}"]
    if split.dtype.kind not in "iuUS":
        return [f"split must hold strings ('train', 'validation', 'test') or integers (0, 1, 2); got {split.dtype}"]
    allowed = np.arange(3) if split.dtype.kind in "iu" else np.array(SPLIT_NAMES, split.dtype.kind)
    bad = ~np.isin(split, allowed)
    if bad.any():
        first = int(bad.argmax())
        return [f"split[{first}] is {split[first].item()!r}; it must be 'train', 'validation' or 'test' (or 0, 1, 2)"]
    codes = split_codes(split)
    return [
        f"split has no {SPLIT_NAMES[code]!r} example; mark some (a missing validation split is taken from training)"
        for code in (TRAIN, TEST)
        if not (codes == code).any()
    ]


def split_codes(split: np.ndarray) -> np.ndarray:
    """Return split names or codes that `split_problems` accepts as codes, int8 [N].

    >>> split_codes(np.array(["test", "train"])).tolist()
    [2, 0]
    """
    if split.dtype.kind in "iu":
        return split.astype(np.int8)
    names = np.array(SPLIT_NAMES, split.dtype.kind)
    return np.argmax(split[:, None] == names[None, :], axis=1).astype(np.int8)


def assign(
    split: np.ndarray | None,
    strata: np.ndarray,
    *,
    validation_fraction: float,
    test_fraction: float,
    seed: int,
) -> np.ndarray:
    """Return the split code of every example, int8 [N]: those given, or drawn (`draw`) where they are not.

    A `split` without validation examples gives up `validation_fraction` of its training examples; the test split
    that it names stays as it is.

    Raises:
      ValueError: fractions out of range, a negative seed, or too few examples to fill every split.
    """
    if seed < 0:
        raise ValueError(f"split_seed must be at least 0, got {seed}")
    check_fractions(validation_fraction=validation_fraction, test_fraction=test_fraction)
    if split is None:
        sizes = {VALIDATION: _share(validation_fraction, len(strata)), TEST: _share(test_fraction, len(strata))}
        codes = draw(strata, sizes, seed)
    else:
        codes = split_codes(split)
        if not (codes == VALIDATION).any():
            train = np.flatnonzero(codes == TRAIN)
            drawn = draw(strata[train], {VALIDATION: _share(validation_fraction, len(train))}, seed)
            codes = codes.copy()
            codes[train] = drawn
    counts = np.bincount(codes, minlength=3)
    if not counts.all():
        sizes_text = ", ".join(f"{name} {count}" for name, count in zip(SPLIT_NAMES, counts, strict=True))
        raise ValueError(f"{len(strata)} examples are too few: every split needs at least one, got {sizes_text}")
    return codes


def _share(fraction: float, total: int) -> int:
    return max(1, round(fraction * total))
