"""Planted truth: data of any number of modalities of which one knows exactly what each modality says of the label.

The model
---------
The label is a number of B independent fair bits, y = sum_i 2^i b_i, so there are 2^B classes, all equally likely.
Each bit belongs to one *part*, and a part says who can learn of its bits, and how much:

1. A part of I bits of information has n = ceil(I) label bits. Each is seen through a flip, s = b xor e with
   P(e = 1) = eps, where eps <= 1/2 solves 1 - h(eps) = I/n and h is the binary entropy in bits. So s says I/n bits of
   b, and the part I in all.
2. The part's kind says how s is shared among its holders:
   *unique*: the one holder has the symbol s;
   *redundant*: every holder has a copy of s, so that one of them says as much as all together;
   *synergistic*: all holders but the last have a fair coin, the last has the bit that makes the xor of all of them s.
   Any group that lacks a holder has independent coins only, and knows nothing of b.
3. On its way into modality m each symbol is flipped once more with probability noise[m], independently.
4. A modality's symbols, as +-1 with a bounded jitter, are joined with nuisance coordinates and go through a one-to-one
   random map of depth[m] layers (`mmjax.data.deepmap`); depth 0 is linear. The jitter is too small to change a sign
   and the map can be undone, so the inputs say exactly what the symbols say, only harder to learn with depth.

The truth
---------
A label bit and the symbols that come from it are independent of all the others. One small table for each bit,
P(b, symbols of its holders), therefore holds everything: for a group S of modalities, sum the table over the holders
outside S; then

    information  I(y; x_S) = sum over bits of I(b; symbols in S),
    accuracy     max-posterior accuracy = product over bits of sum_symbols max_b P(b, symbols),
    loss         least cross-entropy = (B - I(y; x_S)) ln 2 nats.

Without noise, I(y; x_S) is the sum of the stated amounts over the parts that S can read: unique parts of its members,
redundant parts with a holder in S, synergistic parts whose holders are all in S.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import reduce
from typing import ClassVar, Literal

import numpy as np

from mmjax.config import DataConfig
from mmjax.data.dataset import ArrayLike, Dataset, Splits, Task
from mmjax.data.deepmap import DeepMap, random_map
from mmjax.data.missing import with_missing
from mmjax.data.splitting import SPLIT_NAMES
from mmjax.data.validation import check_splits, chosen_modalities, name_problems, raise_problems, select

PartKind = Literal["unique", "redundant", "synergistic"]

MAX_MODALITIES = 10  # the truth is told for each of the 2^M - 1 groups
MAX_BITS = 12  # 4,096 classes


@dataclass(frozen=True, kw_only=True)
class Planted(DataConfig):
    """Made-up data with stated unique, redundant and synergistic information; see `mmjax.data.planted`.

    A group of modalities is written "a+b". The modalities are all that `unique`, `redundant` and `synergistic` name;
    `unique={"c": 0.0}` adds one that says nothing.

    Example:
    >>> splits = Planted(unique={"a": 0.5, "b": 0.5}, redundant={}, synergistic={}, train_examples=200).load()
    >>> splits.train.inputs["a"].shape, splits.train.task.num_outputs
    ((200, 8), 4)
    """

    name: str = "planted"
    unique: dict[str, float] = field(default_factory=lambda: {"a": 0.6, "b": 0.6})
    """Bits of information on the label that only this modality holds."""
    redundant: dict[str, float] = field(default_factory=lambda: {"a+b": 0.6})
    """Bits that each modality of the group holds."""
    synergistic: dict[str, float] = field(default_factory=lambda: {"a+b": 0.6})
    """Bits that the modalities of the group hold only together (an xor)."""
    noise: dict[str, float] = field(default_factory=dict)
    """Probability that a symbol flips on its way into this modality, 0 to 0.5; 0 where not named."""
    depth: dict[str, int] = field(default_factory=lambda: {"b": 2})
    """Layers of the random map that hides this modality's symbols: 0 (where not named) is linear, learned fastest."""
    width: int = 8
    """Dimensions of each modality; even, at least twice the symbols that a modality holds."""
    train_examples: int = 4000
    """Examples to train on."""
    validation_examples: int = 1000
    """Examples for validation."""
    test_examples: int = 2000
    """Examples for the test."""
    missing: dict[str, float] = field(default_factory=dict)
    """Probability that an example lacks this modality, below 1; 0 where not named. Never are all of them missing."""
    seed: int = 0
    """Seed of the examples, of the random maps and of what is missing."""

    needs: ClassVar[str] = "nothing: it is made up from a seed"

    def load(self) -> Splits:
        """Draw the three splits; the modalities left out by `modalities` change nothing in the others.

        Raises:
          ValueError: amounts, probabilities, sizes or names out of range; all of it in one message.
        """
        names, bits = _model(self)
        task = Task("classification", 2 ** len(bits), tuple(_bit_string(y, len(bits)) for y in range(2 ** len(bits))))
        maps = _maps(self, names)

        def part(code: int) -> Dataset:
            rng = np.random.default_rng([self.seed, code])
            label, symbols = _draw(bits, names, self.noise, _sizes(self)[code], rng)
            inputs = {name: maps[name].encode(symbols[name], rng) for name in names}
            return Dataset(inputs, label, task)

        splits = Splits(part(0), part(1), part(2))
        return check_splits(with_missing(select(splits, self.modalities), self.missing, self.seed))


