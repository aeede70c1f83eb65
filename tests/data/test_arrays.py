"""One's own data: what is taken, how it is split and standardised, and every error of bad input."""

from __future__ import annotations

import warnings
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.data import (
    Dataset,
    Npz,
    Splits,
    Standardize,
    Task,
    check_splits,
    from_arrays,
    gather,
    read_inputs,
    select,
    validate,
)
from mmjax.data.splitting import TEST, VALIDATION, draw
from mmjax.data.standardize import fit_standardize

N = 60


def good(**changes: np.ndarray | None) -> dict[str, np.ndarray]:
    """Arrays of a sound file; a change of None leaves an array out."""
    rng = np.random.default_rng(0)
    arrays: dict[str, np.ndarray | None] = {
        "image": rng.integers(0, 256, (N, 6, 5)).astype(np.uint8),
        "audio": rng.normal(3.0, 2.0, (N, 7, 4)),
        "label": np.arange(N) % 3,
    }
    arrays.update(changes)
    return {name: array for name, array in arrays.items() if array is not None}


def saved(folder: Path, **changes: np.ndarray | None) -> str:
    """Save `good` arrays and return the path."""
    path = folder / "mine.npz"
    np.savez(path, allow_pickle=True, **good(**changes))
    return str(path)


def rows_of(splits: Splits) -> list[np.ndarray]:
    """Which rows each split holds, where modality "row" numbers them."""
    return [part.inputs["row"][:, 0].astype(int) for part in (splits.train, splits.validation, splits.test)]


def numbered(count: int) -> dict[str, np.ndarray]:
    """One modality that numbers its rows."""
    return {"row": np.arange(count, dtype=float)[:, None]}


def test_npz_loads_and_batches(tmp_path: Path) -> None:
    splits = Npz(path=saved(tmp_path)).load()
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [42, 6, 12]
    assert splits.train.modalities == ("audio", "image")
    assert splits.train.task == Task("classification", 3)
    batch = gather(splits.train, np.arange(4))
    assert batch.inputs["image"].shape == (4, 6, 5) and batch.inputs["image"].dtype == np.float32
    assert splits.train.preprocess["image"](batch.inputs["image"]).shape == (4, 6, 5, 1)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_any_number_of_modalities(count: int) -> None:
    inputs = {f"m{i}": np.random.default_rng(i).normal(size=(N, 2 + i)) for i in range(count)}
    assert len(from_arrays(inputs, np.arange(N) % 2).train.modalities) == count


def test_only_the_modalities_asked_for(tmp_path: Path) -> None:
    assert Npz(path=saved(tmp_path), modalities=("audio",)).load().test.modalities == ("audio",)


@pytest.mark.parametrize(
    ("label", "kind", "outputs", "shape", "dtype"),
    [
        (np.arange(N) % 4, "classification", 4, (), np.int32),
        (np.arange(N, dtype=np.uint8) % 2, "classification", 2, (), np.int32),
        (np.arange(N) % 2 == 0, "classification", 2, (), np.int32),
        (np.random.default_rng(0).integers(0, 2, (N, 3)).astype(float), "multilabel", 3, (3,), np.float32),
        (np.random.default_rng(0).integers(0, 2, (N, 3)), "multilabel", 3, (3,), np.float32),
        (np.linspace(0, 1, N), "regression", 1, (1,), np.float32),
        (np.random.default_rng(0).normal(size=(N, 2)), "regression", 2, (2,), np.float32),
    ],
)
def test_the_task_follows_from_the_labels(
    label: np.ndarray, kind: str, outputs: int, shape: tuple[int, ...], dtype: type
) -> None:
    train = from_arrays(numbered(N), label).train
    assert (train.task.kind, train.task.num_outputs) == (kind, outputs)
    assert train.label.shape[1:] == shape and train.label.dtype == dtype


def test_a_stated_task_goes_before_a_guess() -> None:
    whole = np.arange(N)
    assert from_arrays(numbered(N), whole, task="regression").train.task.kind == "regression"
    assert from_arrays(numbered(N), np.eye(3)[whole % 3], task="multilabel").train.task.num_outputs == 3


