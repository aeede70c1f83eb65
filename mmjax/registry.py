"""Every kind that the command line finds by its name, by section; an absent section means the first of its kinds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmjax.config import DataConfig, EncoderConfig, FusionConfig, MethodConfig, OptimizerConfig, ScheduleConfig
from mmjax.data import SOURCES
from mmjax.generative.methods import GENERATIVE_METHODS
from mmjax.models import ENCODERS, FUSIONS
from mmjax.optim import METHODS
from mmjax.train.optimizer import OPTIMIZERS, SCHEDULES

KINDS: Mapping[type, Mapping[str, type[Any]]] = {
    DataConfig: SOURCES,
    EncoderConfig: ENCODERS,
    FusionConfig: FUSIONS,
    MethodConfig: METHODS | GENERATIVE_METHODS,
    OptimizerConfig: OPTIMIZERS,
    ScheduleConfig: SCHEDULES,
}
"""{base class of a section: {name: class}}"""