@dataclass(frozen=True)
class PlantedTruth:
    """What is to be known about a `Planted`, exactly; groups of modalities are keys such as "a" and "a+b".

    accuracy, information: of the best possible classifier, and I(label; inputs) in bits, for every group of the
      modalities in use. unique, redundant, synergistic: {holders: bits of the label that the part's holders together
      say through it}: the stated amount without noise; noise takes from it, and leaves less in each copy than in all.

    >>> truth = planted_truth(Planted(unique={}, redundant={}, synergistic={"a+b": 1.0}))
    >>> truth.information
    {'a': 0.0, 'b': 0.0, 'a+b': 1.0}
    >>> truth.bayes_accuracy, truth.accuracy["a"]
    (1.0, 0.5)
    """

    modalities: tuple[str, ...]
    num_classes: int
    accuracy: dict[str, float]
    information: dict[str, float]
    unique: dict[str, float]
    redundant: dict[str, float]
    synergistic: dict[str, float]

    @property
    def bayes_accuracy(self) -> float:
        """Accuracy of the best possible classifier of all modalities in use."""
        return self.accuracy["+".join(self.modalities)]

    def loss(self, group: str) -> float:
        """Return the least possible cross-entropy of a classifier of this group, in nats an example."""
        return (math.log2(self.num_classes) - self.information[group]) * math.log(2.0)


def planted_truth(config: Planted) -> PlantedTruth:
    """Return the exact truth about `config`, by summing its probability tables; no data are drawn.

    Raises:
      ValueError: as `Planted.load`.

    >>> truth = planted_truth(Planted(unique={"a": 0.5}, redundant={"a+b": 1.0}, synergistic={}, depth={}))
    >>> {group: round(bits, 9) for group, bits in truth.information.items()}
    {'a': 1.5, 'b': 1.0, 'a+b': 1.5}
    """
    names, bits = _model(config)
    used = chosen_modalities(config.modalities, names)
    tables = [(bit, _table(bit, config.noise)) for bit in bits]
    groups = [group for size in range(1, len(used) + 1) for group in itertools.combinations(used, size)]
    accuracy, information = {}, {}
    for group in groups:
        seen = [_seen(bit, table, group) for bit, table in tables]
        accuracy["+".join(group)] = math.prod(float(table.max(axis=0).sum()) for table in seen)
        information["+".join(group)] = math.fsum(_mutual_information(table) for table in seen)
    carried: dict[PartKind, dict[str, float]] = {"unique": {}, "redundant": {}, "synergistic": {}}
    for kind, holders, _ in _parts(config):
        shares = [_mutual_information(_flat(table)) for b, table in tables if (b.kind, b.holders) == (kind, holders)]
        carried[kind]["+".join(holders)] = math.fsum(shares)
    return PlantedTruth(used, 2 ** len(bits), accuracy, information, **carried)