def test_labels_that_look_like_another_task_are_a_warning() -> None:
    with pytest.warns(UserWarning, match="exactly one 1"):
        from_arrays(numbered(N), np.eye(3)[np.arange(N) % 3])
    with pytest.warns(UserWarning, match="whole numbers"):
        from_arrays(numbered(N), np.arange(N, dtype=float) % 3)


# --- splits -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [("train", "validation", "test"), (0, 1, 2), (b"train", b"validation", b"test")])
def test_the_split_of_the_file_is_kept(names: tuple) -> None:
    which = np.random.default_rng(1).permutation(np.repeat([0, 1, 2], [40, 9, 11]))
    splits = from_arrays(numbered(N), np.arange(N) % 2, split=np.array(names)[which])
    for code, rows in enumerate(rows_of(splits)):
        np.testing.assert_array_equal(rows, np.flatnonzero(which == code))


def test_a_missing_validation_split_comes_out_of_training_only() -> None:
    which = np.array(["train"] * 40 + ["test"] * 20)
    train, validation, test = rows_of(from_arrays(numbered(N), np.arange(N) % 2, split=which, validation_fraction=0.25))
    np.testing.assert_array_equal(test, np.arange(40, 60))
    assert len(validation) == 10 and set(validation) | set(train) == set(range(40))
    assert np.bincount(validation % 2).tolist() == [5, 5]


def test_labels_and_inputs_stay_together() -> None:
    splits = from_arrays(numbered(N), np.arange(N) % 7)
    for part, rows in zip((splits.train, splits.validation, splits.test), rows_of(splits), strict=True):
        np.testing.assert_array_equal(part.label, rows % 7)
    np.testing.assert_array_equal(np.sort(np.concatenate(rows_of(splits))), np.arange(N))


def test_drawn_splits_follow_the_seed() -> None:
    label = np.arange(N) % 3
    first, again, other = (rows_of(from_arrays(numbered(N), label, split_seed=seed)) for seed in (0, 0, 1))
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(first[2], other[2])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=10, max_size=120), st.integers(0, 1000))
def test_every_class_is_spread_within_one_example(classes: list[int], seed: int) -> None:
    strata = np.array(classes)
    sizes = {VALIDATION: len(strata) // 5, TEST: len(strata) // 4}
    codes = draw(strata, sizes, seed)
    assert np.bincount(codes, minlength=3)[1:].tolist() == [sizes[VALIDATION], sizes[TEST]]
    for stratum in np.unique(strata):
        mine = codes[strata == stratum]
        for code, size in sizes.items():
            assert abs((mine == code).sum() - len(mine) * size / len(strata)) < 2
        assert (mine == 0).any()  # a class, however small, can be learned


def test_draws_without_classes_are_even() -> None:
    """No example has a place of its own: over many seeds each lands in the test split equally often."""
    hits = sum((draw(np.zeros(10, int), {TEST: 3}, seed) == TEST).astype(int) for seed in range(2000))
    assert np.abs(hits - 600).max() < 5 * np.sqrt(2000 * 0.3 * 0.7)


# --- standardisation --------------------------------------------------------------------------------------------


def test_every_feature_has_mean_0_and_deviation_1_over_training() -> None:
    splits = from_arrays({name: array for name, array in good().items() if name != "label"}, good()["label"])
    for part, exact in ((splits.train, True), (splits.test, False)):
        batch = gather(part, np.arange(len(part)))
        for name, f in part.preprocess.items():
            out = np.asarray(jax.jit(f)(batch.inputs[name]), np.float64)
            columns = out.reshape(-1, out.shape[-1])
            at_0 = np.allclose(columns.mean(axis=0), 0, atol=1e-5) and np.allclose(columns.std(axis=0), 1, atol=1e-5)
            assert at_0 == exact, (name, exact)  # the test split is transformed with training's numbers


def test_statistics_over_many_chunks_and_a_large_offset() -> None:
    x = np.random.default_rng(0).normal(1e4, 1e-1, (5000, 3)) * [1.0, 5.0, 0.2]
    fitted = fit_standardize(x)
    np.testing.assert_allclose(fitted.mean, x.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(fitted.scale, x.std(axis=0), rtol=1e-6)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6, 7])
