"""The picture of BOGC's calibration: what it shows, of few layers and of many."""

from __future__ import annotations

import numpy as np
import pytest

from mmjax.report import calibration, has_calibration, save_calibration


def rows_of(layers, steps=30, posterior=True):
    """Rows as a run with bogc writes them: fusion meets one modality in each layer of that modality."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(1, steps + 1):
        row = {"step": 10 * i, "kind": "train", **{f"loss/{n}": 2.0 / i for n in ("fusion", "audio", "image")}}
        for layer, own in layers.items():
            share = 1 + 0.6 * np.exp(-i / 10) + 0.03 * rng.normal()
            row |= {f"bogc/weight/{layer}/{n}": 0.0 for n in ("audio", "image")}
            row |= {f"bogc/weight/{layer}/fusion": share, f"bogc/weight/{layer}/{own}": 2 - share} if own else {}
            row |= {f"bogc/evidence/{layer}/{n}": 0.0 for n in ("audio", "image")}
            row |= {f"bogc/evidence/{layer}/fusion": 40.0 / i + 1, f"bogc/evidence/{layer}/{own}": 1.2} if own else {}
            row[f"bogc/held_back/{layer}"] = 0.3 / i
        if posterior:
            row |= {f"bogc/posterior_trace/{n}": 3.0 / i for n in ("fusion", "audio", "image")}
        rows.append(row)
    return rows


def titles(figure):
    return [axes.get_title(loc="left") for axes in figure.axes]


def test_long_names_take_two_lines_and_what_is_not_shown_is_said():
    figure = calibration(rows_of({"encoders_audio.dense_0": "audio", "head": None}, posterior=False), "avdigits, bogc")
    assert titles(figure)[0] == "encoders_audio.dense_0:\nmean weight" and len(figure.axes) == 3
    assert figure.get_suptitle().endswith("layers of one objective alone are not shown")
    assert calibration(rows_of({"audio": "audio"}), "a").get_suptitle() == "a"


def test_a_column_a_layer_and_the_posteriors(tmp_path):
    rows = rows_of({"audio": "audio", "image": "image"})
    figure = calibration(rows, "avdigits, bogc")
    column = ["mean evidence", "held back"]
    assert titles(figure) == ["audio: mean weight", *column, "image: mean weight", *column, "trace of the posterior"]
    weight = figure.axes[0]
    drawn = {line.get_label() for line in weight.get_lines()} - {"_child1", "_child2", "_child3"}
    assert {"fusion", "audio"} <= drawn and "image" not in drawn  # who has no opinion is not drawn
    np.testing.assert_allclose(weight.get_lines()[0].get_ydata()[0], rows[0]["bogc/weight/audio/fusion"])
    save_calibration(rows, tmp_path / "calibration.png", "avdigits, bogc")
    assert (tmp_path / "calibration.png").stat().st_size > 10_000


def test_of_many_layers_some_are_shown_and_those_with_one_objective_never():
    layers = {f"encoders_image.dense_{i}": "image" for i in range(9)} | {"heads_image.last": None}
    figure = calibration(rows_of(layers, posterior=False), "run")
    shown = [t.removesuffix(":\nmean weight") for t in titles(figure) if t.endswith("mean weight")]
    assert shown == [f"encoders_image.dense_{i}" for i in (0, 2, 4, 6, 8)]
    assert "5 of 9 layers" in figure.get_suptitle()


def test_rows_of_another_method_are_refused():
    rows = [{"step": 1, "kind": "train", "loss/fusion": 1.0}]
    assert not has_calibration(rows)
    with pytest.raises(ValueError, match="no diagnostics of bogc"):
        calibration(rows)
