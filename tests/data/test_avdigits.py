"""The embedded set and the script that makes it."""

from __future__ import annotations

import dataclasses
import importlib.util
import shutil
import sys
from importlib import resources
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from mmjax.data.avdigits import AvDigits
from mmjax.data.dataset import Dataset, Splits

SCRIPT = Path(__file__).parents[2] / "tools" / "make_avdigits.py"


@pytest.fixture(scope="module")
def splits() -> Splits:
    return AvDigits().load()


@pytest.fixture(scope="module")
def script() -> ModuleType:
    pytest.importorskip("scipy")
    spec = importlib.util.spec_from_file_location("make_avdigits", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_shapes_types_and_classes(splits: Splits) -> None:
    for split, count in ((splits.train, 3291), (splits.validation, 900), (splits.test, 1200)):
        assert len(split) == count
        assert split.inputs["image"].shape == (count, 8, 8, 1)
        assert split.inputs["audio"].shape == (count, 20, 16)
        assert split.inputs["image"].dtype == split.inputs["audio"].dtype == np.float32
        assert split.label.dtype == np.int32
        assert split.task.num_outputs == 10
        share = np.bincount(split.label, minlength=10) / count
        assert np.abs(share - 0.1).max() < 0.006
        assert not split.preprocess


def test_standardised_by_the_training_split(splits: Splits) -> None:
    for modality in ("image", "audio"):
        train = np.asarray(splits.train.inputs[modality][:])
        assert abs(train.mean()) < 1e-4 and abs(train.std() - 1) < 1e-4
        test = np.asarray(splits.test.inputs[modality][:])
        assert 1e-4 < abs(test.mean()) < 0.2


def test_loading_twice_gives_the_same(splits: Splits) -> None:
    again = AvDigits().load()
    for modality in ("image", "audio"):
        np.testing.assert_array_equal(again.test.inputs[modality][:], splits.test.inputs[modality][:])


def test_one_modality_only() -> None:
    assert AvDigits(modalities=("audio",)).load().train.modalities == ("audio",)
    with pytest.raises(ValueError, match="names 'video', which"):
        AvDigits(modalities=("video",)).load()


def test_the_file_is_small() -> None:
    # a Traversable has no stat in its type; an installed package's is a Path
    assert resources.files("mmjax.data").joinpath("avdigits.npz").stat().st_size < 2 * 2**20  # type: ignore[attr-defined]  # on disk it is a Path


def accuracy(splits: Splits, modalities: tuple[str, ...]) -> float:
    """Of ridge regression on the labels, on the validation split."""

    def flat(split: Dataset) -> np.ndarray:
        columns = [np.asarray(split.inputs[m][:]).reshape(len(split), -1) for m in modalities]
        return np.concatenate([*columns, np.ones((len(split), 1))], 1)

    x = flat(splits.train)
    weights = np.linalg.solve(x.T @ x + 100 * np.eye(x.shape[1]), x.T @ np.eye(10)[splits.train.label])
    return float((flat(splits.validation) @ weights).argmax(1).__eq__(splits.validation.label).mean())


def test_together_is_clearly_better_than_either(splits: Splits) -> None:
    image, audio, both = (accuracy(splits, m) for m in (("image",), ("audio",), ("audio", "image")))
    assert 0.6 < image < 0.85
    assert 0.4 < audio < 0.85
    assert both > max(image, audio) + 0.05


def test_split_rows_are_disjoint_complete_and_stratified(script: ModuleType) -> None:
    label = np.random.default_rng(0).integers(10, size=1797)
    rows = script.split_rows(label, script.Recipe(), 0)
    assert [len(rows[name]) for name in ("train", "validation", "test")] == [1097, 300, 400]
    np.testing.assert_array_equal(np.sort(np.concatenate(list(rows.values()))), np.arange(1797))
    expected = np.bincount(label) * 300 / 1797
    assert np.abs(np.bincount(label[rows["validation"]], minlength=10) - expected).max() <= 1.5
    again = script.split_rows(label, script.Recipe(), 1)
    assert not np.array_equal(rows["test"], again["test"])


def test_no_voice_in_two_splits(script: ModuleType) -> None:
    speakers = [name for split in script.SPEAKERS.values() for name in split]
    assert len(set(speakers)) == len(speakers)


def test_images_in_the_file_are_the_digits_of_scikit_learn(script: ModuleType) -> None:
    """The image half of the file, made again."""
    datasets = pytest.importorskip("sklearn.datasets")
    digits = datasets.load_digits()
    recipe = script.Recipe()
    rows = np.repeat(script.split_rows(digits.target, recipe, 0)["test"], recipe.utterances)
    with np.load(str(resources.files("mmjax.data").joinpath("avdigits.npz"))) as stored:
        np.testing.assert_array_equal(stored["test_label"], digits.target[rows])
        for row in (0, 1, 700, 1199):
            rng = np.random.default_rng([0, 3, 2, row])
            np.testing.assert_array_equal(
                stored["test_image"][row], script.degrade(digits.images[rows[row]], recipe, rng)
            )


def test_noise_has_the_asked_level_and_colour(script: ModuleType) -> None:
    rng = np.random.default_rng(0)
    red = script.coloured_noise(8000, 2.0, rng)
    assert abs(red.std() - 1) < 1e-9
    power = np.abs(np.fft.rfft(red)) ** 2
    assert power[100:1000].mean() > 10 * power[1000:].mean()
    speech = np.sin(np.arange(4000) * 0.7)
    noise = rng.standard_normal(8000)
    quiet = dataclasses.replace(script.Recipe(), snr_db=(20.0, 20.0), latest_start=0.0)
    mixed = script.mix(speech, noise, quiet, np.random.default_rng(1))
    ratio = mixed[:4000].var() / mixed[4000:].var()
    assert 60 < ratio < 160  # 20 dB, and the noise under the speech


def test_features_are_the_spectrogram_in_bytes(script: ModuleType) -> None:
    recipe = script.Recipe()
    loud = script.features(np.random.default_rng(0).normal(0, 0.1, 8000), recipe)
    quiet = script.features(np.random.default_rng(0).normal(0, 0.01, 8000), recipe)
    assert loud.shape == (20, 16) and loud.dtype == np.uint8
    step = (recipe.ceiling_db - recipe.floor_db) / 255
    inside = loud < 255
    np.testing.assert_allclose((loud.astype(float) - quiet)[inside] * step, 20, atol=1.01 * step)


@pytest.mark.skipif(
    shutil.which("espeak-ng") is None,
    reason="espeak-ng, a system program that only remakes the embedded speech, is not installed",
)
def test_the_script_makes_the_same_bytes_twice(script: ModuleType) -> None:
    rng = np.random.default_rng(0)
    label = np.arange(20) % 10
    images = rng.integers(0, 17, size=(20, 8, 8)).astype(float)
    recipe = dataclasses.replace(script.Recipe(), validation=4, test=4, utterances=1)
    first, second = (script.make_split("test", images[:4], label[:4], recipe, 5) for _ in range(2))
    other = script.make_split("test", images[:4], label[:4], recipe, 6)
    for a, b, c in zip(first, second, other, strict=True):
        np.testing.assert_array_equal(a, b)
        assert not np.array_equal(a, c)


@pytest.mark.skipif(
    shutil.which("espeak-ng") is None,
    reason="espeak-ng, a system program that only remakes the embedded speech, is not installed",
)
def test_speech_is_trimmed_and_voices_differ(script: ModuleType) -> None:
    one = script.speak("seven", "en-us+m1", 160, 50)
    other = script.speak("seven", "en-us+f4", 160, 50)
    assert np.abs(one).max() == 1.0
    assert 2000 < len(one) < 8000
    assert len(one) != len(other) or not np.allclose(one, other)