def test_a_constant_feature_becomes_zero(value: float) -> None:
    x = np.full((3001, 1), value)
    assert np.all(fit_standardize(x)(x.astype(np.float32)) == 0.0)


def test_some_modalities_can_stay_raw() -> None:
    inputs = {"real": np.random.default_rng(0).normal(5.0, 2.0, (40, 3)), "tags": np.eye(40, 4)}
    splits = from_arrays(inputs, np.arange(40) % 2, raw=("tags",))
    assert sorted(splits.train.preprocess) == ["real"]
    with pytest.raises(ValueError, match=r"raw names 'tag', which is not a modality \(real, tags\)"):
        from_arrays(inputs, np.arange(40) % 2, raw=("tag",))


def test_standardize_can_be_left_out_and_keeps_the_channel_axis() -> None:
    arrays = good()
    label = arrays.pop("label")
    splits = from_arrays(arrays, label, standardize=False)
    assert set(splits.train.preprocess) == {"image"}
    x = gather(splits.train, np.arange(2)).inputs["image"]
    np.testing.assert_array_equal(splits.train.preprocess["image"](x), x[..., None])


def test_a_float_image_without_channels_is_named_in_images() -> None:
    x = np.random.default_rng(0).normal(size=(N, 5, 4))
    assert from_arrays({"x": x}, np.arange(N) % 2).train.preprocess["x"](x).shape == (N, 5, 4)
    named = from_arrays({"x": x}, np.arange(N) % 2, images=("x",)).train.preprocess["x"]
    assert named(x).shape == (N, 5, 4, 1)
    with pytest.raises(ValueError, match="images names 'y'"):
        from_arrays({"x": x}, np.arange(N) % 2, images=("y",))
    with pytest.raises(ValueError, match="an image is"):
        from_arrays(numbered(N), np.arange(N) % 2, images=("row",))


def test_preprocessing_is_hashable_and_equal_by_value() -> None:
    first, again = (from_arrays(numbered(N), np.arange(N) % 2).train.preprocess["row"] for _ in range(2))
    assert first == again and hash(first) == hash(again)
    assert first != Standardize((0.0,), (1.0,))


# --- bad input --------------------------------------------------------------------------------------------------


def with_bad(value: float) -> np.ndarray:
    x = np.ones((N, 7, 4))
    x[5, 2, 3] = value
    x[40, 0, 0] = value
    return x


