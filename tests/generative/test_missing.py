"""Scores by rounds, completions, tables and pictures of generative runs; the command line on their configurations."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from generative.test_training import config, digits
from mmjax import load_config
from mmjax.cli import main
from mmjax.config import Config, ModelConfig, TrainConfig
from mmjax.data import from_arrays
from mmjax.generative import MRBMConfig, MultiPredictionConfig
from mmjax.optim import UniformConfig
from mmjax.overrides import override
from mmjax.report import filled_grid, rounds_plot, rounds_table, save_missing
from mmjax.train.loop import fit
from mmjax.train.missing import fill_in, scores_by_rounds
from mmjax.train.optimizer import SGDConfig

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


@pytest.fixture(scope="module")
def data():
    inputs, label = digits(160)
    return from_arrays({m: x.reshape(160, 2, 3) for m, x in inputs.items()}, label, standardize=False)


@pytest.fixture(scope="module")
def run(data):
    options = config(MultiPredictionConfig(n_steps=3), epochs=40.0, evaluate_every=1000)
    return fit(dataclasses.replace(options, optimizer=SGDConfig(learning_rate=0.1)), splits=data)


def test_scores_by_rounds_change_what_is_missing_and_nothing_else(run, data):
    scores = scores_by_rounds(run, data.test, (0, 3))
    assert scores[0]["fusion/nll"] == scores[3]["fusion/nll"]
    assert scores[0]["left/nll"] != scores[3]["left/nll"]
    np.testing.assert_allclose(scores[3]["left/nll"], run.metrics["left/nll"], rtol=1e-6)  # the run's own rounds
    with pytest.raises(ValueError, match="n_steps must be at least 0, got -1"):
        scores_by_rounds(run, data.test, (-1,))


def test_fill_in_keeps_what_is_given_and_comes_close_to_what_is_not(run, data):
    indices = np.arange(len(data.test))
    filled = fill_in(run, data.test, indices, "left")
    np.testing.assert_array_equal(filled["left"], data.test.inputs["left"])
    right = data.test.inputs["right"]
    assert filled["right"].shape == right.shape
    mean = data.train.inputs["right"].mean(axis=0)
    assert np.mean((filled["right"] - right) ** 2) < 0.8 * np.mean((mean - right) ** 2)
    with pytest.raises(ValueError, match="no modality 'top'"):
        fill_in(run, data.test, indices, "top")


def test_table_plot_and_images(run, data, tmp_path):
    table, files = save_missing(run, data.test, tmp_path)
    assert [f.name for f in files] == ["rounds.png", "filled_in.png"]
    assert all(f.stat().st_size > 5000 for f in files)
    console = Console(width=100, file=io.StringIO())
    console.print(table)
    text = console.file.getvalue()
    assert "left alone" in text and "%" in text and len(table.rows) == 5
    names = ("fusion", "left", "right")
    scores = scores_by_rounds(run, data.test, (0, 1))
    axes = rounds_plot(scores, names, data.test.task).axes[0]
    lines = {line.get_label(): line.get_ydata() for line in axes.get_lines()}
    np.testing.assert_allclose(lines["right alone"], [100 * scores[n]["right/accuracy"] for n in (0, 1)])
    assert rounds_table(scores, names, data.test.task).row_count == 2
    figure = filled_grid(run, data.test, count=3)
    images = [axes.get_images()[0].get_array() for axes in figure.axes]
    assert len(images) == 9 and images[0].shape == (2, 6)
    np.testing.assert_array_equal(images[4][:, :3], images[1][:, :3])  # left given: its half is the original's
    np.testing.assert_array_equal(images[7][:, 3:], images[1][:, 3:])


def test_other_runs_have_nothing_to_infer(data):
    options = dataclasses.replace(
        config(UniformConfig()), model=ModelConfig(), train=TrainConfig(epochs=0.2, devices=1)
    )
    other = fit(options, splits=data)
    with pytest.raises(ValueError, match="the run's model is a MultiModal"):
        scores_by_rounds(other, data.test)


def test_command_line(tmp_path, capsys):
    """Train from an npz file with real and binary modalities, options included; evaluate writes table and picture."""
    inputs, label = digits(200)
    real = inputs["left"] + np.random.default_rng(0).normal(size=inputs["left"].shape)
    np.savez(tmp_path / "data.npz", real=real, tags=inputs["right"].reshape(200, 6), label=label)
    (tmp_path / "own.py").write_text(
        "from mmjax import Config, TrainConfig\nfrom mmjax.data import Npz\n"
        "from mmjax.generative import MRBMConfig, PCDConfig\nfrom mmjax.train.optimizer import SGDConfig\n"
        "def get_config():\n"
        f"    return Config(data=Npz(path={str(tmp_path / 'data.npz')!r}, raw=('tags',)),\n"
        "        model=MRBMConfig(hidden=6, visible={'real': 'gaussian', 'tags': 'binary'}), method=PCDConfig(),\n"
        "        optimizer=SGDConfig(learning_rate=0.01), train=TrainConfig(epochs=1, batch_size=20, devices=1))\n"
    )
    workdir = tmp_path / "run"
    options = ["--method.name", "multi_prediction", "--method.n-steps", "2", "--model.rounds", "1"]
    assert main(["train", str(tmp_path / "own.py"), "--workdir", str(workdir), *options]) == 0
    assert main(["evaluate", str(workdir)]) == 0
    assert "rounds of inference" in capsys.readouterr().out
    assert (workdir / "rounds.png").exists() and not (workdir / "filled_in.png").exists()
    assert (workdir / "curves.png").exists()


@pytest.mark.parametrize("name", ["ml", "cdpl", "mp", "hybrid"])
def test_configurations_are_the_published_settings(name):
    made = load_config(CONFIGS / f"mnist_halves_{name}.py")
    assert isinstance(made, Config) and isinstance(made.model, MRBMConfig)
    assert (made.model.hidden, made.model.init_std, made.optimizer.learning_rate) == (1000, 0.01, 0.01)
    assert (made.optimizer.weight_decay, made.train.epochs, made.train.batch_size) == (1e-4, 300, 100)
    assert (made.data.num_train, made.data.num_validation, made.data.num_test) == (50_000, 10_000, 10_000)
    expected = {
        "ml": {"steps": 10, "chains": 500, "sparsity": 0.3, "sparsity_target": 0.05},
        "cdpl": {"steps": 10, "sparsity": 0.1, "sparsity_target": 0.1},
        "mp": {"n_steps": 5, "keep_max": 0.25, "sparsity": 0.1, "sparsity_target": 0.1},
        "hybrid": {"n_steps": 5, "keep_max": 0.1, "alpha": 0.5},
    }[name]
    assert {key: getattr(made.method, key) for key in expected} == expected


def test_options_reach_generative_sections_and_help_shows_them(capsys):
    made = load_config(CONFIGS / "mnist_halves_mp.py")
    changed = override(made, ["--method.name", "hybrid", "--method.alpha", "0.25", "--model.hidden", "10"])
    assert changed.method.alpha == 0.25 and changed.model.hidden == 10 and changed.model.visible == made.model.visible
    with pytest.raises(ValueError, match="did you mean --model.hidden"):
        override(made, ["--model.hiden", "10"])
    with pytest.raises(SystemExit):
        override(made, ["--help"])
    text = capsys.readouterr().out
    assert "--method.keep-max" in text and "--model.rounds" in text
