"""Stages: what moves and what stays, what is handed over, resuming in the middle of any, mistakes told early."""

from __future__ import annotations

import dataclasses
import hashlib
import json

import jax
import numpy as np
import pytest

from mmjax.config import Config, ModelConfig, StageConfig, TrainConfig
from mmjax.config_file import from_json, to_json
from mmjax.data import Planted, Splits, from_arrays
from mmjax.generative.config import MRBMConfig
from mmjax.generative.methods import GENERATIVE_METHODS
from mmjax.models import ConcatConfig, ExpertsConfig, MLPConfig
from mmjax.optim import JointConfig, MimoConfig, UniformConfig
from mmjax.overrides import override
from mmjax.train.experiment import build_experiment
from mmjax.train.journal import read_rows
from mmjax.train.loop import fit
from mmjax.train.observer import Observer
from mmjax.train.optimizer import AdamConfig, CosineConfig, SGDConfig
from mmjax.train.run import load
from mmjax.train.stages import build_stages

SMALL = MLPConfig(width=4, depth=1, norm="batch", dropout=0.1)
PLAIN = SGDConfig(learning_rate=0.1, momentum=0.0)


@pytest.fixture(scope="module")
def splits() -> Splits:
    rng = np.random.default_rng(0)
    label = rng.integers(0, 3, 96)
    arrays = {m: (np.eye(3)[label] + rng.normal(size=(96, 3))).astype(np.float32) for m in ("audio", "zoom")}
    return from_arrays(arrays, label)  # 67 to train on


def config(*stages, model=None, **train) -> Config:
    experts = ExpertsConfig(encoders={"audio": SMALL, "zoom": SMALL}, fusion=ConcatConfig(hidden=()))
    options = {"epochs": 2.0, "batch_size": 16, "devices": 1, "monitor_every": 0, "log_every": 3}
    return Config(
        data=Planted(),  # others are given
        model=experts if model is None else model,
        method=JointConfig(),
        optimizer=SGDConfig(learning_rate=0.05, weight_decay=0.1, schedule=CosineConfig()),
        train=TrainConfig(**(options | train)),
        stages=stages,
    )


def apart(*experts, **options) -> StageConfig:
    return StageConfig(**{"title": "+".join(experts), "method": UniformConfig(), "objectives": experts} | options)


TOGETHER = StageConfig(title="together", optimizer=AdamConfig(learning_rate=0.01))


def same(a, b) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def moved(before, after) -> set[str]:
    """Modules whose parameters or statistics differ at all."""
    return {
        name
        for collection, modules in before.items()
        for name in modules
        if not same(modules[name], after[collection][name])
    }


def start_and_end(experiment, splits, steps=3):
    """Variables before and after some steps of a stage."""
    from mmjax.data import batch_indices, gather

    state = experiment.initial_state()
    step = jax.jit(experiment.step)
    before = {"params": state.params, **state.model_state}
    for t in range(steps):
        state, metrics = step(state, gather(splits.train, batch_indices(0, t, len(splits.train), 16)))
    return before, {"params": state.params, **state.model_state}, metrics


def test_from_scratch_is_one_stage_bit_for_bit(splits, tmp_path):
    without = fit(config(), tmp_path / "without", splits=splits)
    with_one = fit(config(StageConfig(title="all")), tmp_path / "with", splits=splits)
    assert same(without.variables, with_one.variables)
    timing = ("steps_per_second", "wall_seconds", "compile_seconds")
    rows = [
        [{k: v for k, v in row.items() if k not in timing} for row in read_rows(tmp_path / name / "metrics.jsonl")]
        for name in ("without", "with")
    ]
    assert rows[0] == rows[1]


def test_frozen_parts_keep_parameters_and_statistics_whatever_the_decay(splits):
    stages = config(StageConfig(title="heads", frozen=("encoder", "head/inter")))
    (experiment,) = build_stages(stages, splits)
    before, after, _ = start_and_end(experiment, splits)
    assert moved(before, after) == {"heads_audio", "heads_zoom"}
    # and the optimizer holds nothing of them
    held = jax.tree.leaves_with_path(experiment.initial_state().opt_state)
    assert not any("encoders" in jax.tree_util.keystr(path) for path, _ in held)


def test_only_what_the_counted_objectives_reach_moves(splits):
    (experiment,) = build_stages(config(apart("audio")), splits)
    before, after, metrics = start_and_end(experiment, splits)
    assert moved(before, after) == {"encoders_audio", "heads_audio"}
    told = dict(zip(experiment.names, np.isfinite(metrics.values), strict=True))
    assert told == {"fusion": False, "audio": True, "inter": False, "zoom": False}


