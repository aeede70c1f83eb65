"""Runs with only some modalities given: scores, table, plot, command; what else looks at examples that lack some."""

from __future__ import annotations

import dataclasses
import io
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from generative.test_training import config as generative_config
from generative.test_training import digits
from rich.console import Console

from mmjax.bayes import posterior, precision
from mmjax.cli import main
from mmjax.config import Config, ModelConfig, TrainConfig
from mmjax.data import Dataset, Planted, Task, from_arrays
from mmjax.evaluation.metrics import score_name
from mmjax.generative import MultiPredictionConfig
from mmjax.models import ConcatConfig, MLPConfig
from mmjax.optim import BogcConfig, UniformConfig
from mmjax.report import patterns_plot, patterns_table, save_patterns
from mmjax.theory import LeastSquares, subset_risk_sweep
from mmjax.train import missing
from mmjax.train.experiment import build_classifier
from mmjax.train.loop import fit
from mmjax.train.missing import PatternScore, contributions, scores_by_pattern
from mmjax.train.optimizer import AdamConfig
from mmjax.train.refresher import Refresher
from mmjax.train.run import evaluate
from mmjax.train.step import outputs_of
from mmjax.train.uncertainty import laplace_metrics

DATA = Planted(
    unique={"a": 1.0, "b": 1.0, "c": 0.5},
    redundant={},
    synergistic={},
    depth={},
    missing={"a": 0.2, "c": 0.3},
    train_examples=600,
    validation_examples=100,
    test_examples=200,
)