BAD = {
    "lengths": ({"audio": np.ones((N - 1, 2))}, "audio has 59 examples, but label has 60"),
    "nan": ({"audio": with_bad(np.nan)}, r"audio holds nan at \[5, 2, 3\]"),
    "inf": ({"audio": with_bad(-np.inf)}, r"audio holds -inf at \[5, 2, 3\]"),
    "too large": ({"audio": with_bad(1e39)}, r"audio holds 1e\+39 at \[5, 2, 3\].*range of float32"),
    "text": ({"audio": np.full((N, 2), "x")}, "audio has type <U1; a modality must hold real numbers"),
    "complex": ({"audio": np.ones((N, 2), complex)}, "audio has type complex128"),
    "objects": ({"audio": np.array([None] * N, object)}, "audio cannot be read: it holds Python objects"),
    "one axis": ({"audio": np.ones(N)}, r"audio has shape \(60,\)"),
    "scalar": ({"audio": np.array(1.0)}, r"audio has shape \(\)"),
    "empty": ({"audio": np.ones((N, 0))}, r"audio has shape \(60, 0\): it is empty"),
    "no modality": ({"audio": None, "image": None}, "no modality"),
    "no label": ({"label": None}, "there is no array `label`"),
    "negative label": ({"label": np.arange(N) - 1}, r"label\[0\] is -1"),
    "gap in labels": ({"label": np.arange(N) * 1000}, "number the classes 0, 1, 2"),
    "one class": ({"label": np.zeros(N, int)}, "at least 2 classes"),
    "string label": ({"label": np.array(["cat"] * N)}, "label has type <U3"),
    "nan label": ({"label": np.where(np.arange(N) == 4, np.nan, 0.5)}, r"label holds nan at \[4\]"),
    "3-d label": ({"label": np.ones((N, 1, 1))}, r"label has shape \(60, 1, 1\)"),
    "scalar label": ({"label": np.array(1)}, r"label has shape \(\)"),
    "integer table": ({"label": np.arange(2 * N).reshape(N, 2)}, "does not say what it is"),
    "no examples": ({"label": np.zeros(0, int), "audio": np.ones((0, 1)), "image": None}, "no examples"),
    "present columns": (
        {"present": np.ones((N, 3), bool)},
        r"present has shape \(60, 3\); expected \(60, 2\), .* a column for each of audio, image",
    ),
    "present rows": ({"present": np.ones((N - 1, 2), bool)}, r"present has shape \(59, 2\); expected \(60, 2\)"),
    "present type": ({"present": np.ones((N, 2))}, "present has type float64; it must be bool"),
    "nothing present": (
        {"present": np.arange(N)[:, None] >= [7, 5]},
        "present: rows 0, 1, 2, 3, 4 have no modality; leave such examples out",
    ),
    "one row of nothing": ({"present": np.arange(N)[:, None] != [3, 3]}, "present: row 3 has no modality"),
    "nan that is present": (
        {"audio": with_bad(np.nan), "present": np.arange(N)[:, None] != [5, 1]},
        r"audio holds nan at \[40, 0, 0\]",
    ),
    "nobody in training": (
        {"present": np.arange(N)[:, None] % 3 > [1, -1], "split": np.arange(N) % 3},
        "no training example has audio",
    ),
    "name": ({"my-audio": np.ones((N, 2))}, "modality name 'my-audio'"),
    "taken name": ({"fusion": np.ones((N, 2))}, "modality name 'fusion' is taken"),
    "split word": ({"split": np.array(["train"] * 59 + ["val"])}, r"split\[59\] is 'val'"),
    "split code": ({"split": np.arange(N) % 4}, r"split\[3\] is 3"),
    "split type": ({"split": np.ones(N)}, "split must hold strings"),
    "split length": ({"split": np.arange(N - 3) % 3}, "split has 57 examples, but label has 60"),
    "no test": ({"split": np.arange(N) % 2}, "split has no 'test' example"),
    "no train": ({"split": np.arange(N) % 2 + 1}, "split has no 'train' example"),
}


@pytest.mark.parametrize(("changes", "message"), BAD.values(), ids=BAD.keys())
def test_bad_files_are_errors_that_say_what_is_wrong(changes: dict, message: str, tmp_path: Path) -> None:
    path = saved(tmp_path, **changes)
    with pytest.raises(ValueError, match=message) as caught:
        Npz(path=path).load()
    assert path in str(caught.value)


def test_the_first_bad_value_is_found_far_down() -> None:
    x = np.ones((5000, 2), np.float32)
    x[3333, 1] = np.nan
    with pytest.raises(ValueError, match=r"x holds nan at \[3333, 1\]"):
        from_arrays({"x": x}, np.arange(5000) % 2)