def test_experts_apart_are_each_by_itself(splits):
    """Nothing is shared: an expert's steps are the same whoever trains beside it."""
    parts = {}
    for experts in (("audio",), ("audio", "inter", "zoom")):
        (experiment,) = build_stages(config(apart(*experts, optimizer=PLAIN)), splits)
        parts[experts] = start_and_end(experiment, splits)[1]["params"]
    for name in ("encoders_audio", "heads_audio"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
            parts["audio",][name],
            parts["audio", "inter", "zoom"][name],
        )


def test_frozen_encoders_of_a_multimodal_model_train_its_heads_alone(splits):
    plain = ModelConfig(encoders={"audio": SMALL, "zoom": SMALL})
    (experiment,) = build_stages(config(StageConfig(title="probe", frozen=("encoder",)), model=plain), splits)
    before, after, _ = start_and_end(experiment, splits)
    assert moved(before, after) == {"heads_audio", "heads_zoom", "fusion"}


def test_methods_see_only_the_parts_that_train(splits):
    """The update of what trains is that of the method on these parts alone: here MIMO's weights by hand."""
    stage = StageConfig(
        title="x", method=MimoConfig(penalty=2.0, smoothing=0.5), objectives=("fusion", "audio", "zoom")
    )
    (experiment,) = build_stages(config(stage), splits)
    _, _, metrics = start_and_end(experiment, splits, steps=1)
    weights = dict(zip(experiment.names, metrics.weights, strict=True))
    values = dict(zip(experiment.names, metrics.values, strict=True))
    pi = jax.nn.softmax(np.array([values["audio"], values["zoom"]]) / 0.5)
    assert weights["inter"] == 0
    np.testing.assert_allclose([weights[n] for n in ("fusion", "audio", "zoom")], [1, 2 * pi[0], 2 * pi[1]], rtol=1e-4)


def test_the_next_stage_begins_with_the_best_weights_of_the_one_before(splits, tmp_path):
    still = StageConfig(title="still", epochs=0.2, optimizer=SGDConfig(learning_rate=1e-12, momentum=0.0))
    first = apart("audio", "zoom", epochs=3, optimizer=SGDConfig(learning_rate=0.8))
    whole = config(first, still, evaluate_every=1)
    run = fit(whole, tmp_path / "both", splits=splits)
    rows = read_rows(tmp_path / "both" / "metrics.jsonl")
    begun = [(row["step"], row["title"]) for row in rows if row["kind"] == "stage"]
    assert begun == [(0, "audio+zoom"), (13, "still")]
    told = [row for row in rows if row["kind"] == "validation" and row["step"] <= 13]
    losses = [row["audio/nll"] + row["zoom/nll"] for row in told]
    assert np.argmin(losses) + 1 != len(losses)  # else best and last are the same, and this shows nothing
    alone = fit(config(first, evaluate_every=1), tmp_path / "first", splits=splits)
    test = read_rows(tmp_path / "first" / "metrics.jsonl")[-1]
    assert test["best_step"] == told[int(np.argmin(losses))]["step"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), run.params, alone.params)


class _Interrupt(Observer):
    def __init__(self, at, kind=None):
        self.at, self.kind = at, kind

    def row(self, row):
        if row["step"] >= self.at and self.kind in (None, row["kind"]):
            raise KeyboardInterrupt


def digest(tree) -> str:
    return hashlib.sha256(b"".join(np.asarray(x).tobytes() for x in jax.tree.leaves(tree))).hexdigest()


def comparable(rows):
    timing = ("steps_per_second", "wall_seconds", "compile_seconds")
    return [{k: v for k, v in row.items() if k not in timing} for row in rows]


THREE = (
    apart("audio", "zoom", epochs=2, optimizer=SGDConfig(learning_rate=0.3)),  # steps 0 to 9
    apart("inter", epochs=2),  # to 18
    dataclasses.replace(TOGETHER, epochs=1.5),
)