def config(method=None, **train):
    return Config(
        data=DATA,
        method=method or UniformConfig(),
        model=ModelConfig(encoders={m: MLPConfig(width=16, depth=1) for m in "abc"}, fusion=ConcatConfig(hidden=())),
        optimizer=AdamConfig(learning_rate=1e-2),
        train=TrainConfig(**({"epochs": 8.0, "batch_size": 50, "devices": 1, "monitor_every": 0} | train)),
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return fit(config(), tmp_path_factory.mktemp("patterns"))


@pytest.fixture(scope="module")
def splits():
    return DATA.load()


def restricted(dataset, pattern):
    """The examples that have the whole pattern, given nothing else: rows really taken out."""
    has = np.stack([dataset.has(m) for m in "abc"], axis=1)
    given = np.isin(list("abc"), pattern)
    rows = np.flatnonzero(has[:, given].all(axis=1))
    inputs = {m: x[rows] for m, x in dataset.inputs.items()}
    return dataclasses.replace(
        dataset, inputs=inputs, label=dataset.label[rows], present=np.tile(given, (len(rows), 1))
    )


def test_a_pattern_is_the_examples_that_have_it_given_nothing_else(run, splits):
    scores = scores_by_pattern(run, splits.test)
    assert [s.name for s in scores] == ["a", "b", "c", "a+b", "a+c", "b+c", "a+b+c"]
    for s in scores:
        subset = restricted(splits.test, s.pattern)
        expected = evaluate(run, subset)
        assert s.examples == len(subset)
        for key, value in s.metrics.items():
            np.testing.assert_allclose(value, expected[key], rtol=1e-5, atol=1e-7, err_msg=key)
        assert ("late_fusion/nll" in s.metrics) == (len(s.pattern) > 1)
    accuracy = {s.name: s.metrics["fusion/accuracy"] for s in scores}
    assert accuracy["a+b"] > 0.4 > accuracy["c"]  # two of the five bits, and half of the third


def test_named_patterns_and_many_modalities(run, splits, monkeypatch):
    assert [s.name for s in scores_by_pattern(run, splits.test, ["b+a", "c"])] == ["c", "a+b"]
    assert len(scores_by_pattern(run, splits.test, ["leave-one-out"])) == 7
    with pytest.raises(ValueError, match="names 'd', which the data do not hold"):
        scores_by_pattern(run, splits.test, ["a+d"])
    monkeypatch.setattr(missing, "MOST", 2)
    with pytest.raises(ValueError, match="3 modalities have 7 patterns: name those that matter, such as 'a[+]b'"):
        scores_by_pattern(run, splits.test)
    assert len(scores_by_pattern(run, splits.test, ["all"])) == 7
    nobody = dataclasses.replace(splits.test, present=np.tile([True, False, True], (len(splits.test), 1)))
    assert [s.name for s in scores_by_pattern(run, nobody, ["all"])] == ["a", "c", "a+c"]
    wrong = dataclasses.replace(splits.test, inputs={**splits.test.inputs, "b": np.zeros((len(splits.test), 3))})
    with pytest.raises(ValueError, match=r"b has shape \(3,\) an example; the model takes \(8,\)"):
        scores_by_pattern(run, wrong)


def test_table_plot_and_command(run, splits, tmp_path, capsys):
    scores = scores_by_pattern(run, splits.test)
    figure = patterns_plot(scores, splits.test.task)
    axes = figure.axes[0]
    np.testing.assert_allclose(
        [bar.get_width() for bar in axes.patches], [100 * s.metrics["fusion/accuracy"] for s in scores]
    )
    assert [label.get_text() for label in axes.get_yticklabels()] == [s.name for s in scores]
    rings = axes.get_lines()[0].get_xdata()
    np.testing.assert_allclose(rings, [100 * s.metrics["late_fusion/accuracy"] for s in scores[3:]])
    console = Console(width=120, file=io.StringIO())
    console.print(patterns_table(scores, splits.test.task))
    text = console.file.getvalue()
    assert f"{scores[4].examples}" in text and "a+b+c" in text
    table, file = save_patterns(run, splits.test, tmp_path, ["a", "b"])
    assert table.row_count == 2 and file.read_bytes().startswith(b"\x89PNG")
    assert main(["evaluate", str(run.workdir), "--missing"]) == 0
    out = capsys.readouterr().out
    assert "With only some of the modalities given" in out and (run.workdir / "missing.png").exists()
    assert re.search(rf"a\+b\+c\W+{scores[-1].examples}\W", out)
    assert main(["evaluate", str(run.workdir), "--missing", "a+x"]) == 2
    assert "'x'" in capsys.readouterr().err


def test_contributions_and_noise_of_a_run(tmp_path, capsys):
    """The lines of docs/models.md, on a run; what is without information contributes nothing and bears any noise."""
    data = dataclasses.replace(DATA, missing={}, unique={"a": 2.0, "b": 1.0, "c": 0.0})
    trained = fit(dataclasses.replace(config(), data=data), tmp_path)
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text()
    (code,) = re.findall(r"```python\n(from mmjax.train.missing import contributions.*?)```", page, re.DOTALL)
    there = {"run": trained}
    exec(code, there)
    shares, curves, test = there["shares"], there["curves"], there["test"]
    scores = {s.name: s.metrics["fusion/accuracy"] for s in scores_by_pattern(trained, test)}
    constant = np.bincount(test.label).max() / len(test)
    assert sum(shares.values()) == pytest.approx(scores["a+b+c"] - constant)
    a = (2 * (scores["a"] - constant) + scores["a+b"] - scores["b"] + scores["a+c"] - scores["c"]) / 6
    assert shares["a"] == pytest.approx(a + (scores["a+b+c"] - scores["b+c"]) / 3)
    assert shares["a"] > shares["b"] > shares["c"] + 0.1 and abs(shares["c"]) < 0.05
    for m, curve in curves.items():
        assert curve[0] == trained.metrics["fusion/accuracy"]
        noisy = curve[0] - curve[3]
        assert abs(noisy) < 0.05 if m == "c" else noisy > 0.1
    assert main(["evaluate", str(tmp_path), "--missing", "--noise", "0", "2"]) == 0
    out = capsys.readouterr().out
    assert "contribution to accuracy (Shapley): a " in out and (tmp_path / "noise.png").exists()
    assert re.search(
        rf"a\W+{curves['a'][0]:.1%}".replace("%", " %") + rf"\W+{curves['a'][3]:.1%}".replace("%", " %"), out
    )
    assert main(["evaluate", str(tmp_path), "--noise", "-1"]) == 2
    assert "levels of at least 0" in capsys.readouterr().err


def test_contributions_want_every_pattern_and_a_score_without_input(run, splits):
    scores = scores_by_pattern(run, splits.test)
    with pytest.raises(ValueError, match="need all patterns, each measured on every example"):
        contributions(scores, splits.test)
    for task, label, expected in (
        (Task("regression", 1), np.array([[1.0], [2.0], [6.0]]), 0.0),
        (Task("multilabel", 2), np.array([[1, 0], [1, 0], [0, 1]], np.float32), (2 / 3 + 1 / 3) / 2),
        (Task("classification", 4), np.array([3, 3, 0]), 2 / 3),
    ):
        dataset = Dataset({"a": np.zeros((3, 1))}, label, task)
        key = f"fusion/{score_name(task)}"
        assert contributions([PatternScore(("a",), 3, {key: 1.0})], dataset)["a"] == pytest.approx(1 - expected)


def test_a_file_to_predict_may_lack_modalities(run, splits, tmp_path):
    path, out = tmp_path / "new.npz", tmp_path / "out.npz"
    inputs = {m: np.where(splits.test.has(m)[:, None], x, np.nan) for m, x in splits.test.inputs.items()}
    np.savez(path, **inputs, present=splits.test.present)
    assert main(["predict", str(run.workdir), str(path), "--out", str(out)]) == 0
    written = np.load(out)
    np.testing.assert_array_equal(np.isnan(written["c"][:, 0]), ~splits.test.has("c"))
    np.testing.assert_allclose(written["fusion"].sum(axis=1), 1, rtol=1e-5)
    assert np.mean(written["fusion"].argmax(1) == splits.test.label) == run.metrics["fusion/accuracy"]


def test_a_generative_model_infers_what_a_pattern_lacks_and_refuses_data_that_lack_it():
    inputs, label = digits(160)
    data = from_arrays(inputs, label, standardize=False)
    options = generative_config(MultiPredictionConfig(n_steps=3), epochs=3.0, evaluate_every=1000)
    run = fit(options, splits=data)
    measured = {s.name: s.metrics["fusion/nll"] for s in scores_by_pattern(run, data.test)}
    for name, expert in (("left", "left"), ("right", "right"), ("left+right", "fusion")):
        np.testing.assert_allclose(measured[name], run.metrics[f"{expert}/nll"], rtol=1e-5)
    partial = from_arrays(inputs, label, standardize=False, present=np.arange(160)[:, None] % 3 != [1, 2])
    with pytest.raises(ValueError, match="a generative model needs every modality of every example; .* of the train"):
        fit(options, splits=partial)
    with pytest.raises(ValueError, match="a generative model takes examples that have every modality"):
        evaluate(run, partial.test)
    dropping = dataclasses.replace(options, train=dataclasses.replace(options.train, modality_dropout=0.1))
    with pytest.raises(ValueError, match="train.modality_dropout is not for generative models"):
        fit(dropping, splits=data)


def test_a_study_of_subsets_needs_complete_data(splits):
    with pytest.raises(
        ValueError, match="a study needs every modality of every example; .* examples of the train split"
    ):
        subset_risk_sweep(LeastSquares(), splits, sizes=[50], seeds=2)


def test_posteriors_are_of_the_examples_that_have_the_modality(splits):
    experiment = build_classifier(config(BogcConfig(prior_precision=2.0)), splits)
    state = experiment.initial_state()
    variables = {"params": state.params, **state.model_state}
    renew = Refresher(experiment.refresh, experiment.inference, experiment.route)
    found = renew(variables, jax.device_put(state.opt_state[0].inner, experiment.route.replicated), splits.train)
    inputs = {m: np.asarray(x) for m, x in splits.train.inputs.items()}
    layers = outputs_of(experiment.inference, variables, inputs, splits.train.present).last_layer
    for name in ("fusion", "a", "c"):
        rows = np.flatnonzero(np.ones(len(splits.train)) if name == "fusion" else splits.train.has(name))
        layer = layers[name]
        expected = posterior(precision(layer.inputs[rows], layer.kernel, layer.bias), 2.0).root
        inverses = (np.linalg.inv(root) for root in (found.moments.posteriors[name].root, expected))
        np.testing.assert_allclose(*inverses, rtol=1e-3, atol=1e-3)


def test_the_laplace_predictive_of_a_sharp_posterior_is_the_models_own(run, splits):
    sharp = laplace_metrics(run, splits.train, splits.test, prior_precision=1e9)
    plain = evaluate(run, splits.test)
    assert set(sharp) == {key for key in plain if not key.startswith("late_fusion/")}
    for name in ("fusion/nll", "a/nll", "c/nll", "c/accuracy"):
        np.testing.assert_allclose(sharp[name], plain[name], rtol=1e-3)
