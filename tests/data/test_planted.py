"""Planted truth: the tables against enumeration of everything, closed forms, known answers and drawn data."""

from __future__ import annotations

import itertools
import math
import warnings

import numpy as np
import pytest

from mmjax.data import Planted, planted_posterior, planted_truth
from mmjax.data.deepmap import random_map

MIXED = Planted(
    unique={"a": 0.5, "b": 1.2},
    redundant={"a+c": 0.7},
    synergistic={"a+b+c": 0.6},
    noise={"a": 0.1, "c": 0.05},
    depth={"a": 1, "c": 2},
    width=8,
)


def binary_entropy(p: float) -> float:
    return 0.0 if p in (0.0, 1.0) else -p * math.log2(p) - (1 - p) * math.log2(1 - p)


def flip_by_search(information: float) -> float:
    """Flip probability by a root finder of another kind than the library's."""
    from scipy.optimize import brentq

    return 0.0 if information >= 1 else float(brentq(lambda p: 1 - binary_entropy(p) - information, 1e-15, 0.5))


def enumerate_everything(config: Planted, group: tuple[str, ...]) -> tuple[float, float]:
    """(accuracy, information) from the joint distribution of the whole label and all that `group` sees.

    Every random choice of the model is one loop variable: label bits, part flips, coins, modality flips. Nothing is
    factorised, no table is shared with the library.
    """
    sources = []
    for kind in ("unique", "redundant", "synergistic"):
        for names, amount in getattr(config, kind).items():
            count = math.ceil(amount)
            sources += [(kind, sorted(names.split("+")), flip_by_search(amount / count)) for _ in range(count)]
    per_source = []  # for each: list of (probability, b, symbols seen by the group)
    for kind, holders, eps in sources:
        outcomes: dict[tuple[int, tuple[int, ...]], float] = {}
        coins = len(holders) - 1 if kind == "synergistic" else 0
        for b, e, *rest in itertools.product((0, 1), repeat=2 + coins + len(holders)):
            coin, flips = rest[:coins], rest[coins:]
            s = b ^ e
            clean = [*coin, (s + sum(coin)) % 2] if kind == "synergistic" else [s] * len(holders)
            p = 0.5 * (eps if e else 1 - eps) * 0.5**coins
            seen = []
            for holder, symbol, flip in zip(holders, clean, flips, strict=True):
                q = config.noise.get(holder, 0.0)
                p *= q if flip else 1 - q
                if holder in group:
                    seen.append(symbol ^ flip)
            key = (b, tuple(seen))
            outcomes[key] = outcomes.get(key, 0.0) + p
        per_source.append(list(outcomes.items()))
    joint: dict[tuple, dict[tuple, float]] = {}
    for combination in itertools.product(*per_source):
        label = tuple(key[0] for key, _ in combination)
        seen_all = tuple(key[1] for key, _ in combination)
        row = joint.setdefault(seen_all, {})
        row[label] = row.get(label, 0.0) + math.prod(p for _, p in combination)
    classes = 2 ** len(sources)
    accuracy = sum(max(row.values()) for row in joint.values())
    information = sum(
        p * math.log2(p * classes / sum(row.values())) for row in joint.values() for p in row.values() if p > 0
    )
    return accuracy, information


@pytest.mark.parametrize("config", [Planted(), MIXED], ids=["default", "mixed"])
def test_truth_equals_enumeration_of_the_whole_joint(config: Planted) -> None:
    truth = planted_truth(config)
    for group in truth.accuracy:
        accuracy, information = enumerate_everything(config, tuple(group.split("+")))
        assert truth.accuracy[group] == pytest.approx(accuracy, abs=1e-9)
        assert truth.information[group] == pytest.approx(information, abs=1e-9)


def test_pure_xor_says_nothing_alone_and_everything_together() -> None:
    truth = planted_truth(Planted(unique={}, redundant={}, synergistic={"a+b+c": 1.0}, depth={}))
    whole = "a+b+c"
    assert all(bits == (1.0 if group == whole else 0.0) for group, bits in truth.information.items())
    assert all(acc == (1.0 if group == whole else 0.5) for group, acc in truth.accuracy.items())
    assert truth.loss(whole) == 0.0
    assert truth.loss("a") == pytest.approx(math.log(2))


