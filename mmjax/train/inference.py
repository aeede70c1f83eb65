"""From a configuration to what it takes to predict; the same for training and for a model that was saved."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn

from mmjax.config import Config
from mmjax.data import Task
from mmjax.generative.config import GenerativeConfig
from mmjax.generative.methods import GenerativeMethod
from mmjax.models.experts import ExpertsConfig
from mmjax.models.multimodal import build_model
from mmjax.train.step import Inference


def build_inference(
    config: Config,
    modalities: tuple[str, ...],
    task: Task,
    preprocess: Mapping[str, Callable[[Any], Any]],
    *,
    axis_name: str | None = None,
) -> Inference:
    """Make the model that `config` describes: a `MultiModal`, a product of experts, or a generative one.

    Raises:
      ValueError: an option for a modality that the data do not have; a method that cannot train the model.
    """
    model: nn.Module
    if isinstance(config.model, ExpertsConfig):
        model = config.model.build(modalities, task, probe_heads=config.method.probe_heads, axis_name=axis_name)
    elif not isinstance(config.model, GenerativeConfig):
        model = build_model(
            config.model, modalities, task.num_outputs, probe_heads=config.method.probe_heads, axis_name=axis_name
        )
    elif isinstance(config.method, GenerativeMethod):
        model = config.model.build(modalities, task.num_outputs, config.method.num_chains)
    else:
        raise ValueError(
            f"method {config.method.name} balances a MultiModal; the model is generative: take one of pcd, "
            "cd_percloss, multi_prediction, hybrid, recurrent"
        )
    return Inference(model, task, preprocess)
