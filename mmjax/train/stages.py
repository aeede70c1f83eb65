"""Stages of training: from a configuration to one experiment a stage; all of their checks come before any compilation."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from mmjax.config import Config, StageConfig, validate
from mmjax.data import Batch, Splits, gather
from mmjax.models import parameter_groups
from mmjax.train.base import Experiment
from mmjax.train.experiment import Classifier, build_experiment
from mmjax.train.inference import build_inference
from mmjax.train.step import Training, reached_modules


def build_stages(config: Config, splits: Splits | None = None) -> tuple[Experiment, ...]:
    """Return the experiments of a configuration's stages, one after the other; without stages, its one experiment.

    Raises:
      ValueError: as `build_experiment`; a stage that names unknown parts or objectives (the nearest known ones are told),
        that freezes everything, whose objectives reach nothing that is not frozen, or are about a modality that the
        validation split lacks; stages of a generative model.
    """
    if not config.stages:
        return (build_experiment(config, splits),)
    validate(config)
    splits = config.data.load() if splits is None else splits
    stages: list[Experiment] = []
    for stage in config.stages:
        experiment = build_experiment(one_stage(config, stage), splits)
        if not isinstance(experiment, Classifier):
            raise ValueError("a generative model trains in one stage: leave the configuration's stages out")
        stages.append(_restricted(experiment, stage, stages[-1].end if stages else 0))
    return tuple(stages)


def one_stage(config: Config, stage: StageConfig) -> Config:
    """Return the configuration of a stage by itself; what it freezes and which objectives count are no part of it."""
    return dataclasses.replace(
        config,
        stages=(),
        method=stage.method or config.method,
        optimizer=stage.optimizer or config.optimizer,
        train=dataclasses.replace(config.train, epochs=stage.epochs or config.train.epochs),
    )


def modules_of(parts: Iterable[str], modules: Iterable[str], title: str) -> tuple[str, ...]:
    """Return the modules (names in `params`) that parts of a model name.

    Raises:
      ValueError: a part that the model does not have; the nearest that it has is told.

    >>> modules_of(["audio", "fusion"], ["encoders_audio", "heads_audio", "fusion", "encoders_image"], "first")
    ('encoders_audio', 'fusion', 'heads_audio')
    >>> modules_of(["encoder/imag"], ["encoders_image"], "first")
    Traceback (most recent call last):
    ...
    ValueError: stage 'first' freezes 'encoder/imag', which the model does not have; did you mean 'encoder/image'?
    """
    labels: dict[str, str] = {name: parameter_groups({name: {"": 0}})[name][""] for name in modules}
    known = {*labels.values(), *(side for label in labels.values() for side in label.split("/"))}
    for part in parts:
        _check_known(part, known, f"stage {title!r} freezes {part!r}, which the model does not have")
    wanted = set(parts)
    return tuple(sorted(name for name, label in labels.items() if wanted & {label, *label.split("/")}))


def _check_known(name: str, known: Iterable[str], message: str) -> None:
    known = sorted(known)
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        raise ValueError(f"{message}; " + (f"did you mean {near[0]!r}?" if near else f"it has {', '.join(known)}"))


def _restricted(experiment: Classifier, stage: StageConfig, start: int) -> Classifier:
    state = jax.eval_shape(experiment.initial_state)
    modules, title = sorted(state.params), stage.title
    frozen = modules_of(stage.frozen, modules, title)
    if len(frozen) == len(modules):
        raise ValueError(f"stage {title!r} freezes everything: {', '.join(stage.frozen)} are all parts of the model")
    counted = None
    for name in stage.objectives:
        _check_known(
            name, experiment.names, f"stage {title!r} counts objective {name!r}, which the model does not have"
        )
        held_out = experiment.splits.validation
        if name in held_out.modalities and not held_out.has(name).any():
            raise ValueError(
                f"stage {title!r} counts objective {name!r}, but no example of the validation split has that modality: "
                "there would be nothing to choose the best weights by"
            )
    if stage.objectives:
        counted = tuple(name in stage.objectives for name in experiment.names)
        asked = [name for name in experiment.names if name in stage.objectives]
        reached = reached_modules(_on_one_device(experiment), state, _one_batch(experiment.splits), asked)
        if not reached - set(frozen):
            raise ValueError(
                f"stage {title!r} trains nothing: {', '.join(asked)} reach only {', '.join(sorted(reached)) or 'no part'}"
                + (f", and {', '.join(stage.frozen)} are frozen" if frozen else "")
                + f" (method {experiment.config.method.name!r})"
            )
        frozen = tuple(name for name in modules if name in frozen or name not in reached)
    training: Any = dataclasses.replace(experiment.training, frozen=frozen, counted=counted)
    return dataclasses.replace(experiment, training=training, start=start, title=title)


def _on_one_device(experiment: Classifier) -> Training:
    """Return the stage's training without an axis of devices, to be traced outside of pmap."""
    train = experiment.splits.train
    inference = build_inference(experiment.config, train.modalities, train.task, train.preprocess)
    return dataclasses.replace(experiment.training, inference=inference, axis_name=None)


def _one_batch(splits: Splits) -> Batch:
    return gather(splits.train, np.zeros(1, np.int64))
