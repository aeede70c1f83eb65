"""Optimizers and schedules by configuration: thin names for Optax's own."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax
import optax

from mmjax.config import OptimizerConfig, ScheduleConfig


def _kernels(params: Any) -> Any:
    """Mask of the parameters that weight decay acts on: matrices and filters, never biases, scales or offsets."""
    return jax.tree.map(lambda p: p.ndim >= 2, params)


def _require(option: str, value: Any, ok: bool, right: str) -> None:
    if not ok:
        raise ValueError(f"{option} must be {right}, got {value!r}")


@dataclass(frozen=True, kw_only=True)
class _Warmed(ScheduleConfig):
    warmup_steps: int = 0
    """Steps of linear warm-up from 0 to the base value."""

    def validate(self) -> None:
        """Raise ValueError naming an option out of range."""
        _require("schedule.warmup_steps", self.warmup_steps, self.warmup_steps >= 0, "at least 0")

    def shape(self, base: float, steps: int) -> optax.Schedule:
        """Return the part after the warm-up, over `steps` steps."""
        raise TypeError(f"{type(self).__name__} is a base")

    def build(self, base: float, total_steps: int) -> optax.Schedule:
        """Return step -> value: warm-up, then this shape over the rest of the run."""
        after = self.shape(base, max(total_steps - self.warmup_steps, 1))
        if self.warmup_steps == 0:
            return after
        # starts above 0, so that the first step already does something
        warm = optax.linear_schedule(base / self.warmup_steps, base, max(self.warmup_steps - 1, 1))
        return optax.join_schedules([warm, after], [self.warmup_steps])


@dataclass(frozen=True, kw_only=True)
class ConstantConfig(_Warmed):
    """The base value throughout, after the warm-up."""

    name: str = "constant"

    def shape(self, base: float, steps: int) -> optax.Schedule:
        """Return the constant."""
        return optax.constant_schedule(base)


@dataclass(frozen=True, kw_only=True)
class LinearConfig(_Warmed):
    """A straight line from the base value to a share of it at the end of the run."""

    name: str = "linear"
    end: float = 0.0
    """Value at the end, as a share of the base value; at least 0."""

    def validate(self) -> None:
        """Raise ValueError naming an option out of range."""
        super().validate()
        _require("schedule.end", self.end, 0 <= self.end < math.inf, "a finite number of at least 0")

    def shape(self, base: float, steps: int) -> optax.Schedule:
        """Return the line."""
        return optax.linear_schedule(base, base * self.end, steps)


@dataclass(frozen=True, kw_only=True)
class CosineConfig(_Warmed):
    """Half a cosine from the base value to a share of it at the end of the run."""

    name: str = "cosine"
    end: float = 0.0
    """Value at the end, as a share of the base value; at least 0."""

    def validate(self) -> None:
        """Raise ValueError naming an option out of range."""
        super().validate()
        _require("schedule.end", self.end, 0 <= self.end < math.inf, "a finite number of at least 0")

    def shape(self, base: float, steps: int) -> optax.Schedule:
        """Return the half cosine."""
        return optax.cosine_decay_schedule(base, steps, alpha=self.end)


@dataclass(frozen=True, kw_only=True)
class InverseConfig(_Warmed):
    """The base value divided by 1 + decay * step / every."""

    name: str = "inverse"
    decay: float = 0.005
    """How much is added to the divisor each `every` steps, at least 0."""
    every: int = 1
    """Steps that count as one, such as those of an epoch."""

    def validate(self) -> None:
        """Raise ValueError naming an option out of range."""
        super().validate()
        _require("schedule.decay", self.decay, self.decay >= 0, "at least 0")
        _require("schedule.every", self.every, self.every >= 1, "at least 1")

    def shape(self, base: float, steps: int) -> optax.Schedule:
        """Return the decay."""
        return lambda step: base / (1 + self.decay * step / self.every)


@dataclass(frozen=True, kw_only=True)
class _Optimizer(OptimizerConfig):
    def validate(self) -> None:
        """Raise ValueError naming an option out of range."""
        _require("optimizer.learning_rate", self.learning_rate, 0 < self.learning_rate < math.inf, "finite and above 0")
        _require("optimizer.weight_decay", self.weight_decay, self.weight_decay >= 0, "at least 0")
        _require("optimizer.clip_norm", self.clip_norm, self.clip_norm is None or self.clip_norm > 0, "above 0 or None")

    def rate(self, total_steps: int) -> optax.ScalarOrSchedule:
        """Return the learning rate: a number, or the schedule."""
        if self.schedule is None:
            return self.learning_rate
        return self.schedule.build(self.learning_rate, total_steps)

    def before(self) -> list[optax.GradientTransformation]:
        """Return what comes first: clipping."""
        return [] if self.clip_norm is None else [optax.clip_by_global_norm(self.clip_norm)]

    def l2(self) -> list[optax.GradientTransformation]:
        """Return weight decay as an L2 term of the gradient."""
        return [optax.add_decayed_weights(self.weight_decay, mask=_kernels)] if self.weight_decay else []


@dataclass(frozen=True, kw_only=True)
class SGDConfig(_Optimizer):
    """Stochastic gradient descent."""

    name: str = "sgd"
    momentum: float = 0.9
    """Momentum, in [0, 1); 0: none."""
    nesterov: bool = False
    """Whether the momentum is Nesterov's."""

    def validate(self) -> None:
        """Raise ValueError naming an option out of range."""
        super().validate()
        _require("optimizer.momentum", self.momentum, 0 <= self.momentum < 1, "in [0, 1)")

    def build(self, total_steps: int) -> optax.GradientTransformation:
        """Make clipping, weight decay, SGD."""
        sgd = optax.sgd(self.rate(total_steps), self.momentum or None, self.nesterov)
        return optax.chain(*self.before(), *self.l2(), sgd)


