"""`mmjax theory`, its pictures and its tables."""

from __future__ import annotations

import io

import numpy as np
import pytest
from rich.console import Console

from mmjax.cli import main
from mmjax.report import heat_map, sweep_curves, sweep_table
from mmjax.theory import LeastSquares, StrongWeak, subset_risk_sweep


@pytest.fixture(scope="module")
def npz(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "own.npz"
    rng = np.random.default_rng(0)
    zoom, audio = rng.normal(size=(2, 300, 3)).astype(np.float32)
    np.savez(path, zoom=zoom, audio=audio, label=(zoom[:, 0] + audio[:, 0] > 0).astype(int))
    return path


def test_the_study_of_an_npz_file(npz, tmp_path, capsys):
    out = tmp_path / "study"
    arguments = ["theory", str(npz), "--learner", "linear", "--sizes", "20", "80", "--seeds", "3", "--out", str(out)]
    assert main(arguments) == 0
    printed = capsys.readouterr()
    assert {p.name for p in out.iterdir()} == {"sweep.jsonl", "heat_map.png", "curves.png", "verdict.txt"}
    for name in ("heat_map.png", "curves.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    sentences = (out / "verdict.txt").read_text().splitlines()
    assert len(sentences) == 2
    assert sentences[0].startswith("Adding audio to zoom lowers the test risk by")
    assert " ".join(sentences[1].split()) in " ".join(printed.out.split())
    assert "audio+zoom" in printed.out
    assert "6/6 audio+zoom, n = 80" in printed.err
    before = (out / "sweep.jsonl").read_text()
    assert main(arguments) == 0  # nothing is left to do
    assert (out / "sweep.jsonl").read_text() == before
    assert main([*arguments[:-3], "4", *arguments[-2:]]) == 2
    assert "holds another sweep: seeds is 3 there and 4 here" in capsys.readouterr().err


def test_the_study_of_a_model_takes_the_options_of_a_configuration(npz, tmp_path, capsys):
    options = ["--sizes", "16", "--seeds", "2", "--subsets", "audio", "--min-steps", "4", "--refit-steps", "10"]
    fields = ["--method.name", "uniform", "--model.encoders.audio.width", "4", "--train.epochs", "1"]
    assert main(["theory", str(npz), *options, "--out", str(tmp_path), *fields]) == 0
    header = (tmp_path / "sweep.jsonl").read_text().splitlines()[0]
    assert "UniformConfig" in header
    assert '"width": 4' in header
    captured = capsys.readouterr()
    assert "in one program (timed on audio)" in captured.err
    assert "Whether adding audio helps cannot be told" in captured.out


@pytest.mark.parametrize(
    ("options", "message"),
    (
        (["--subsets", "audio+zom"], "did you mean 'zoom'?"),
        (["--sizes", "1000"], "sizes holds 1000, but the training split has 210 examples"),
        (["--seeds", "1"], "seeds must be at least 2"),
        (["--oracle-risk", "nan"], "--oracle-risk must be finite, got nan"),
        (["--train.epoch", "3"], "did you mean --train.epochs?"),
    ),
)
def test_mistakes_are_one_line(npz, tmp_path, options, message, capsys):
    given = ["theory", str(npz), "--learner", "linear", "--out", str(tmp_path / "out"), "--sizes", "20", *options]
    assert main(given) == 2
    error = capsys.readouterr().err
    assert error.splitlines()[-1].startswith("mmjax: error: ")
    assert message in error
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def sweep():
    splits = StrongWeak(train_examples=400, validation_examples=100, test_examples=100).load()
    return subset_risk_sweep(LeastSquares(), splits, sizes=[20, 200], seeds=3)


def test_the_table(sweep):
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(sweep_table(sweep, 20, oracle_risk=1.0))
    lines = console.export_text().splitlines()
    header = next(i for i, line in enumerate(lines) if line.startswith("subset "))
    title = " ".join(" ".join(lines[:header]).split())  # as wide as the table
    assert title == "20 training examples, mean ± std over 3 seeds, test split; risk: squared error"
    assert lines[header].split() == ["subset", "risk", "R2", "refitted", "γ", "η"]
    strong = next(line for line in lines if line.startswith("strong "))
    assert strong.count("±") == 5
    cell = sweep.cell(("strong",), 20)
    assert f"{np.mean(cell.risk):.2f}"[:3] in strong
    whole = next(line for line in lines if line.startswith("strong+weak"))
    assert "–" in whole  # γ against itself says nothing


def test_the_heat_map_holds_every_cell(sweep):
    risk, gamma = heat_map(sweep, "a study").axes
    assert len(risk.texts) == len(gamma.texts) == 6
    shown = risk.images[0].get_array()
    np.testing.assert_allclose(shown[2, 1], np.mean(sweep.cell(("strong", "weak"), 200).risk), rtol=1e-6)
    assert [t.get_text() for t in risk.get_yticklabels()] == ["strong", "weak", "strong+weak"]
    bold = [t.get_position() for t in risk.texts if t.get_fontweight() == "bold"]
    assert (0, 0) in bold  # few examples: the strong modality alone is best
    assert (1, 2) in bold  # many: both
    against = np.mean(sweep.cell(("strong", "weak"), 20).head_risk) - np.mean(sweep.cell(("strong",), 20).head_risk)
    np.testing.assert_allclose(gamma.images[0].get_array()[0, 0], against, rtol=1e-6)


def test_the_curves_have_the_sweep_s_bands(sweep):
    risk, score, gap, gamma = sweep_curves(sweep).axes
    line = next(x for x in risk.lines if x.get_label() == "strong")
    np.testing.assert_allclose(line.get_ydata(), [np.mean(sweep.cell(("strong",), n).risk) for n in (20, 200)])
    band = gap.collections[[x.get_label() for x in gap.lines].index("weak")].get_paths()[0].vertices[:, 1]
    point = sweep.additions("weak")[0]
    assert band.max() == pytest.approx(max(p.gap.high for p in sweep.additions("weak")))
    assert np.isclose(band, point.gap.low).any()
    assert len(score.lines) == 3
    single = subset_risk_sweep(
        LeastSquares(), StrongWeak(train_examples=60, validation_examples=20, test_examples=20).load(),
        sizes=[20], seeds=1, band=False, subsets=["strong"],
    )  # fmt: skip
    with pytest.raises(ValueError, match="a band needs at least 2 seeds, got 1"):
        sweep_curves(single)