def test_without_noise_information_is_the_sum_of_the_readable_parts() -> None:
    config = Planted(
        unique={"a": 0.3, "b": 1.7}, redundant={"a+b": 0.9, "b+c": 0.2}, synergistic={"a+c": 0.45}, depth={}, width=12
    )
    truth = planted_truth(config)
    readable = {
        "a": 0.3 + 0.9,
        "b": 1.7 + 0.9 + 0.2,
        "c": 0.2,
        "a+b": 0.3 + 1.7 + 0.9 + 0.2,
        "a+c": 0.3 + 0.9 + 0.2 + 0.45,
        "b+c": 1.7 + 0.9 + 0.2,
        "a+b+c": 0.3 + 1.7 + 0.9 + 0.2 + 0.45,
    }
    assert truth.information == pytest.approx(readable, abs=1e-9)
    for kind in ("unique", "redundant", "synergistic"):
        assert getattr(truth, kind) == pytest.approx(getattr(config, kind), abs=1e-9)
    assert truth.num_classes == 2**6


def test_noise_on_copies_leaves_more_in_both_than_in_one() -> None:
    q = 0.1
    truth = planted_truth(Planted(unique={}, redundant={"a+b": 1.0}, synergistic={}, noise={"a": q, "b": q}, depth={}))
    assert truth.information["a"] == pytest.approx(1 - binary_entropy(q), abs=1e-12)
    assert truth.accuracy["a"] == pytest.approx(0.9)
    agree = q**2 + (1 - q) ** 2  # copies agree: the posterior is q^2 : (1-q)^2; they differ: nothing is known
    expected = agree * (1 - binary_entropy(q**2 / agree))
    assert truth.information["a+b"] == pytest.approx(expected, abs=1e-12)
    assert truth.redundant["a+b"] == pytest.approx(expected, abs=1e-12)


def test_noise_on_an_xor_adds_up() -> None:
    truth = planted_truth(
        Planted(unique={}, redundant={}, synergistic={"a+b": 1.0}, noise={"a": 0.1, "b": 0.2}, depth={})
    )
    flip = 0.1 * 0.8 + 0.9 * 0.2
    assert truth.information["a+b"] == pytest.approx(1 - binary_entropy(flip), abs=1e-12)
    assert truth.bayes_accuracy == pytest.approx(1 - flip)


def test_a_silent_modality_changes_nothing() -> None:
    truth = planted_truth(Planted(unique={"a": 0.5, "c": 0.0}, redundant={}, synergistic={}, depth={}))
    assert truth.information["c"] == 0.0 and truth.accuracy["c"] == 0.5
    assert truth.information["a+c"] == truth.information["a"] == pytest.approx(0.5, abs=1e-9)


def test_the_truth_of_chosen_modalities_is_about_those() -> None:
    truth = planted_truth(Planted(modalities=("b",)))
    assert truth.modalities == ("b",) and list(truth.accuracy) == ["b"]
    assert truth.bayes_accuracy == planted_truth(Planted()).accuracy["b"]


@pytest.mark.parametrize("depth", [0, 1, 4])
def test_the_map_can_be_undone(depth: int) -> None:
    rng = np.random.default_rng(depth)
    hidden = random_map(rng, width=8, depth=depth)
    bits = rng.integers(0, 2, (2000, 4)).astype(np.int8)
    inputs = hidden.encode(bits, rng)
    assert inputs.dtype == np.float32 and inputs.shape == (2000, 8)
    np.testing.assert_array_equal(hidden.decode(inputs, 4), bits)


def test_drawn_data_reach_the_truth_and_the_posterior_is_calibrated() -> None:
    """Monte Carlo through the real inputs: maps undone, exact posterior, every group of modalities."""
    config = Planted(
        **{**{f: getattr(MIXED, f) for f in ("unique", "redundant", "synergistic", "noise", "depth")}},
        test_examples=20_000,
    )
    truth, test = planted_truth(config), config.load().test
    for group, accuracy in truth.accuracy.items():
        posterior = planted_posterior(config, {name: test.inputs[name] for name in group.split("+")})
        np.testing.assert_allclose(posterior.sum(axis=1), 1.0, atol=1e-12)
        hits = (posterior.argmax(axis=1) == test.label).mean()
        assert abs(hits - accuracy) < 4.5 * math.sqrt(accuracy * (1 - accuracy) / len(test))
        losses = -np.log(posterior[np.arange(len(test)), test.label])
        assert abs(losses.mean() - truth.loss(group)) < 4.5 * losses.std() / math.sqrt(len(test)) + 1e-9