@dataclass(frozen=True, kw_only=True)
class AdamConfig(_Optimizer):
    """Adam, weight decay as an L2 term."""

    name: str = "adam"
    b1: float = 0.9
    """Decay of the mean of the gradients."""
    b2: float = 0.999
    """Decay of the mean of their squares."""
    eps: float = 1e-8
    """Added to the root of the mean square."""

    def validate(self) -> None:
        """Raise ValueError naming an option out of range."""
        super().validate()
        _require("optimizer.b1", self.b1, 0 <= self.b1 < 1, "in [0, 1)")
        _require("optimizer.b2", self.b2, 0 <= self.b2 < 1, "in [0, 1)")
        _require("optimizer.eps", self.eps, self.eps > 0, "above 0")

    def build(self, total_steps: int) -> optax.GradientTransformation:
        """Make clipping, weight decay, Adam."""
        adam = optax.adam(self.rate(total_steps), self.b1, self.b2, self.eps)
        return optax.chain(*self.before(), *self.l2(), adam)


@dataclass(frozen=True, kw_only=True)
class AdamWConfig(AdamConfig):
    """Adam with decoupled weight decay."""

    name: str = "adamw"

    def build(self, total_steps: int) -> optax.GradientTransformation:
        """Make clipping, AdamW."""
        adamw = optax.adamw(
            self.rate(total_steps), self.b1, self.b2, self.eps, weight_decay=self.weight_decay, mask=_kernels
        )
        return optax.chain(*self.before(), adamw)


OPTIMIZERS: dict[str, type[OptimizerConfig]] = {"sgd": SGDConfig, "adam": AdamConfig, "adamw": AdamWConfig}
SCHEDULES: dict[str, type[ScheduleConfig]] = {
    "constant": ConstantConfig,
    "linear": LinearConfig,
    "cosine": CosineConfig,
    "inverse": InverseConfig,
}