def test_all_problems_come_in_one_message(tmp_path: Path) -> None:
    path = saved(tmp_path, audio=with_bad(np.nan), image=np.ones((3, 2)), label=np.arange(N) - 1)
    with pytest.raises(ValueError) as caught:
        Npz(path=path).load()
    for part in ("audio holds nan", "image has 3 examples", "label[0] is -1"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_outputs": 2}, r"label\[2\] is 2; with 2 classes it must be in 0..1"),
        ({"modalities": ("adio",)}, "modalities names 'adio'.*did you mean 'audio'"),
        ({"modalities": ("label",)}, "modalities names 'label'"),
        ({"modalities": ("audio", "audio")}, "twice"),
        ({"task": "ranking"}, "task must be one of auto, classification, multilabel, regression; got 'ranking'"),
        ({"task": "multilabel"}, r"label holds 2 at \[2\]; multilabel labels must be 0 or 1"),
        ({"task": "regression", "num_outputs": 3}, "num_outputs is 3"),
        ({"validation_fraction": 0.0}, "validation_fraction must be above 0 and below 1, got 0.0"),
        ({"test_fraction": 0.95}, "leave nothing to train on"),
        ({"split_seed": -1}, "split_seed must be at least 0, got -1"),
    ],
)
def test_bad_options_are_errors(options: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        Npz(path=saved(tmp_path), **options).load()


def test_float_classes_are_the_wrong_type() -> None:
    with pytest.raises(ValueError, match="label has type float64; class labels must be integers"):
        from_arrays(numbered(N), np.arange(N) % 3.0, task="classification")


def test_missing_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="data.path is empty"):
        Npz().load()
    with pytest.raises(FileNotFoundError, match="no file at"):
        Npz(path=str(tmp_path / "none.npz")).load()
    np.save(tmp_path / "bare.npy", np.ones(3))
    with pytest.raises(ValueError, match="one bare array"):
        Npz(path=str(tmp_path / "bare.npy")).load()
    for content in (b"", b"hello", b"PK\x03\x04 no archive"):
        (tmp_path / "broken.npz").write_bytes(content)
        with pytest.raises(ValueError, match="is not an npz file"):
            Npz(path=str(tmp_path / "broken.npz")).load()


def test_a_damaged_array_is_named(tmp_path: Path) -> None:
    path = Path(saved(tmp_path))
    content = bytearray(path.read_bytes())
    at = content.find(good()["audio"].tobytes()[:64])
    content[at : at + 64] = bytes(64)
    path.write_bytes(bytes(content))
    with pytest.raises(ValueError, match="audio cannot be read"):
        Npz(path=str(path)).load()


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "sprung",))

    path = saved(tmp_path, audio=np.array([Trap()] * N, object))
    with pytest.raises(ValueError, match="Python objects"):
        Npz(path=path).load()
    assert not (tmp_path / "sprung").exists()


