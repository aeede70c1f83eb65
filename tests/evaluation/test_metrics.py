"""Metrics against scikit-learn and brute force; late fusion against its definition in probabilities."""

from __future__ import annotations

import doctest
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

import mmjax.evaluation.metrics as module
from mmjax.data import Task
from mmjax.evaluation.metrics import (
    expected_calibration_error,
    late_fusion,
    loss_name,
    macro_f1,
    mean_auroc,
    mean_average_precision,
    micro_f1,
    pearson,
    probabilities,
    score_name,
    task_metrics,
)

SEEDS = st.integers(0, 2**32 - 1)
FEW = settings(max_examples=40, deadline=None)


def classes(count: int) -> Task:
    return Task("classification", count)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Plain definition; only for moderate logits."""
    powers = np.exp(logits.astype(np.float64))
    return powers / powers.sum(axis=-1, keepdims=True)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits.astype(np.float64)))


# -- classification ----------------------------------------------------------------------------------------------------


@FEW
@given(SEEDS, st.integers(1, 40), st.integers(2, 6))
def test_classification_agrees_with_scikit_learn(seed, n, c):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, c)).astype(np.float32) * 3
    label = rng.integers(0, c, n).astype(np.int32)  # small n: classes are absent from labels, predictions or both
    found = task_metrics(classes(c), logits, label)
    predicted = logits.argmax(1)
    assert set(found) == {"accuracy", "balanced_accuracy", "macro_f1", "auroc", "map", "nll", "ece"}
    occurs = [np.mean(predicted[label == i] == i) for i in set(label.tolist())]
    assert found["balanced_accuracy"] == pytest.approx(np.mean(occurs), rel=1e-12)
    if set(predicted.tolist()) <= set(label.tolist()) != {label[0]}:  # else scikit-learn warns
        assert found["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(label, predicted), rel=1e-12)
    assert found["accuracy"] == pytest.approx(sk.f1_score(label, predicted, average="micro"), rel=1e-12)
    shares = probabilities(classes(c), logits)
    there = [i for i in range(c) if (label == i).any()]
    both = [i for i in there if not (label == i).all()]
    areas = [sk.roc_auc_score(label == i, shares[:, i]) for i in both]
    precision = [sk.average_precision_score(label == i, shares[:, i]) for i in there]
    assert found["auroc"] == pytest.approx(np.mean(areas) if both else 0.5, rel=1e-12)
    assert found["map"] == pytest.approx(np.mean(precision), rel=1e-12)
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(label, predicted), rel=1e-12)
    assert found["macro_f1"] == pytest.approx(sk.f1_score(label, predicted, average="macro"), rel=1e-12)
    assert found["nll"] == pytest.approx(sk.log_loss(label, softmax(logits), labels=np.arange(c)), rel=1e-6)


def test_macro_f1_leaves_out_a_class_that_never_occurs_but_counts_one_that_is_only_predicted():
    label = np.array([0, 0, 1, 1])
    logits = np.eye(4)[[0, 0, 1, 3]]  # class 2 is nowhere, class 3 only predicted
    expected = (1 + 2 / 3 + 0) / 3
    assert task_metrics(classes(4), logits, label)["macro_f1"] == pytest.approx(expected)
    nothing = np.zeros((3, 2), bool)
    assert macro_f1(nothing, nothing) == 0.0


def brute_force_ece(probability: np.ndarray, label: np.ndarray, bins: int) -> float:
    total = 0.0
    for b in range(bins):
        inside = []
        for row, actual in zip(probability, label, strict=True):
            top = max(row)
            if b <= top * bins < b + 1 or (b == bins - 1 and top == 1.0):
                inside.append((top, list(row).index(top) == actual))
        if inside:
            confidence = sum(top for top, _ in inside) / len(inside)
            accuracy = sum(right for _, right in inside) / len(inside)
            total += len(inside) / len(label) * abs(accuracy - confidence)
    return total


@FEW
@given(SEEDS, st.integers(1, 60), st.integers(2, 5), st.integers(1, 20))
def test_ece_agrees_with_a_loop_over_bins(seed, n, c, bins):
    rng = np.random.default_rng(seed)
    probability = softmax(rng.normal(size=(n, c)) * rng.choice([0.1, 1, 30]))
    label = rng.integers(0, c, n)
    assert expected_calibration_error(probability, label, bins) == pytest.approx(
        brute_force_ece(probability, label, bins), abs=1e-12
    )


def test_ece_known_answers():
    certain = np.eye(3)[[0, 1, 2, 0]]
    assert expected_calibration_error(certain, np.array([0, 1, 2, 0])) == 0.0
    assert expected_calibration_error(certain, np.array([1, 2, 0, 1])) == 1.0
    assert task_metrics(classes(3), 50 * certain, np.array([0, 1, 2, 1]))["ece"] == pytest.approx(0.25)


# -- multi-label -------------------------------------------------------------------------------------------------------


def brute_force_frequency_gap(probability: np.ndarray, actual: np.ndarray, bins: int = 15) -> float:
    total = 0.0
    for b in range(bins):
        inside = [(p, a) for p, a in zip(probability, actual, strict=True) if b <= p * bins < b + 1]
        if inside:
            total += abs(sum(a for _, a in inside) - sum(p for p, _ in inside)) / len(actual)
    return total


@FEW
@given(SEEDS, st.integers(1, 30), st.integers(1, 5), st.sampled_from([1, 100]))
def test_multilabel_agrees_with_scikit_learn(seed, n, labels, steps):
    rng = np.random.default_rng(seed)
    logits = np.round(rng.normal(size=(n, labels)) * steps) / steps  # steps = 1: most scores are tied
    label = (rng.random((n, labels)) < 0.3).astype(np.float32)
    found = task_metrics(Task("multilabel", labels), logits, label)
    there = [i for i in range(labels) if label[:, i].any()]
    precision = [sk.average_precision_score(label[:, i], logits[:, i]) for i in there]
    f1 = [sk.f1_score(label[:, i], logits[:, i] > 0) for i in range(labels) if (label[:, i] + (logits[:, i] > 0)).any()]
    nll = [sk.log_loss(label[:, i], sigmoid(logits[:, i]), labels=[0, 1]) for i in range(labels)]
    both = [i for i in there if not label[:, i].all()]
    areas = [sk.roc_auc_score(label[:, i], logits[:, i]) for i in both]
    assert set(found) == {"map", "macro_f1", "micro_f1", "auroc", "nll", "ece"}
    assert found["auroc"] == pytest.approx(np.mean(areas) if both else 0.5, rel=1e-12)
    micro = sk.f1_score(label.astype(int), (logits > 0).astype(int), average="micro", zero_division=0.0)
    if labels > 1:  # for one label scikit-learn takes "micro" for accuracy over both classes
        assert found["micro_f1"] == pytest.approx(micro, rel=1e-12)
    errors = [brute_force_frequency_gap(p, a) for p, a in zip(sigmoid(logits).T, label.T, strict=True)]
    assert found["ece"] == pytest.approx(np.mean(errors), abs=1e-9)
    assert found["map"] == pytest.approx(np.mean(precision) if there else 0.0, rel=1e-12)
    assert found["macro_f1"] == pytest.approx(np.mean(f1) if f1 else 0.0, rel=1e-12)
    assert found["nll"] == pytest.approx(np.mean(nll), rel=1e-9)


def test_tied_scores_are_one_threshold_whatever_the_order():
    scores = np.array([[0.5], [0.5], [0.5], [0.1]])
    for row in range(3):
        actual = (np.arange(4) == row)[:, None]
        assert mean_average_precision(scores, actual) == pytest.approx(1 / 3)


def test_labels_without_positives_are_skipped():
    scores = np.array([[0.9, 0.1], [0.2, 0.8]])
    assert mean_average_precision(scores, np.array([[True, False], [False, False]])) == 1.0
    assert mean_average_precision(scores, np.zeros((2, 2), bool)) == 0.0


def test_where_nothing_is_defined_a_metric_is_what_chance_gives():
    everywhere = np.ones((3, 2), bool)
    assert mean_auroc(np.eye(3)[:, :2], everywhere) == 0.5
    assert mean_auroc(np.eye(3)[:, :2], ~everywhere) == 0.5
    assert micro_f1(~everywhere, ~everywhere) == 0.0
    one = task_metrics(classes(3), np.eye(3)[:1], np.array([0]))  # a single example
    assert (one["auroc"], one["map"], one["balanced_accuracy"]) == (0.5, 1.0, 1.0)


# -- regression --------------------------------------------------------------------------------------------------------


@FEW
@given(SEEDS, st.integers(2, 30), st.integers(1, 4), st.sampled_from([0.0, 1e3]))
def test_regression_agrees_with_scikit_learn(seed, n, outputs, offset):
    rng = np.random.default_rng(seed)
    label = (rng.normal(size=(n, outputs)) + offset).astype(np.float32)
    predicted = label + rng.normal(size=(n, outputs)).astype(np.float32)
    found = task_metrics(Task("regression", outputs), predicted, label)
    wide, actual = predicted.astype(np.float64), label.astype(np.float64)
    assert set(found) == {"r2", "pearson", "mse", "mae"}
    correlations = [np.corrcoef(actual[:, i], wide[:, i])[0, 1] for i in range(outputs)]
    assert found["pearson"] == pytest.approx(np.mean(correlations), rel=1e-9, abs=1e-9)
    assert found["r2"] == pytest.approx(sk.r2_score(actual, wide), rel=1e-9, abs=1e-9)
    assert found["mse"] == pytest.approx(sk.mean_squared_error(actual, wide), rel=1e-12)
    assert found["mae"] == pytest.approx(sk.mean_absolute_error(actual, wide), rel=1e-12)


def test_an_output_that_never_varies_is_left_out_of_r2():
    label = np.stack([np.arange(7.0), np.full(7, 0.1)], axis=1)  # the mean of seven 0.1 is not 0.1 in float64
    predicted = label + np.array([0.5, 0.5])
    task = Task("regression", 2)
    expected = sk.r2_score(label[:, 0], predicted[:, 0])
    assert task_metrics(task, predicted, label)["r2"] == pytest.approx(expected)
    assert task_metrics(Task("regression", 1), predicted[:, 1:], label[:, 1:])["r2"] == 0.0
    assert task_metrics(task, predicted, label)["pearson"] == pytest.approx(1.0)
    assert task_metrics(task, label[:, ::-1], label)["pearson"] == 0.0  # each output constant on one side
    assert pearson(np.full((4, 1), 0.5), np.arange(4.0)[:, None]) == 0.0


# -- all tasks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1e4, 1e30])
def test_extreme_logits_stay_finite_and_exact(size):
    logits = np.array([[size, 0.0, -size], [-size, size, 0.0]], np.float32)
    found = task_metrics(classes(3), logits, np.array([0, 0]))
    assert found["nll"] == pytest.approx(size, rel=1e-6)  # 0 for the first, 2 * size for the second
    found = task_metrics(Task("multilabel", 3), logits, np.array([[1, 0, 0], [1, 1, 1]]))
    assert found["nll"] == pytest.approx((np.log(2) * 2 + size) / 6, rel=1e-6)
    for task in (classes(3), Task("multilabel", 3)):
        shares = probabilities(task, logits)
        assert np.isfinite(shares).all() and shares.min() == 0.0 and shares.max() == 1.0


def test_probabilities_are_softmax_sigmoid_and_identity():
    logits = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    np.testing.assert_allclose(probabilities(classes(3), logits), softmax(logits), rtol=1e-12)
    np.testing.assert_allclose(probabilities(Task("multilabel", 3), logits), sigmoid(logits), rtol=1e-12)
    np.testing.assert_array_equal(probabilities(Task("regression", 3), logits), logits)


def test_lengths_that_differ_and_no_example_are_errors():
    with pytest.raises(ValueError, match="got 3 and 2"):
        task_metrics(classes(2), np.zeros((2, 2)), np.zeros(3, int))
    with pytest.raises(ValueError, match="at least one"):
        task_metrics(classes(2), np.zeros((0, 2)), np.zeros(0, int))


@pytest.mark.parametrize("kind", ["classification", "multilabel", "regression"])
def test_score_and_loss_are_among_the_metrics(kind):
    task = Task(kind, 2)
    label = np.array([0, 1]) if kind == "classification" else np.eye(2)
    found = task_metrics(task, np.eye(2), label)
    assert score_name(task) in found and loss_name(task) in found


# -- late fusion -------------------------------------------------------------------------------------------------------


def experts(seed: int, modalities: int, n: int = 6, c: int = 4) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {f"m{i}": (rng.normal(size=(n, c)) * 2).astype(np.float32) for i in range(modalities)}


@FEW
@given(SEEDS, st.integers(1, 4))
def test_late_fusion_of_classes_is_the_normalised_geometric_mean(seed, m):
    logits = experts(seed, m)
    found = late_fusion(classes(4), logits)
    for i in range(6):  # brute force: scalars of Python
        products = [math.prod(float(softmax(x)[i, j]) for x in logits.values()) ** (1 / m) for j in range(4)]
        expected = [math.log(p / sum(products)) for p in products]
        np.testing.assert_allclose(found[i], expected, rtol=1e-10, atol=1e-12)
    assert found.dtype == np.float64
    np.testing.assert_allclose(np.exp(found).sum(axis=1), 1, rtol=1e-12)


@FEW
@given(SEEDS, st.integers(1, 4))
def test_late_fusion_of_classes_is_a_product_of_experts_at_temperature_m(seed, m):
    logits = experts(seed, m)
    product_of_experts = softmax(sum(x.astype(np.float64) for x in logits.values()) / m)
    np.testing.assert_allclose(np.exp(late_fusion(classes(4), logits)), product_of_experts, rtol=1e-10)
    shifted = {name: x + np.arange(6, dtype=np.float32)[:, None] for name, x in logits.items()}
    np.testing.assert_allclose(late_fusion(classes(4), shifted), late_fusion(classes(4), logits), atol=1e-5)


@FEW
@given(SEEDS, st.integers(1, 4))
def test_late_fusion_of_labels_renormalises_each_bernoulli(seed, m):
    logits = experts(seed, m)
    yes = np.exp(np.mean([np.log(sigmoid(x)) for x in logits.values()], axis=0))
    no = np.exp(np.mean([np.log(1 - sigmoid(x)) for x in logits.values()], axis=0))
    task = Task("multilabel", 4)
    np.testing.assert_allclose(probabilities(task, late_fusion(task, logits)), yes / (yes + no), rtol=1e-9)


def test_late_fusion_of_values_is_their_mean():
    found = late_fusion(Task("regression", 1), {"a": np.array([[1.0], [2.0]]), "b": np.array([[3.0], [8.0]])})
    assert found.tolist() == [[2.0], [5.0]]


@pytest.mark.parametrize("kind", ["classification", "multilabel", "regression"])
def test_late_fusion_ignores_the_fused_logits_and_the_order(kind):
    logits, task = experts(0, 3), Task(kind, 4)
    expected = late_fusion(task, logits)
    assert not np.allclose(expected, late_fusion(task, {"m0": logits["m0"], "m1": logits["m1"]}))
    turned = {"fusion": np.full((6, 4), np.nan), **dict(reversed(logits.items()))}
    np.testing.assert_array_equal(late_fusion(task, turned), expected)


def test_late_fusion_of_extreme_logits_stays_finite():
    logits = {"a": np.array([[1e4, 0.0, -1e4]]), "b": np.array([[-1e4, 0.0, 1e4]])}
    np.testing.assert_allclose(np.exp(late_fusion(classes(3), logits)), np.full((1, 3), 1 / 3), rtol=1e-9)
    for task in (classes(3), Task("multilabel", 3)):
        found = late_fusion(task, {"a": logits["a"], "b": 2 * logits["a"]})
        assert np.isfinite(found).all()
        assert np.isfinite(
            list(task_metrics(task, found, np.array([2]) if task.kind == "classification" else np.eye(3)[:1]).values())
        ).all()


def test_late_fusion_without_experts_or_with_other_shapes_is_an_error():
    for nothing in ({}, {"fusion": np.zeros((2, 3))}):
        with pytest.raises(ValueError, match="holds none"):
            late_fusion(classes(3), nothing)
    with pytest.raises(ValueError, match=r"one shape \[N, C\].*'b': \(1, 3\)"):
        late_fusion(classes(3), {"a": np.zeros((2, 3)), "b": np.zeros((1, 3))})


def test_examples_of_the_docstrings():
    found = doctest.testmod(module)
    assert found.attempted >= 7 and found.failed == 0


def test_a_nan_is_no_vote():
    logits = np.array([[0.0, 1.0], [np.nan, np.nan]])
    for task, label in ((Task("classification", 2), np.array([1, 0])), (Task("multilabel", 2), np.eye(2))):
        told = task_metrics(task, logits, label)
        assert set(told) == set(task_metrics(task, np.zeros((2, 2)), label)) and np.isnan(list(told.values())).all()


@pytest.mark.parametrize("row", [[np.inf, 0.0], [np.inf, np.inf], [-np.inf, -np.inf]])
def test_logits_without_a_softmax_have_no_metrics(row):
    told = task_metrics(Task("classification", 2), np.array([[0.0, 1.0], row]), np.array([1, 0]))
    assert np.isnan(list(told.values())).all()


def test_a_class_that_is_ruled_out_counts_like_others():
    logits = np.array([[0.0, 1.0, -np.inf], [1.0, 0.0, -np.inf]])
    told = task_metrics(Task("classification", 3), logits, np.array([1, 0]))
    assert told["accuracy"] == 1.0 and told["nll"] == pytest.approx(np.log1p(np.exp(-1.0)))
