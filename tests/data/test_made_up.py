"""Made-up health records and questions: what the labels depend on, their shapes and the configurations on them."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest

from mmjax.cli import main
from mmjax.config_file import load_config
from mmjax.data import health_arrays, question_arrays
from mmjax.data.health import chances
from mmjax.data.questions import COLOURS, FIRST_COLOUR, FIRST_PLACE, HALVES, VOCABULARY
from mmjax.overrides import override
from mmjax.train.stages import build_stages

CONFIGS = Path(__file__).parents[2] / "configs"


def colours_of(image):
    """The colour of each square, in reading order, by the nearest mean."""
    n, side = len(image), image.shape[1] // 2
    means = image.reshape(n, 2, side, 2, side, 3).mean(axis=(2, 4)).reshape(n, 4, 3)
    return ((means[:, :, None] - COLOURS) ** 2).sum(-1).argmin(-1)


def test_two_class_answers_follow_from_picture_and_sentence():
    made = question_arrays(400)
    colours, rows = colours_of(made["image"]), np.arange(400)
    last = (made["question"] != 0).sum(axis=1) - 1  # padding only at the end
    place, colour = made["question"][rows, last] - FIRST_PLACE, made["question"][rows, last - 1] - FIRST_COLOUR
    np.testing.assert_array_equal(made["label"], colours[rows, place] == colour)
    assert made["question"].max() < VOCABULARY and 0.4 < made["label"].mean() < 0.6
    said = [made["label"][(place == p) & (colour == c)].mean() for p in range(4) for c in range(4)]
    assert min(said) > 0.2 and max(said) < 0.8  # the sentence alone says nothing


def test_multi_label_answers_follow_from_picture_and_sentence():
    made = question_arrays(400, "multi-label", seed=3)
    colours, rows = colours_of(made["image"]), np.arange(400)
    place = made["question"][rows, (made["question"] != 0).sum(axis=1) - 1] - FIRST_PLACE
    shown = np.take_along_axis(colours, HALVES[place], axis=1)
    np.testing.assert_array_equal(made["label"], [np.isin(np.arange(4), row) for row in shown])


def test_patients_die_as_often_as_their_chances_say():
    label, chance = health_arrays(20_000)["label"], chances(20_000)
    bins = np.minimum((chance * 10).astype(int), 9)
    for b in range(10):
        here = bins == b
        spread = np.sqrt((chance[here] * (1 - chance[here])).sum())
        assert abs(label[here].sum() - chance[here].sum()) < 4 * spread
    assert 0.2 < label.mean() < 0.35


def test_the_same_seed_gives_the_same_arrays():
    for make in (health_arrays, question_arrays):
        one, same, other = make(60, seed=1), make(60, seed=1), make(60, seed=2)
        assert all(np.array_equal(one[name], same[name]) for name in one)
        assert not any(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("make", [health_arrays, question_arrays])
def test_impossible_sizes(make):
    with pytest.raises(ValueError, match="at least 20"):
        make(3)
    with pytest.raises(ValueError, match="seed at least 0"):
        make(30, seed=-1)


def test_unknown_answers():
    with pytest.raises(ValueError, match="answers must be one of two-class, multi-label; got 'yes'"):
        question_arrays(30, "yes")


@pytest.mark.parametrize(
    ("source", "more", "config", "outputs"),
    [
        ("health", [], "health_i2m2.py", 2),
        ("questions", [], "questions_i2m2.py", 2),
        ("questions", ["--answers", "multi-label"], "questions_i2m2.py", 4),
    ],
)
def test_the_command_makes_what_the_configuration_takes(source, more, config, outputs, tmp_path, capsys):
    file = tmp_path / "sub" / "made.npz"
    assert main(["data", "prepare", source, "--out", str(file), "--examples", "120", *more]) == 0
    assert "label [120" in capsys.readouterr().out.replace("\n", "")
    whole = override(load_config(CONFIGS / config), ["--data.path", str(file), "--train.devices", "1"])
    (experiment,) = build_stages(whole)
    assert experiment.splits.train.task.num_outputs == outputs
    shapes = jax.eval_shape(experiment.initial_state)  # every encoder takes what it is given
    assert shapes.params