def test_a_class_absent_from_training_is_a_warning_that_names_it() -> None:
    label = np.arange(N) % 3
    with pytest.warns(UserWarning, match="class 2 has no training example"):
        from_arrays(numbered(N), label, split=np.where(label == 2, 2, np.arange(N) % 2))
    with pytest.warns(UserWarning, match="classes 3, 4, 5, 6, 7 and 2 more have no training example"):
        from_arrays(numbered(N), label, num_outputs=10)
    with pytest.warns(UserWarning, match="label 1 has no training example"):
        from_arrays(numbered(N), np.array([[1, 0, 1], [1, 0, 0]] * (N // 2)))


def test_too_few_examples_for_three_splits() -> None:
    with pytest.raises(ValueError, match="2 examples are too few"):
        from_arrays(numbered(2), np.array([0, 1]))


def test_inputs_are_left_as_they_were_given() -> None:
    arrays = good()
    label = arrays.pop("label")
    kept = {name: array.copy() for name, array in arrays.items()}
    splits = from_arrays(arrays, label)
    np.asarray(splits.train.inputs["audio"])[:] = 0.0
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, kept[name])


# --- checks that every source shares ----------------------------------------------------------------------------

TASK = Task("classification", 2, ("no", "yes"))


def sound(**changes: object) -> Dataset:
    # the changes are wrong types on purpose
    return Dataset(**{"inputs": {"a": np.ones((2, 3))}, "label": np.array([0, 1]), "task": TASK, **changes})  # type: ignore[arg-type]  # wrong on purpose


def test_a_dataset_is_consistent_by_construction() -> None:
    with pytest.raises(ValueError, match="no modality"):
        sound(inputs={})
    with pytest.raises(ValueError, match=r"a has shape \(3, 1\), but label has 2 examples"):
        sound(inputs={"a": np.ones((3, 1))})
    with pytest.raises(ValueError, match="preprocess names"):
        sound(preprocess={"b": abs})
    with pytest.raises(ValueError, match="label must have a first axis"):
        sound(label=np.array(1))


def test_validate_finds_bad_values() -> None:
    with pytest.raises(ValueError, match=r"train: a holds nan at \[1, 0\]"):
        validate(sound(inputs={"a": np.array([[0.0], [np.nan]])}), "train")
    with pytest.raises(ValueError, match=r"label\[1\] is 2"):
        validate(sound(label=np.array([0, 2])), "train")
    with pytest.raises(ValueError, match="class labels must be integers"):
        validate(sound(label=np.array([0.0, 1.0])), "train")
    with pytest.raises(ValueError, match="label_names has 1"):
        validate(sound(task=Task("classification", 2, ("no",))), "train")
    with pytest.raises(ValueError, match=r"for regression it must be \[N, L\]"):
        validate(sound(label=np.array([0.5, 1.0]), task=Task("regression", 1)), "train")


def test_check_splits_compares_the_splits() -> None:
    empty = sound(inputs={"a": np.ones((0, 3))}, label=np.zeros(0, int))
    others = {
        "validation split is empty": empty,
        "validation split has task": sound(task=Task("classification", 3)),
        "validation split has modalities": sound(inputs={"b": np.ones((2, 3))}),
        r"a has shape \(4,\) an example in the validation split": sound(inputs={"a": np.ones((2, 4))}),
        "preprocessing other than train's": sound(preprocess={"a": abs}),
        "validation split: a holds inf": sound(inputs={"a": np.full((2, 3), np.inf)}),
    }
    for message, other in others.items():
        with pytest.raises(ValueError, match=message):
            check_splits(Splits(sound(), other, sound()))
    with pytest.warns(UserWarning, match=r"class 1 \('yes'\) has no training example"):
        check_splits(Splits(sound(label=np.array([0, 0])), sound(), sound()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_splits(Splits(sound(), sound(label=np.array([0, 0])), sound()))  # absent elsewhere is no matter


def test_select_keeps_preprocessing_of_what_stays() -> None:
    part = sound(inputs={"a": np.ones((2, 3)), "b": np.ones((2, 1))}, preprocess={"a": abs})
    chosen = select(Splits(part, part, part), ("a",))
    assert chosen.test.modalities == ("a",) and dict(chosen.test.preprocess) == {"a": abs}
    assert dict(select(Splits(part, part, part), ("b",)).train.preprocess) == {}


# --- inputs for prediction --------------------------------------------------------------------------------------


def test_read_inputs_takes_the_modalities_only(tmp_path: Path) -> None:
    path = saved(tmp_path, label=None, extra=np.full((3, 3), "?"))
    inputs, present = read_inputs(path, ("audio", "image"))
    assert present is None
    assert sorted(inputs) == ["audio", "image"] and inputs["audio"].dtype == np.float32
    np.testing.assert_array_equal(inputs["image"], good()["image"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"audio": None}, r"mine.npz has no array .audio., which the model takes \(it has image\)"),
        ({"audio": with_bad(np.nan)}, r"audio holds nan at \[5, 2, 3\]"),
        ({"audio": np.ones((3, 7, 4))}, "the same number of examples, got audio 3, image 60"),
        ({"audio": np.array([None] * N, object)}, "audio cannot be read"),
        ({"present": np.ones((N, 3), bool)}, r"present has shape \(60, 3\); expected \(60, 2\)"),
        ({"present": np.arange(N)[:, None] != [3, 3]}, "present: row 3 has no modality"),
    ],
)
def test_bad_inputs_for_prediction(changes: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        read_inputs(saved(tmp_path, **changes), ("audio", "image"))