def test_depth_hides_a_bit_from_a_linear_model() -> None:
    """Least squares on the label reads a linear modality perfectly, and less and less with depth."""
    scores = []
    for depth in (0, 1, 3):
        config = Planted(unique={"a": 1.0}, redundant={}, synergistic={}, depth={"a": depth}, seed=1)
        splits = config.load()
        design = [np.c_[d.inputs["a"], np.ones(len(d))] for d in (splits.train, splits.test)]
        coefficients, *_ = np.linalg.lstsq(design[0], 2.0 * splits.train.label - 1, rcond=None)
        scores.append(float(((design[1] @ coefficients > 0) == splits.test.label).mean()))
    assert scores[0] > 0.999 > scores[1] > scores[2] + 0.05
    assert scores[2] > 0.5


def test_a_hidden_bit_can_still_be_learned() -> None:
    from sklearn.neural_network import MLPClassifier  # here, since it takes longer to import than the test to run

    splits = Planted(unique={"a": 1.0}, redundant={}, synergistic={}, depth={"a": 2}, seed=1).load()
    model = MLPClassifier((64,), max_iter=40, tol=0.0, n_iter_no_change=100, random_state=0, learning_rate_init=3e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the fit is cut short on purpose
        model.fit(splits.train.inputs["a"], splits.train.label)
    assert model.score(splits.test.inputs["a"], splits.test.label) > 0.97


def test_the_same_seed_gives_the_same_data_and_another_other_data() -> None:
    first, again, other = (Planted(seed=seed).load() for seed in (0, 0, 1))
    for part in ("train", "validation", "test"):
        for name in ("a", "b"):
            np.testing.assert_array_equal(getattr(first, part).inputs[name], getattr(again, part).inputs[name])
        np.testing.assert_array_equal(getattr(first, part).label, getattr(again, part).label)
    assert not np.array_equal(first.train.label, other.train.label)
    assert not np.array_equal(first.train.label[:1000], first.validation.label)


def test_splits_and_seeds_share_no_randomness() -> None:
    first, other = (
        Planted(train_examples=500, validation_examples=500, test_examples=500, seed=seed).load() for seed in (0, 1)
    )
    labels = [part.label for part in (first.train, first.validation, first.test, other.train)]
    for one, two in itertools.combinations(labels, 2):
        assert (one == two).mean() < 0.15  # 1/16 by chance


def test_every_modality_has_its_own_map() -> None:
    train = Planted(unique={}, redundant={"a+b": 1.0}, synergistic={}, depth={}).load().train
    target = 2.0 * train.label - 1
    directions = [np.linalg.lstsq(np.asarray(x), target, rcond=None)[0] for x in train.inputs.values()]
    assert abs(np.corrcoef(*directions)[0, 1]) < 0.9


def test_leaving_a_modality_out_leaves_the_others_as_they_are() -> None:
    whole, alone = Planted().load().train, Planted(modalities=("b",)).load().train
    assert alone.modalities == ("b",)
    np.testing.assert_array_equal(whole.inputs["b"], alone.inputs["b"])
    np.testing.assert_array_equal(whole.label, alone.label)


def test_labels_are_even_and_named() -> None:
    train = Planted().load().train
    assert train.task.num_outputs == 16 and train.task.label_names[5] == "0101"
    counts = np.bincount(train.label, minlength=16)
    assert np.abs(counts - 250).max() < 5 * math.sqrt(250)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"unique": {"a+b": 1.0}}, "unique names 'a\\+b'"),
        ({"redundant": {"a": 1.0}}, "redundant names 'a'; write two or more"),
        ({"synergistic": {"a+a": 1.0}}, "synergistic names 'a\\+a'"),
        ({"redundant": {"a+b": 1.0, "b+a": 1.0}}, "twice"),
        ({"unique": {"a": -0.1}}, r"unique\['a'\] must be a number of bits >= 0, got -0.1"),
        ({"unique": {"a": math.nan}}, "got nan"),
        ({"unique": {"fusion": 1.0}}, "'fusion' is taken"),
        ({"unique": {"a": 0.0}, "redundant": {}, "synergistic": {}, "depth": {}}, "make 0 label bits"),
        ({"unique": {"a": 13.0}}, "1 to 12"),
        ({"noise": {"z": 0.1}}, "noise names z, but the modalities are a, b"),
        ({"noise": {"a": 0.6}}, r"noise\['a'\] must be a probability from 0 to 0.5, got 0.6"),
        ({"depth": {"a": -1}}, r"depth\['a'\]"),
        ({"width": 5}, "width must be even and at least 6"),
        ({"width": 4}, "width must be even and at least 6"),
        ({"test_examples": 0}, "test_examples must be at least 1, got 0"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"modalities": ("c",)}, "modalities names 'c'"),
    ],
)
def test_bad_options_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Planted(**options).load()
    with pytest.raises(ValueError, match=message):
        planted_truth(Planted(**options))
