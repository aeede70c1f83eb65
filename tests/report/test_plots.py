"""The picture of a run: every line is what the rows say, and nothing else is drawn."""

from __future__ import annotations

import math

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from mmjax.report import curves, save_curves
from mmjax.report.plots import _running_mean, _spread
from report.rows import NAMES, run_rows

NAN = math.nan


def panels(figure: Figure) -> dict:
    return {axes.get_title(loc="left"): axes for axes in figure.axes}


def lines(axes) -> dict:
    """Lines of the axes by name; those whose name begins with "_" are marks."""
    return {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}


def series(rows, kind, key):
    return [(row["step"], row[key]) for row in rows if row["kind"] == kind and key in row]


def legend_names(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


@pytest.mark.parametrize(
    ("score", "loss", "score_title", "loss_title"),
    [
        ("accuracy", "nll", "validation accuracy", "validation NLL"),
        ("map", "nll", "validation mAP", "validation NLL"),
        ("r2", "mse", "validation R²", "validation MSE"),
    ],
)
def test_every_line_is_the_rows_and_every_panel_is_named(score, loss, score_title, loss_title):
    rows = run_rows(score=score, loss=loss)
    shown = panels(curves(rows))
    expected = {
        "training loss": ("train", {n: f"loss/{n}" for n in NAMES}),
        loss_title: ("validation", {n: f"{n}/{loss}" for n in (*NAMES, "late_fusion")}),
        score_title: ("validation", {n: f"{n}/{score}" for n in (*NAMES, "late_fusion")}),
        "weights of the objectives": ("train", {n: f"weight/{n}" for n in NAMES}),
        "gradient norms": ("gradients", {n: f"norm/{n}" for n in NAMES}),
        "gradient cosines with fusion": ("gradients", {n: f"cosine/fusion/{n}" for n in NAMES[1:]}),
    }
    assert list(shown) == list(expected)
    for title, (kind, keys) in expected.items():
        drawn = lines(shown[title])
        assert set(drawn) == set(keys)
        for name, key in keys.items():
            np.testing.assert_array_equal(drawn[name].get_xydata(), series(rows, kind, key), err_msg=f"{title} {name}")


def test_rows_in_any_order_give_the_same_lines():
    straight = lines(panels(curves(run_rows()))["training loss"])["audio"].get_xydata()
    turned = lines(panels(curves(run_rows()[::-1]))["training loss"])["audio"].get_xydata()
    np.testing.assert_array_equal(straight, turned)


def test_best_step_and_test_scores_are_marked():
    shown = panels(curves(run_rows()))
    for title in ("validation NLL", "validation accuracy"):
        (mark,) = [line for line in shown[title].lines if line.get_label() == "_best step"]
        assert list(mark.get_xdata()) == [20, 20]
    assert not [line for line in shown["training loss"].lines if line.get_label() == "_best step"]
    axes = shown["validation accuracy"]
    texts = {text.get_text(): text.get_color() for text in axes.texts}
    drawn = lines(axes)
    for name, text in {"fusion": "75.0 %", "audio": "73.0 %", "image": "71.0 %", "late_fusion": "69.0 %"}.items():
        assert texts[text] == drawn[name].get_color()
    low, high = axes.get_ylim()
    ticks = [line.get_ydata()[0] for line in axes.lines if line.get_label() == "_test"]
    np.testing.assert_allclose([low + y * (high - low) for y in ticks], [0.75, 0.73, 0.71, 0.69])


def test_an_unfinished_run_has_no_marks():
    shown = panels(curves([row for row in run_rows() if row["kind"] != "test"]))
    marks = [line.get_label() for axes in shown.values() for line in axes.lines]
    assert not {"_best step", "_test"} & set(marks)


def test_one_colour_an_objective_fusion_black_and_thick():
    figure = curves(run_rows(modalities=[f"m{k}" for k in range(8)]))
    colours: dict[str, set[str]] = {}
    for axes in figure.axes:
        for name, line in lines(axes).items():
            colours.setdefault(name, set()).add(to_hex(line.get_color()))
            assert name == "fusion" or line.get_linewidth() < 2.5
    assert colours["fusion"] == {"#000000"}
    assert all(len(found) == 1 for found in colours.values())
    assert len(set.union(*colours.values())) == 10  # eight modalities, fusion and late fusion
    assert legend_names(figure) == ["fusion", *(f"m{k}" for k in range(8)), "late fusion"]


def test_more_modalities_than_colours_differ_in_dashes():
    figure = curves(run_rows(modalities=[f"m{k:02}" for k in range(20)]))
    drawn = lines(panels(figure)["training loss"])
    assert len({(line.get_color(), str(line._dash_pattern)) for line in drawn.values()}) == 21


def test_cosines_of_two_modalities_have_both_colours_and_the_axis_is_whole():
    rows = run_rows()
    for row in rows:
        if row["kind"] == "gradients":
            row["cosine/audio/image"] = 0.25
    shown = panels(curves(rows))
    axes = shown["gradient cosines (two colours: two modalities)"]
    drawn = lines(axes)
    both = drawn["audio / image"]
    assert list(both.get_ydata()) == [0.25, 0.25]
    assert (both.get_color(), both.get_gapcolor()) == (drawn["audio"].get_color(), drawn["image"].get_color())
    assert axes.get_ylim() == (-1, 1)
    assert any(list(line.get_ydata()) == [0, 0] for line in axes.lines)


@pytest.mark.parametrize(("last", "scale"), [(0.5, "linear"), (0.01, "log"), (0.0, "linear"), (-3.0, "linear")])
def test_losses_are_logarithmic_where_they_span_much_and_are_positive(last, scale):
    rows = [{"step": 1, "kind": "train", "loss/fusion": 2.0}, {"step": 2, "kind": "train", "loss/fusion": last}]
    axes = panels(curves(rows))["training loss"]
    assert axes.get_yscale() == scale
    low, high = axes.get_ylim()
    assert low <= last and high >= 2.0


def test_a_hopeless_r2_does_not_hide_the_rest():
    rows = run_rows(score="r2", loss="mse")
    next(row for row in rows if row["kind"] == "validation")["image/r2"] = -500.0
    low, high = panels(curves(rows))["validation R²"].get_ylim()
    assert low == -1 and 0.8 < high < 1.1


@pytest.mark.parametrize(
    ("kinds", "count"), [(("train",), 2), (("gradients",), 2), (("validation",), 2), (("train", "test"), 2)]
)
def test_panels_without_data_are_left_out(kinds, count):
    figure = curves([row for row in run_rows() if row["kind"] in kinds])
    assert len(figure.axes) == count
    assert [axes.get_xlabel() for axes in figure.axes] == ["step"] * count


@pytest.mark.parametrize("rows", [[], run_rows()[-1:], [{"step": 1, "kind": "train", "loss/fusion": NAN}]])
def test_nothing_to_draw_says_so(rows, tmp_path):
    figure = curves(rows)
    assert not figure.axes
    assert "no measurements yet" in [text.get_text() for text in figure.texts]
    save_curves(rows, tmp_path / "curves.png")


def test_values_that_are_not_finite_are_gaps(tmp_path):
    rows = run_rows()
    trained = [row for row in rows if row["kind"] == "train"]
    trained[1]["loss/audio"], trained[2]["loss/image"] = NAN, math.inf
    for row in rows:
        if row["kind"] == "gradients":
            row["norm/audio"] = NAN
    rows[-1]["audio/accuracy"] = NAN
    shown = panels(curves(rows))
    drawn = lines(shown["training loss"])
    assert np.isnan(drawn["audio"].get_ydata()).tolist() == [False, True, False, False]
    assert np.isnan(drawn["image"].get_ydata()).tolist() == [False, False, True, False]
    assert set(lines(shown["gradient norms"])) == {"fusion", "image"}
    save_curves(rows, tmp_path / "curves.png")


def test_many_measurements_are_faint_below_their_running_mean():
    rng = np.random.default_rng([0, 3])
    values = rng.normal(10, 1, 400)
    rows = [{"step": k, "kind": "train", "loss/fusion": float(v)} for k, v in enumerate(values)]
    figure = curves(rows)
    raw, mean = figure.axes[0].lines
    np.testing.assert_array_equal(raw.get_ydata(), values)
    assert raw.get_alpha() < 0.3
    expected = [values[max(k - 10, 0) : k + 11].mean() for k in range(400)]
    np.testing.assert_allclose(mean.get_ydata(), expected)
    assert "running mean" in figure.legends[0].get_title().get_text()


def test_running_mean_skips_gaps():
    np.testing.assert_array_equal(_running_mean(np.array([NAN, NAN, 1.0, 3.0]), 1), [NAN, 1.0, 2.0, 2.0])


def test_spread_keeps_order_and_distance():
    rng = np.random.default_rng([0, 4])
    for count in (1, 2, 9, 30):
        heights = rng.uniform(0, 1, count).tolist()
        places = _spread(heights, gap=0.05)
        gaps = np.diff(np.array(places)[np.argsort(heights)])
        assert min(places) >= -1e-9 and max(places) <= 1 + 1e-9
        assert (gaps >= min(0.05, 1 / max(count - 1, 1)) - 1e-9).all()
    assert _spread([0.9, 0.1], gap=0.05) == [0.9, 0.1]  # what is apart stays


def test_nothing_overlaps_in_the_picture():
    figure = curves(run_rows(modalities=[f"modality{k}" for k in range(8)]), "a title")
    renderer = figure.canvas.get_renderer()
    figure.draw(renderer)
    axes = panels(figure)["validation accuracy"]
    scores = [text.get_window_extent(renderer) for text in axes.texts if text.get_text().endswith(" %")]
    assert len(scores) == 10
    assert not any(a.shrunk(1, 0.8).overlaps(b) for k, a in enumerate(scores) for b in scores[:k])
    boxes = [a.get_tightbbox(renderer) for a in figure.axes] + [figure.legends[0].get_window_extent(renderer)]
    assert not any(a.overlaps(b) for k, a in enumerate(boxes) for b in boxes[:k])
    for box in boxes:
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1


def test_names_are_shown_as_they_are(tmp_path):
    rows = [{"step": 1, "kind": "train", "loss/fusion": 1.0, "loss/_a$b": 2.0, r"loss/$\c_d$": 3.0}]
    figure = curves(rows, r"no $\formula$")
    assert legend_names(figure) == ["fusion", r"$\c_d$", "_a$b"]
    figure.savefig(tmp_path / "curves.svg")


def test_saved_at_a_size_people_can_read(tmp_path):
    save_curves(run_rows(), tmp_path / "curves.png", "a run")
    head = (tmp_path / "curves.png").read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    assert (int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")) == (1560, 910)