@pytest.fixture(scope="module")
def straight(splits, tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight")
    run = fit(config(*THREE, checkpoint_every=4), folder, splits=splits)
    return digest(run.variables), comparable(read_rows(folder / "metrics.jsonl"))


@pytest.mark.parametrize(("at", "kind"), [(9, "stage"), (15, "train"), (20, "train")])
def test_resumed_in_the_middle_of_a_stage_or_between_two_bit_for_bit(splits, straight, tmp_path, at, kind):
    whole = config(*THREE, checkpoint_every=4)
    with pytest.raises(KeyboardInterrupt):
        fit(whole, tmp_path, splits=splits, observer=_Interrupt(at, kind))
    resumed = fit(whole, tmp_path, splits=splits)
    assert digest(resumed.variables) == straight[0]
    assert comparable(read_rows(tmp_path / "metrics.jsonl")) == straight[1]
    if at == 20:
        again = fit(whole, tmp_path, splits=splits)  # finished: nothing is done again
        assert again.metrics == resumed.metrics
        loaded = load(tmp_path)
        assert digest(loaded.params) == digest(resumed.params) and loaded.config.stages == THREE


def test_early_stopping_ends_a_stage_and_the_next_one_begins_where_it_would_have(splits, tmp_path):
    hopeless = apart("audio", "zoom", epochs=4, optimizer=SGDConfig(learning_rate=30.0, momentum=0.0))
    whole = config(hopeless, dataclasses.replace(TOGETHER, epochs=1), early_stopping=1, evaluate_every=2)
    run = fit(whole, tmp_path / "a", splits=splits)
    rows = read_rows(tmp_path / "a" / "metrics.jsonl")
    steps = [row["step"] for row in rows if row["kind"] == "train"]
    assert [row["step"] for row in rows if row["kind"] == "stage"] == [0, 17]
    assert not any(8 < step <= 17 for step in steps) and any(step > 17 for step in steps)
    with pytest.raises(KeyboardInterrupt):
        fit(whole, tmp_path / "b", splits=splits, observer=_Interrupt(17, "stage"))
    resumed = fit(whole, tmp_path / "b", splits=splits)
    assert digest(resumed.variables) == digest(run.variables)


def test_devices_and_pmap_agree(splits):
    whole = config(apart("audio", epochs=1, optimizer=PLAIN), StageConfig(title="all", epochs=1, optimizer=PLAIN))
    one = fit(whole, splits=splits)
    for options in ({"devices": 8}, {"devices": 8, "parallel": "pmap"}):
        many = fit(dataclasses.replace(whole, train=dataclasses.replace(whole.train, **options)), splits=splits)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), many.variables, one.variables)


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (StageConfig(title="s", frozen=("encoder", "head")), "stage 's' freezes everything: encoder, head are all"),
        (StageConfig(title="s", frozen=("audio", "zoom", "inter")), "stage 's' freezes everything"),
        (StageConfig(title="s", frozen=("encoder/audoi",)), "freezes 'encoder/audoi'.*did you mean 'encoder/audio'"),
        (StageConfig(title="s", frozen=("xyzzy",)), "freezes 'xyzzy', which the model does not have; it has audio, "),
        (StageConfig(title="s", objectives=("intre",)), "counts objective 'intre'.*did you mean 'inter'"),
        (
            apart("audio", title="s", frozen=("audio",)),
            "stage 's' trains nothing: audio reach only encoders_audio, heads",
        ),
        (StageConfig(title="s", objectives=("audio",)), "stage 's' trains nothing.*method 'joint'"),
        (StageConfig(title="s", epochs=0), "epochs of stage 's' must be finite and above 0, or None; got 0"),
        (StageConfig(title="s", optimizer=SGDConfig(learning_rate=-1.0)), "optimizer.learning_rate must be finite and"),
    ],
)
def test_mistakes_are_told_before_anything_is_compiled(splits, stage, message):
    with pytest.raises(ValueError, match=message):
        build_stages(config(TOGETHER, stage), splits)


def test_a_stage_on_what_the_validation_split_lacks_is_told():
    rng = np.random.default_rng(0)
    arrays = {m: rng.normal(size=(96, 3)).astype(np.float32) for m in ("audio", "zoom")}
    split = np.arange(96) % 3
    present = np.stack([np.ones(96, bool), split != 1], axis=1)
    splits = from_arrays(arrays, np.arange(96) // 3 % 3, split=split, present=present)
    build_stages(config(apart("audio")), splits)
    with pytest.raises(
        ValueError, match="stage 'zoom' counts objective 'zoom', but no example of the validation split"
    ):
        build_stages(config(apart("zoom")), splits)


def test_who_trains_in_one_stage_refuses_several(splits):
    with pytest.raises(ValueError, match="trains in one stage; the configuration has stages"):
        build_experiment(config(TOGETHER), splits)
    generative = dataclasses.replace(
        config(StageConfig(title="s")), model=MRBMConfig(hidden=2, visible={"audio": "gaussian", "zoom": "gaussian"}),
        method=GENERATIVE_METHODS["pcd"](),
    )  # fmt: skip
    with pytest.raises(ValueError, match="a generative model trains in one stage"):
        build_stages(generative, splits)


def test_stages_in_json_and_on_the_command_line():
    whole = config(*THREE)
    assert from_json(json.loads(json.dumps(to_json(whole)))) == whole
    changed = override(
        whole, ["--stages.1.epochs", "7", "--stages.0.optimizer.learning-rate", "0.5", "--train.seed", "3"]
    )
    assert changed.stages[1].epochs == 7 and changed.stages[0].optimizer.learning_rate == 0.5
    assert dataclasses.replace(changed.stages[1], epochs=2) == THREE[1] and changed.stages[2] == THREE[2]
    assert override(whole, ["--stages.1.method.name", "mimo"]).stages[1].method == MimoConfig()
    with pytest.raises(ValueError, match="unknown option --stages.1.epoch; did you mean --stages.1.epochs"):
        override(whole, ["--stages.1.epoch", "7"])
    assert override(config(), ["--train.seed", "3"]).stages == ()
