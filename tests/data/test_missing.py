"""Missing modalities in the data: what a file may say of them, how they are drawn, and how batches carry them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from mmjax.cli import main
from mmjax.data import (
    AvDigits,
    Dataset,
    Npz,
    Planted,
    Splits,
    Task,
    check_splits,
    describe,
    evaluation_batches,
    from_arrays,
    gather,
    read_inputs,
    require_complete,
    select,
    with_missing,
)

N = 90
RNG = np.random.default_rng(0)
PRESENT = np.concatenate([RNG.random((N, 2)) < 0.7, np.zeros((N, 1), bool)], axis=1)
PRESENT[:, 2] = ~PRESENT[:, :2].any(axis=1) | (RNG.random(N) < 0.5)


def arrays(fill: float = np.nan) -> dict[str, np.ndarray]:
    """Three modalities, `fill` wherever one is absent."""
    rng = np.random.default_rng(1)
    made = {"a": rng.normal(3, 2, (N, 4)), "b": rng.normal(size=(N, 5, 2)), "c": rng.normal(-1, 1, (N, 3))}
    return {
        m: np.where(PRESENT[:, i].reshape(-1, *[1] * (x.ndim - 1)), x, fill) for i, (m, x) in enumerate(made.items())
    }


def saved(folder: Path, **changes: np.ndarray) -> str:
    path = folder / "partial.npz"
    np.savez(path, **({**arrays(), "label": np.arange(N) % 3, "present": PRESENT} | changes))
    return str(path)


@pytest.mark.parametrize("fill", [np.nan, 1e300])
def test_what_is_absent_is_not_looked_at(fill: float) -> None:
    ours, clean = (from_arrays(arrays(f), np.arange(N) % 3, present=PRESENT) for f in (fill, 0.0))
    for part, other in ((ours.train, clean.train), (ours.validation, clean.validation), (ours.test, clean.test)):
        for m in "abc":
            np.testing.assert_array_equal(part.inputs[m], other.inputs[m])
            assert not part.inputs[m][~part.has(m)].any()
    assert ours.train.preprocess == clean.train.preprocess
    x = ours.train.preprocess["a"](ours.train.inputs["a"])[ours.train.has("a")]
    np.testing.assert_allclose([x.mean(axis=0), x.std(axis=0)], [[0] * 4, [1] * 4], atol=1e-5)


def test_a_file_carries_it_to_the_batches(tmp_path: Path) -> None:
    split = np.arange(N) // 3 % 3
    train = Npz(path=saved(tmp_path, split=split)).load().train
    np.testing.assert_array_equal(train.present, PRESENT[split == 0])
    np.testing.assert_array_equal(train.has("b"), PRESENT[split == 0, 1])
    np.testing.assert_array_equal(gather(train, np.array([4, 2])).present, train.present[[4, 2]])
    *_, last = evaluation_batches(train, 16)
    assert last.present.shape == (16, 3) and last.weight.sum() == len(train) % 16
    only = Npz(
        path=saved(tmp_path, **arrays(0.0), split=split, present=PRESENT | [True, False, False]), modalities=("c", "a")
    ).load()
    np.testing.assert_array_equal(only.train.present, (PRESENT | [True, False, False])[split == 0][:, [0, 2]])
    whole = Npz(path=saved(tmp_path, **arrays(0.0), present=np.ones((N, 3), bool))).load()
    assert whole.train.present is None


def test_a_choice_that_leaves_an_example_nothing_is_an_error(tmp_path: Path) -> None:
    empty = np.flatnonzero(~PRESENT[:, 0])
    with pytest.raises(ValueError, match=f"present: rows {', '.join(map(str, empty[:5]))} and .* have no modality"):
        Npz(path=saved(tmp_path), modalities=("a",)).load()
    with pytest.raises(ValueError, match="have no modality"):
        check_splits(select(Npz(path=saved(tmp_path)).load(), ("a",)))


def test_inputs_for_prediction_come_with_what_is_there(tmp_path: Path) -> None:
    inputs, present = read_inputs(saved(tmp_path, **arrays(0.0), present=PRESENT | [True, False, False]), ("c", "a"))
    np.testing.assert_array_equal(present, (PRESENT | [True, False, False])[:, [0, 2]])
    assert sorted(inputs) == ["a", "c"] and not inputs["c"][~PRESENT[:, 2]].any()


def test_check_counts_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved(tmp_path)
    report = describe(path)
    assert report.ok and not report.warnings
    assert report.missing == {m: int((~PRESENT[:, i]).sum()) for i, m in enumerate("abc")}
    assert main(["data", "check", path]) == 0
    assert f"missing: a in {report.missing['a']}, b in" in capsys.readouterr().out


def complete(count: int = 2000) -> Splits:
    data = Dataset({m: np.zeros((count, 1)) for m in "abc"}, np.arange(count) % 2, Task("classification", 2))
    return Splits(data, data, data)


def test_drawn_at_the_rates_and_never_all() -> None:
    splits = with_missing(complete(), {"a": 0.5, "c": 0.2}, seed=0)
    again, other = with_missing(complete(), {"a": 0.5, "c": 0.2}, seed=0), with_missing(complete(), {"a": 0.5}, seed=1)
    np.testing.assert_allclose(splits.train.present.mean(axis=0), [0.5, 1, 0.8], atol=0.04)
    np.testing.assert_array_equal(splits.test.present, again.test.present)
    assert not np.array_equal(splits.train.present, splits.test.present)
    assert not np.array_equal(splits.train.present, other.train.present)
    all_at_risk = with_missing(complete(), dict.fromkeys("abc", 0.7), seed=0).train.present
    assert all_at_risk.any(axis=1).all()
    np.testing.assert_allclose(1 - all_at_risk.mean(axis=0), (0.7 - 0.343) / (1 - 0.343), atol=0.04)
    assert with_missing(complete(), {"a": 0.0}, seed=0).train.present is None


def test_rates_out_of_range_are_errors() -> None:
    with pytest.raises(ValueError, match=r"missing names 'd'.*\n.*missing\['a'\] must be a probability"):
        with_missing(complete(), {"d": 0.5, "a": -0.1}, seed=0)
    with pytest.raises(ValueError, match="lack modalities already"):
        with_missing(with_missing(complete(), {"a": 0.5}, seed=0), {"b": 0.5}, seed=0)


def test_sources_take_the_rates() -> None:
    ours = Planted(missing={"a": 0.3}, train_examples=500).load()
    np.testing.assert_allclose(ours.train.present.mean(axis=0), [0.7, 1.0], atol=0.06)
    plain = Planted(train_examples=500).load().train
    np.testing.assert_array_equal(ours.train.inputs["b"], plain.inputs["b"])
    assert plain.present is None
    digits = AvDigits(missing={"image": 0.4})
    np.testing.assert_allclose(digits.load().test.present.mean(axis=0), [1.0, 0.6], atol=0.05)
    again = dataclasses.replace(digits, missing_seed=1).load().test.present
    assert not np.array_equal(digits.load().test.present, again)
    with pytest.raises(ValueError, match="did you mean 'image'"):
        AvDigits(missing={"imag": 0.4}).load()


def test_a_dataset_checks_its_present() -> None:
    data = complete(4).train
    assert dataclasses.replace(data, present=np.ones((4, 3), bool)).present is None
    for wrong in (np.ones((4, 2), bool), np.ones((3, 3), bool), np.ones((4, 3))):
        with pytest.raises(ValueError, match=r"present must be bool \[4, 3\], .* a column for each of a, b, c; got"):
            dataclasses.replace(data, present=wrong)
    partial = dataclasses.replace(data, present=np.arange(4)[:, None] >= [0, 1, 2])
    with pytest.raises(ValueError, match="a study needs every modality of every example; 2 examples of the test split"):
        require_complete(Splits(data, data, partial), "a study")