def planted_posterior(config: Planted, inputs: Mapping[str, ArrayLike]) -> np.ndarray:
    """Return the exact posterior P(label | inputs), float64 [N, classes], for inputs that `config` has made.

    inputs: {modality: [N, width]} of any of the modalities, at least one. This is the best possible classifier,
    against which another can be held example by example.

    Raises:
      ValueError: as `Planted.load`; no input, or one of a modality that `config` does not make.

    >>> config = Planted(unique={"a": 1.0}, redundant={}, synergistic={}, depth={})
    >>> test = config.load().test
    >>> bool((planted_posterior(config, test.inputs).argmax(axis=1) == test.label).all())
    True
    """
    names, bits = _model(config)
    if not inputs:
        raise ValueError("inputs holds no modality; give at least one of " + ", ".join(names))
    group = chosen_modalities(tuple(inputs), names)
    maps = _maps(config, names)
    symbols = {name: maps[name].decode(inputs[name][:], sum(name in bit.holders for bit in bits)) for name in group}
    posterior = np.ones((len(next(iter(symbols.values()))), 1))
    column = dict.fromkeys(group, 0)
    for bit in bits:
        code = np.zeros(len(posterior), np.int64)
        for holder in bit.holders:
            if holder in symbols:
                code = 2 * code + symbols[holder][:, column[holder]]
                column[holder] += 1
        joint = _seen(bit, _table(bit, config.noise), group)[:, code]
        given = (joint / joint.sum(axis=0)).T
        # bit i is the i-th binary digit of the label: the bits done so far are the lower digits
        posterior = (given[:, :, None] * posterior[:, None, :]).reshape(len(posterior), -1)
    return posterior


@dataclass(frozen=True)
class _Bit:
    """One bit of the label: who holds symbols of it, how, and with what probability it is flipped beforehand."""

    kind: PartKind
    holders: tuple[str, ...]
    flip: float


def _model(config: Planted) -> tuple[tuple[str, ...], list[_Bit]]:
    """Names of all modalities, sorted, and the bits of the label in order; ValueError with all that is wrong."""
    problems = [p for what in ("unique", "redundant", "synergistic") for p in _group_problems(what, config)]
    raise_problems("data", problems)
    parts = _parts(config)
    names = tuple(sorted({name for _, holders, _ in parts for name in holders}))
    bits = [
        _Bit(kind, holders, _flip_probability(amount / count))
        for kind, holders, amount in parts
        for count in [math.ceil(amount)]
        for _ in range(count)
    ]
    raise_problems("data", _model_problems(config, names, bits))
    return names, bits


def _parts(config: Planted) -> list[tuple[PartKind, tuple[str, ...], float]]:
    kinds: tuple[PartKind, ...] = ("unique", "redundant", "synergistic")
    return [
        (kind, tuple(sorted(group.split("+"))), amount)
        for kind in kinds
        for group, amount in sorted(getattr(config, kind).items())
    ]


def _group_problems(what: str, config: Planted) -> list[str]:
    problems = []
    seen = set()
    for group, amount in getattr(config, what).items():
        holders = group.split("+")
        for holder in holders:
            problems += [f"{what}: {problem}" for problem in name_problems(holder)]
        if what == "unique" and len(holders) != 1:
            problems.append(f"unique names {group!r}; unique information has one modality")
        if what != "unique" and (len(holders) < 2 or len(set(holders)) < len(holders)):
            problems.append(f"{what} names {group!r}; write two or more different modalities, such as 'a+b'")
        if tuple(sorted(holders)) in seen:
            problems.append(f"{what} names the modalities of {group!r} twice; add the amounts up")
        seen.add(tuple(sorted(holders)))
        if not (math.isfinite(amount) and amount >= 0.0):
            problems.append(f"{what}[{group!r}] must be a number of bits >= 0, got {amount}")
    return problems


def _model_problems(config: Planted, names: tuple[str, ...], bits: list[_Bit]) -> list[str]:
    problems = []
    if len(names) > MAX_MODALITIES:
        problems.append(f"unique, redundant and synergistic name {len(names)} modalities; at most {MAX_MODALITIES}")
    if not 1 <= len(bits) <= MAX_BITS:
        problems.append(
            f"unique, redundant and synergistic make {len(bits)} label bits (each amount rounded up); there must be "
            f"1 to {MAX_BITS}"
        )
    for what in ("noise", "depth"):
        unknown = sorted(set(getattr(config, what)) - set(names))
        if unknown:
            problems.append(f"{what} names {', '.join(unknown)}, but the modalities are {', '.join(names)}")
    problems += [
        f"noise[{name!r}] must be a probability from 0 to 0.5, got {value}"
        for name, value in config.noise.items()
        if not 0.0 <= value <= 0.5
    ]
    problems += [
        f"depth[{name!r}] must be a number of layers >= 0, got {value}"
        for name, value in config.depth.items()
        if value < 0
    ]
    most = max((sum(name in bit.holders for bit in bits) for name in names), default=0)
    if config.width < max(2, 2 * most) or config.width % 2:
        problems.append(f"width must be even and at least {max(2, 2 * most)} for this information, got {config.width}")
    for split, size in zip(SPLIT_NAMES, _sizes(config), strict=True):
        if size < 1:
            problems.append(f"{split}_examples must be at least 1, got {size}")
    if config.seed < 0:
        problems.append(f"seed must be at least 0, got {config.seed}")
    return problems


