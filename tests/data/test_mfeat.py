"""Multiple Features: the real files where they are at hand, and made-up ones for the errors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mmjax.data import Mfeat, gather
from mmjax.data.mfeat import VIEWS


@pytest.fixture(scope="module")
def folder(data_root: Path) -> str:
    """The folder with the six real files."""
    if not (data_root / "mfeat").is_dir():
        pytest.skip(f"no folder mfeat/ under {data_root}")
    return str(data_root / "mfeat")


def test_all_six_views_load_with_their_published_sizes(folder: str) -> None:
    splits = Mfeat(path=folder).load()
    assert {name: array.shape[1] for name, array in splits.train.inputs.items()} == VIEWS
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [1200, 400, 400]
    for part in (splits.train, splits.validation, splits.test):
        assert len(set(np.bincount(part.label, minlength=10).tolist())) == 1  # as many of each digit
    assert splits.train.task.num_outputs == 10 and splits.train.task.label_names[3] == "3"


def test_rows_keep_their_label_and_their_views_stay_aligned(folder: str) -> None:
    raw = {name: np.loadtxt(f"{folder}/mfeat-{name}") for name in ("kar", "mor")}
    splits = Mfeat(path=folder, modalities=("mor", "kar")).load()
    seen = []
    whole = {tuple(row): i for i, row in enumerate(raw["kar"].astype(np.float32))}  # six digits are in the files twice
    for part in (splits.train, splits.validation, splits.test):
        rows = np.array([whole[tuple(row)] for row in np.asarray(part.inputs["kar"])])
        np.testing.assert_array_equal(part.label, rows // 200)
        np.testing.assert_array_equal(part.inputs["mor"], raw["mor"][rows].astype(np.float32))
        seen.append(rows)
    every = [whole[tuple(row)] for row in raw["kar"].astype(np.float32)]
    np.testing.assert_array_equal(np.sort(np.concatenate(seen)), np.sort(every))


def test_features_are_standardised_over_training(folder: str) -> None:
    train = Mfeat(path=folder, modalities=("mor", "zer")).load().train
    batch = gather(train, np.arange(len(train)))
    for name in ("mor", "zer"):
        out = train.preprocess[name](batch.inputs[name]).astype(np.float64)
        np.testing.assert_allclose(out.mean(axis=0), 0.0, atol=1e-4)
        np.testing.assert_allclose(out.std(axis=0), 1.0, atol=1e-4)


def test_nearest_class_mean_tells_the_digits_apart(folder: str) -> None:
    """Labels and rows really belong together: the simplest classifier of the Karhunen-Loeve view is far from chance."""
    splits = Mfeat(path=folder, modalities=("kar",)).load()
    means = np.stack([splits.train.inputs["kar"][splits.train.label == digit].mean(axis=0) for digit in range(10)])
    distance = ((splits.test.inputs["kar"][:, None] - means) ** 2).sum(axis=2)
    assert (distance.argmin(axis=1) == splits.test.label).mean() > 0.9


def written(folder: Path, rows: int = 2000, columns: int = 6, entry: str = "1.5") -> str:
    (folder / "mfeat-mor").write_text("\n".join([" ".join([entry] * columns)] * rows) + "\n")
    return str(folder)


def test_splits_follow_the_seed_and_only_named_views_are_read(tmp_path: Path) -> None:
    rows = "\n".join(f"{i} 0 0 0 0 0" for i in range(2000))
    (tmp_path / "mfeat-mor").write_text(rows)
    first, again, other = (
        Mfeat(path=str(tmp_path), modalities=("mor",), split_seed=seed).load().test.inputs["mor"][:, 0]
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"rows": 1999}, r"mfeat-mor has 1999 rows of 6 numbers; expected \(2000, 6\)"),
        ({"columns": 7}, "2000 rows of 7 numbers"),
        ({"entry": "x"}, "mfeat-mor: could not convert string 'x'"),
        ({"entry": "nan"}, r"mor holds nan at \[0, 0\]"),
    ],
)
def test_files_that_are_not_as_published(shape: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        Mfeat(path=written(tmp_path, **shape), modalities=("mor",)).load()


def test_a_ragged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "mfeat-mor").write_text("1 2 3 4 5 6\n1 2 3\n")
    with pytest.raises(ValueError, match="mfeat-mor: .*row 2"):
        Mfeat(path=str(tmp_path), modalities=("mor",)).load()


def test_missing_things_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="data.path is empty"):
        Mfeat().load()
    with pytest.raises(FileNotFoundError, match="mfeat-fac"):
        Mfeat(path=str(tmp_path)).load()
    with pytest.raises(ValueError, match="modalities names 'pixels'"):
        Mfeat(path=str(tmp_path), modalities=("pixels",)).load()
    with pytest.raises(ValueError, match="test_fraction must be above 0"):
        Mfeat(path=written(tmp_path), modalities=("mor",), test_fraction=0.0).load()
