"""Token numbers by the npz route: as integers to the encoder, in training and from a work folder; mistakes."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import mmjax
from mmjax.config import Config, ModelConfig, TrainConfig
from mmjax.config_file import from_json, to_json
from mmjax.data import Npz, TokenNumbers, from_arrays, question_arrays
from mmjax.models import MLPConfig, TransformerConfig
from mmjax.optim import UniformConfig
from mmjax.train.optimizer import AdamConfig

LABEL = np.arange(40) % 2


def arrays(words):
    return {"picture": np.ones((40, 3)), "words": words}


def test_token_numbers_reach_the_encoder_as_integers_and_are_not_standardised():
    words = np.arange(40 * 3).reshape(40, 3)
    train = from_arrays(arrays(words), LABEL, tokens=["words"], split=np.arange(40) // 20 * 2).train
    given = train.preprocess["words"](train.inputs["words"])
    assert given.dtype == np.int32 and len(given) > 10
    np.testing.assert_array_equal(given, words[given[:, 0] // 3])  # some rows of these, unchanged
    assert from_json(to_json(train.preprocess["words"])) == TokenNumbers()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (np.ones((40, 3)), "tokens names words, whose numbers are float64; token numbers are integers"),
        (np.ones((40, 3, 2), int), r"whose shape is \(40, 3, 2\); token numbers are \[N, T\]"),
        (np.full((40, 3), -1), "go from -1 to -1; token numbers go from 0"),
        (np.full((40, 3), 2**24), "to below 16777216"),
    ],
)
def test_arrays_that_are_no_token_numbers(words, message):
    with pytest.raises(ValueError, match=message):
        from_arrays(arrays(words), LABEL, tokens=["words"])


def test_tokens_of_nobody(tmp_path):
    words = np.ones((40, 3), int)
    with pytest.raises(ValueError, match="tokens names 'word', which is not a modality"):
        from_arrays(arrays(words), LABEL, tokens=["word"])
    np.savez(tmp_path / "a.npz", label=LABEL, **arrays(words))
    data = Npz(path=str(tmp_path / "a.npz"), tokens=("words",), modalities=("picture",))
    assert data.load().train.modalities == ("picture",)  # what is said of one left out is no mistake
    with pytest.raises(ValueError, match="tokens names 'word'"):
        dataclasses.replace(data, tokens=("word",)).load()


def test_a_run_predicts_the_same_after_loading(tmp_path):
    made = question_arrays(120)
    np.savez(tmp_path / "q.npz", **made)
    config = Config(
        data=Npz(path=str(tmp_path / "q.npz"), tokens=("question",)),
        model=ModelConfig(
            encoders={
                "image": MLPConfig(width=8, depth=1),
                "question": TransformerConfig(width=8, layers=1, heads=2, vocabulary=13),
            }
        ),
        method=UniformConfig(),
        optimizer=AdamConfig(),
        train=TrainConfig(epochs=1, batch_size=28, monitor_every=0, devices=1),
    )
    run = mmjax.fit(config, tmp_path / "run")
    inputs = {m: made[m][:9] for m in ("image", "question")}
    one, other = run.predict(inputs), mmjax.load(tmp_path / "run").predict(inputs)
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])
    moved = inputs | {"question": np.roll(inputs["question"], 1, axis=0)}
    assert not np.allclose(run.predict(moved)["question"], one["question"])
    for wrong, message in (
        (
            np.full_like(inputs["question"], 13),
            r"question of inputs has token number 13, first in example 0, but model.enc",
        ),
        (-inputs["question"].astype(int), "question of inputs must hold token numbers, whole and at least 0"),
        (inputs["question"] + 0.5, "question of inputs must hold token numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            run.predict(inputs | {"question": wrong})


@pytest.mark.parametrize("part", ["training", "validation", "test"])
def test_a_number_beyond_the_vocabulary_is_told_before_anything_is_compiled(part):
    words = np.random.default_rng(0).integers(1, 13, (60, 3))
    split = np.arange(60) % 3
    words[np.flatnonzero(split == ("training", "validation", "test").index(part))[1], 2] = 40
    splits = from_arrays({"words": words}, np.arange(60) // 3 % 2, tokens=["words"], split=split)
    encoder = TransformerConfig(width=8, layers=1, heads=2, vocabulary=13)
    config = Config(
        data=Npz(path="given"), model=ModelConfig(encoders={"words": encoder}), method=UniformConfig(),
        optimizer=AdamConfig(), train=TrainConfig(batch_size=10, devices=1),
    )  # fmt: skip
    with pytest.raises(
        ValueError, match=f"words of the {part} split has token number 40, first in example 1, but model.en"
    ):
        mmjax.fit(config, splits=splits)