def _sizes(config: Planted) -> tuple[int, int, int]:
    return config.train_examples, config.validation_examples, config.test_examples


def _flip_probability(information: float) -> float:
    """The eps in [0, 1/2] for which a bit seen through a flip keeps this information, 1 - h(eps), in [0, 1]."""
    low, high = 0.0, 0.5
    if information >= 1.0:
        return 0.0
    for _ in range(100):  # halves the interval down to the last bit of a float64
        middle = (low + high) / 2
        low, high = (middle, high) if 1.0 - _entropy(np.array([middle, 1 - middle])) > information else (low, middle)
    return (low + high) / 2


def _entropy(probabilities: np.ndarray) -> float:
    """Entropy in bits; 0 log 0 = 0."""
    p = probabilities[probabilities > 0]
    return float(-(p * np.log2(p)).sum())


def _table(bit: _Bit, noise: Mapping[str, float]) -> np.ndarray:
    """P(b, symbol of each holder), shape [2] * (1 + holders): the model's steps 1 to 3, written as sums."""
    count = len(bit.holders)
    clean = np.zeros((2,) * (1 + count))
    for b, s in itertools.product((0, 1), repeat=2):
        weight = 0.5 * (bit.flip if b != s else 1.0 - bit.flip)
        if bit.kind == "synergistic":
            fitting = [t for t in itertools.product((0, 1), repeat=count) if reduce(operator.xor, t) == s]
        else:
            fitting = [(s,) * count]
        for t in fitting:
            clean[(b, *t)] += weight / len(fitting)
    for axis, holder in enumerate(bit.holders, start=1):
        q = noise.get(holder, 0.0)
        clean = np.moveaxis(np.tensordot(clean, np.array([[1 - q, q], [q, 1 - q]]), axes=(axis, 0)), -1, axis)
    return clean


def _seen(bit: _Bit, table: np.ndarray, group: Iterable[str]) -> np.ndarray:
    """P(b, symbols of the holders in `group`), [2, 2^k]; holders in order, the first the highest digit."""
    unseen = tuple(axis for axis, holder in enumerate(bit.holders, start=1) if holder not in group)
    return _flat(table.sum(axis=unseen))


def _flat(table: np.ndarray) -> np.ndarray:
    return table.reshape(2, -1)


def _mutual_information(joint: np.ndarray) -> float:
    """I(row; column) in bits of a table of joint probabilities; exactly 0 for independent dyadic tables."""
    product = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0, keepdims=True)
    live = joint > 0
    return max(0.0, float((joint[live] * np.log2(joint[live] / product[live])).sum()))


def _draw(
    bits: list[_Bit], names: tuple[str, ...], noise: Mapping[str, float], count: int, rng: np.random.Generator
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Labels int32 [N] and each modality's symbols int8 [N, k], k in the order of the bits that it holds."""
    label = np.zeros(count, np.int32)
    columns: dict[str, list[np.ndarray]] = {name: [] for name in names}

    def flips(probability: float) -> np.ndarray:
        return (rng.random(count) < probability).astype(np.int8)

    for place, bit in enumerate(bits):
        b = flips(0.5)
        label += b.astype(np.int32) << place
        s = b ^ flips(bit.flip)
        if bit.kind == "synergistic":
            coins = [flips(0.5) for _ in bit.holders[1:]]
            symbols = [*coins, reduce(operator.xor, coins, s)]
        else:
            symbols = [s] * len(bit.holders)
        for holder, symbol in zip(bit.holders, symbols, strict=True):
            columns[holder].append(symbol ^ flips(noise.get(holder, 0.0)))
    none = np.zeros((count, 0), np.int8)
    return label, {name: np.stack(columns[name], axis=1) if columns[name] else none for name in names}


def _maps(config: Planted, names: tuple[str, ...]) -> dict[str, DeepMap]:
    """Each modality's map, from a stream of its own: len(SPLIT_NAMES) is the first number that no split uses."""
    return {
        name: random_map(
            np.random.default_rng([config.seed, len(SPLIT_NAMES), place]),
            width=config.width,
            depth=config.depth.get(name, 0),
        )
        for place, name in enumerate(names)
    }


def _bit_string(label: int, count: int) -> str:
    return format(label, f"0{count}b")
