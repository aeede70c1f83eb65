"""`describe`: what a file holds, all of its problems at once, and agreement with loading."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest

from mmjax.data import Npz, describe

N = 30


def saved(folder: Path, **arrays: np.ndarray) -> str:
    path = folder / "mine.npz"
    np.savez(path, allow_pickle=True, **arrays)
    return str(path)


def test_a_sound_file_is_described(tmp_path: Path) -> None:
    split = np.repeat(["train", "validation", "test"], [18, 6, 6])
    image = np.arange(N * 4, dtype=np.uint8).reshape(N, 2, 2)
    path = saved(tmp_path, image=image, x=np.linspace(-1, 2, N)[:, None], label=np.arange(N) % 3, split=split)
    report = describe(path)
    assert report.ok and report.problems == () and report.warnings == ()
    assert report.rows() == [
        ("image", "image", "30 x 2 x 2", "uint8", "0 .. 119"),
        ("x", "vector", "30 x 1", "float64", "-1 .. 2"),
        ("label", "label", "30", "int64", "0 .. 2"),
        ("split", "split", "30", "<U10", ""),
    ]
    assert (report.task, report.num_outputs) == ("classification", 3)
    assert report.sizes == {"train": 18, "validation": 6, "test": 6}
    assert report.counts == {"train": (6, 6, 6), "validation": (2, 2, 2), "test": (2, 2, 2)}
    assert report.class_rows()[1] == ("1", "6", "2", "2")


def test_multilabel_counts_and_regression_without_counts(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(4, 2))
    report = describe(saved(tmp_path, x=x, label=np.array([[1, 1], [0, 1], [0, 1], [0, 0]])))
    assert (report.task, report.counts, report.sizes) == ("multilabel", {"all": (1, 3)}, {"all": 4})
    report = describe(saved(tmp_path, x=x, label=np.array([0.5, 1, 2, 3])))
    assert (report.task, report.counts, report.class_rows()) == ("regression", {}, [])


def test_every_problem_is_listed(tmp_path: Path) -> None:
    path = saved(
        tmp_path,
        a=np.full((N, 2), np.nan),
        b=np.ones((N - 1, 2)),
        c=np.array([{}] * N, object),
        fusion=np.ones((N, 1)),
        present=np.ones((N, 2), bool),  # a and b and fusion
        split=np.full(N, "training"),
        label=np.arange(N) - 2,
    )
    problems = "\n".join(describe(path).problems)
    for part in (
        "a holds nan at [0, 0]",
        "b has 29 examples",
        "c cannot be read",
        "'fusion' is taken",
        f"present has shape ({N}, 2); expected ({N}, 3)",
        "split[0] is 'training'",
        "label[0] is -2",
    ):
        assert part in problems
    assert len(describe(path).problems) == 7


def test_a_file_without_labels_still_has_its_arrays_checked(tmp_path: Path) -> None:
    report = describe(saved(tmp_path, a=np.ones((3, 2)), b=np.full((3, 2), np.inf)))
    assert report.problems == (
        "there is no array `label`",
        "b holds inf at [0, 0]; every value must be a finite number",
    )
    assert report.task is None and len(report.arrays) == 2


def test_ranges_leave_out_what_is_not_finite(tmp_path: Path) -> None:
    path = saved(tmp_path, a=np.array([[np.nan, -3.0], [np.inf, 4.0]]), label=np.array([0, 1]))
    assert describe(path).rows()[0][-1] == "-3 .. 4"


def test_files_that_are_no_archives(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no file at"):
        describe(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("hello")
    report = describe(tmp_path / "text.npz")
    assert not report.ok and "is not an npz file" in report.problems[0]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"label": np.arange(N) % 2 * 2}, "class 1 has no training example"),
        ({"label": np.eye(3)[np.arange(N) % 3]}, "exactly one 1"),
        ({"label": np.arange(N, dtype=float)}, "whole numbers"),
        ({"a": np.full((N, 2), 4.0)}, "a is the same for every example"),
        ({"a": 1e9 + np.arange(N, dtype=float)[:, None]}, "float32 loses most"),
        (
            {"label": np.arange(N) % 3, "split": np.where(np.arange(N) % 3 == 1, 2, np.arange(N) % 2)},
            "class 1 has no training example",
        ),
    ],
)
def test_what_may_not_be_meant_is_a_warning(arrays: dict, message: str, tmp_path: Path) -> None:
    defaults = {"a": np.random.default_rng(0).normal(size=(N, 2)), "label": np.arange(N) % 2}
    report = describe(saved(tmp_path, **{**defaults, **arrays}))
    assert report.ok
    assert len(report.warnings) == 1 and message in report.warnings[0]


def test_a_file_loads_exactly_if_it_is_found_sound(tmp_path: Path) -> None:
    """Random breakage: `describe` and `load` must agree, and each problem of the one be in the other's message."""
    rng = np.random.default_rng(0)
    outcomes = set()
    for _ in range(60):
        arrays = {
            "a": rng.normal(size=(N, 2)),
            "b": rng.normal(size=(N, 3, 2)),
            "label": rng.permutation(np.arange(N) % 3),
            "split": rng.permutation(np.arange(N) % 3),
        }
        for name in rng.choice(list(arrays), rng.integers(0, 3), replace=False):
            breakage = rng.integers(0, 5)
            if breakage == 0:
                del arrays[name]
            elif breakage == 1:
                arrays[name] = arrays[name][:-1]
            elif breakage == 2:
                arrays[name] = arrays[name].astype(float)
                arrays[name][rng.integers(N)] = np.nan
            elif breakage == 3:
                arrays[name] = arrays[name].astype(str)
            else:
                arrays[name] = arrays[name] - 1
        path = saved(tmp_path, **arrays)
        report = describe(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                Npz(path=path).load()
            except ValueError as error:
                assert not report.ok, (report, error)
                if "label" in arrays:
                    assert all(problem in str(error) for problem in report.problems)
            else:
                assert report.ok, report.problems
        outcomes.add(report.ok)
    assert outcomes == {True, False}
