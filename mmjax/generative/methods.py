"""Ways of training a generative model, as kinds of `MethodConfig`: each says its objectives and their weights.

Objectives: "fusion" is that of the joint; one by a modality's name is that of predicting all others from it.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from mmjax.config import MethodConfig, MethodContext
from mmjax.generative.losses import (
    cd_percloss,
    check_unit_interval,
    multi_prediction,
    persistent_contrastive_divergence,
    sparsity_penalty,
)
from mmjax.generative.mdrnn import MDRNN
from mmjax.generative.mrbm import MRBM
from mmjax.objectives import FUSION

PyTree = Any


class Losses(NamedTuple):
    """total: what is descended; values, weights: {objective: scalar}; chains: moved on, or {} where there are none."""

    total: Array
    values: dict[str, Array]
    weights: dict[str, Array]
    chains: dict[str, Array]


@dataclass(frozen=True, kw_only=True)
class GenerativeMethod(MethodConfig):
    """What trains a generative model: the weighted sum of its losses, a sparsity penalty besides.

    Example:
    >>> HybridConfig(chains=100).names(("audio", "image")), HybridConfig(chains=100).num_chains
    (('fusion', 'audio', 'image'), 100)
    >>> PCDConfig(sparsity_target=1.0).validate()
    Traceback (most recent call last):
        ...
    ValueError: method.sparsity_target must be in (0, 1), got 1.0
    """

    sparsity: float = 0.0
    """Weight of the KL divergence of each hidden unit's mean activity from the target; 0: none."""
    sparsity_target: float = 0.1
    """Wanted mean activity of the hidden units, in (0, 1)."""

    trains: ClassVar[type] = MRBM
    """Class of the models that it can train."""
    source: ClassVar[str] = "Sohn, Shang and Lee, Variation of Information"

    @property
    def num_chains(self) -> int:
        """Persistent Gibbs chains that it needs."""
        return 0

    def names(self, modalities: tuple[str, ...]) -> tuple[str, ...]:
        """Return the objectives, "fusion" first where there is one."""
        return modalities

    def losses(
        self,
        core: Any,
        params: Any,
        chains: Mapping[str, Array],
        inputs: Mapping[str, Array],
        key: Array,
        step: Array,
    ) -> Losses:
        """Return the losses of inputs {modality: [B, D_m]} at a step; pure."""
        raise TypeError(f"{type(self).__name__} is a base: take one of the methods of mmjax.generative")

    def penalty(self, core: Any, params: Any, inputs: Mapping[str, Array]) -> Array:
        """Return the sparsity penalty, times its weight, of the hidden units given all modalities."""
        if not self.sparsity:
            return jnp.zeros(())
        return self.sparsity * sparsity_penalty(core.hidden_logits(params, inputs), self.sparsity_target)

    def trained(self, core: Any, params: PyTree, step: Array) -> PyTree | None:
        """Return a tree like params of scalar bools, which parameters this step trains; None: all."""
        return None

    def check(self, core: Any) -> None:
        """Raise ValueError unless this method can train the model."""
        if not isinstance(core, self.trains):
            raise ValueError(
                f"method {self.name} trains an {self.trains.__name__}; the model is an {type(core).__name__}"
            )

    def check_length(self, core: Any, total_steps: int) -> None:
        """Warn of a run that is too short for what this method does in it."""

    def build(self, context: MethodContext) -> optax.GradientTransformationExtraArgs:
        """Raise ValueError: there is nothing to combine."""
        raise ValueError(f"method {self.name} trains a generative model (model: MRBMConfig, MDRNNConfig)")

    def validate(self) -> None:
        """Raise ValueError naming an option out of range."""
        if not 0 <= self.sparsity < float("inf"):
            raise ValueError(f"method.sparsity must be at least 0, got {self.sparsity}")
        check_unit_interval("method.sparsity_target", self.sparsity_target, open_ends=True)

    def _at_least(self, least: int, *options: str) -> None:
        for option in options:
            value = getattr(self, option)
            if value is not None and value < least:
                raise ValueError(f"method.{option} must be at least {least}, got {value}")


def _weighted(values: dict[str, Array], weights: Mapping[str, float], chains: dict[str, Array]) -> Losses:
    total = sum((weights[name] * value for name, value in values.items()), jnp.zeros(()))
    return Losses(total, values, {name: jnp.asarray(w, jnp.float32) for name, w in weights.items()}, chains)


@dataclass(frozen=True, kw_only=True)
class PCDConfig(GenerativeMethod):
    """Maximum likelihood of the joint, by persistent contrastive divergence.

    Example:
    >>> PCDConfig(chains=100).num_chains, PCDConfig().names(("audio", "image"))
    (100, ('fusion',))
    >>> PCDConfig(steps=0).validate()
    Traceback (most recent call last):
        ...
    ValueError: method.steps must be at least 1, got 0
    """

    name: str = "pcd"
    steps: int = 10
    """Gibbs steps of the chains, a training step."""
    chains: int = 500
    """Number of chains."""

    @property
    def num_chains(self) -> int:
        """Persistent Gibbs chains that it needs."""
        return self.chains

    def names(self, modalities: tuple[str, ...]) -> tuple[str, ...]:
        """Return "fusion"."""
        return (FUSION,)

    def losses(
        self,
        core: MRBM,
        params: Any,
        chains: Mapping[str, Array],
        inputs: Mapping[str, Array],
        key: Array,
        step: Array,
    ) -> Losses:
        """Return the loss whose gradient estimates that of the negative log-likelihood."""
        loss, moved = persistent_contrastive_divergence(core, params, inputs, chains, key, steps=self.steps)
        return _weighted({FUSION: loss}, {FUSION: 1.0}, moved)

    def validate(self) -> None:
        """Raise ValueError naming an option out of range."""
        super().validate()
        self._at_least(1, "steps", "chains")


@dataclass(frozen=True, kw_only=True)
class CDPercLossConfig(GenerativeMethod):
    """Variation of information by a perceptron loss on samples of the conditionals (CD-PercLoss).

    Example:
    >>> CDPercLossConfig(steps=5).names(("audio", "image"))
    ('audio', 'image')
    >>> CDPercLossConfig(steps=0).validate()
    Traceback (most recent call last):
        ...
    ValueError: method.steps must be at least 1, got 0
    """

    name: str = "cd_percloss"
    steps: int = 10
    """Gibbs steps with one modality clamped, a training step."""

    def losses(
        self,
        core: MRBM,
        params: Any,
        chains: Mapping[str, Array],
        inputs: Mapping[str, Array],
        key: Array,
        step: Array,
    ) -> Losses:
        """Return half the gap of free energy to the lowest sample, by direction."""
        values = cd_percloss(core, params, inputs, key, steps=self.steps)
        return _weighted(values, dict.fromkeys(values, 1.0), {})

    def validate(self) -> None:
        """Raise ValueError naming an option out of range."""
        super().validate()
        self._at_least(1, "steps")


@dataclass(frozen=True, kw_only=True)
class MultiPredictionConfig(GenerativeMethod):
    """Multi-prediction: recurrent inference of each modality from the others, trained by backpropagation.

    Example:
    >>> MultiPredictionConfig(n_steps=10, backprop_steps=5).names(("audio", "image"))
    ('audio', 'image')
    >>> MultiPredictionConfig(keep_max=2.0).validate()
    Traceback (most recent call last):
        ...
    ValueError: method.keep_max must be in [0, 1], got 2.0
    """

    name: str = "multi_prediction"
    n_steps: int = 5
    """Rounds of inference."""
    keep_max: float = 0.25
    """Largest share of the predicted modality that stays visible; the share is drawn anew for each batch."""
    backprop_steps: int | None = None
    """Last rounds through which gradients reach back; None: all."""

    def losses(
        self,
        core: MRBM,
        params: Any,
        chains: Mapping[str, Array],
        inputs: Mapping[str, Array],
        key: Array,
        step: Array,
    ) -> Losses:
        """Return the cross-entropy of the hidden entries, by direction."""
        values = multi_prediction(
            core,
            params,
            inputs,
            key,
            n_steps=self.n_steps,
            keep_max=self.keep_max,
            backprop_steps=self.backprop_steps,
        )
        return _weighted(values, dict.fromkeys(values, 1.0), {})

    def validate(self) -> None:
        """Raise ValueError naming an option out of range."""
        super().validate()
        self._at_least(0, "n_steps")
        self._at_least(1, "backprop_steps")
        check_unit_interval("method.keep_max", self.keep_max)


@dataclass(frozen=True, kw_only=True)
class HybridConfig(MultiPredictionConfig):
    """alpha times multi-prediction plus 1 - alpha times maximum likelihood.

    Example:
    >>> HybridConfig(alpha=0.9).names(("audio", "image"))
    ('fusion', 'audio', 'image')
    >>> HybridConfig(alpha=-0.1).validate()
    Traceback (most recent call last):
        ...
    ValueError: method.alpha must be in [0, 1], got -0.1
    """

    name: str = "hybrid"
    keep_max: float = 0.1
    """Largest share of the predicted modality that stays visible; the share is drawn anew for each batch."""
    alpha: float = 0.5
    """Share of multi-prediction, in [0, 1]."""
    steps: int = 10
    """Gibbs steps of the chains, a training step."""
    chains: int = 500
    """Number of chains."""

    @property
    def num_chains(self) -> int:
        """Persistent Gibbs chains that it needs."""
        return self.chains

    def names(self, modalities: tuple[str, ...]) -> tuple[str, ...]:
        """Return "fusion" (the likelihood) and the modalities."""
        return (FUSION, *modalities)

    def losses(
        self,
        core: MRBM,
        params: Any,
        chains: Mapping[str, Array],
        inputs: Mapping[str, Array],
        key: Array,
        step: Array,
    ) -> Losses:
        """Return the losses of both parts."""
        predict_key, chain_key = jax.random.split(key)
        values = super().losses(core, params, {}, inputs, predict_key, step).values
        loss, moved = persistent_contrastive_divergence(core, params, inputs, chains, chain_key, steps=self.steps)
        weights = dict.fromkeys(values, self.alpha) | {FUSION: 1 - self.alpha}
        return _weighted(values | {FUSION: loss}, weights, moved)

    def validate(self) -> None:
        """Raise ValueError naming an option out of range."""
        super().validate()
        self._at_least(1, "steps", "chains")
        check_unit_interval("method.alpha", self.alpha)


@dataclass(frozen=True, kw_only=True)
class RecurrentConfig(GenerativeMethod):
    """MDRNN: layer-wise pretraining by contrastive divergence, then the whole network unrolled and fine-tuned.

    One run from end to end: the levels one after the other, each for `pretrain_steps` steps with all else held, then
    fine-tuning for the rest. Before fine-tuning the values are reconstruction errors ("fusion": of the joint units); an
    objective that a level does not have weighs 0, and its value is then 0 and means nothing.

    Example:
    >>> config = RecurrentConfig(pretrain_steps=100, directions=("audio",))
    >>> config.check(MDRNN({"audio": "binary", "image": "binary"}, {"audio": (4,), "image": (4,)}, num_hidden=3))
    >>> config.check(MRBM({"audio": "binary", "image": "binary"}, num_hidden=3))
    Traceback (most recent call last):
        ...
    ValueError: method recurrent trains an MDRNN; the model is an MRBM
    """

    name: str = "recurrent"
    pretrain_steps: int = 1000
    """Training steps a level; 0: no pretraining."""
    cd_steps: int = 1
    """Gibbs steps of contrastive divergence."""
    n_steps: int = 10
    """Rounds of inference."""
    backprop_steps: int | None = None
    """Last rounds through which gradients reach back; None: all."""
    directions: tuple[str, ...] = ()
    """Modalities from which to predict the others in fine-tuning; empty: each in turn."""

    trains: ClassVar[type] = MDRNN

    def check(self, core: Any) -> None:
        """Raise ValueError unless this method can train the model, in these directions."""
        super().check(core)
        unknown = sorted(set(self.directions) - set(core.modalities))
        if unknown:
            raise ValueError(f"method.directions names {unknown[0]!r}; the modalities are {list(core.modalities)}")

    def check_length(self, core: Any, total_steps: int) -> None:
        """Warn (UserWarning) of a run that is over before fine-tuning begins."""
        before = self.pretrain_steps * (core.depth + 1)
        if before >= total_steps:
            warnings.warn(
                f"the run's {total_steps} steps end before fine-tuning begins: pretraining {core.depth + 1} levels takes "
                f"{before} (method.pretrain_steps {self.pretrain_steps} a level)",
                UserWarning,
                stacklevel=2,
            )

    def names(self, modalities: tuple[str, ...]) -> tuple[str, ...]:
        """Return "fusion" (the joint units in pretraining) and the modalities."""
        return (FUSION, *modalities)

    def losses(
        self,
        core: MDRNN,
        params: Any,
        chains: Mapping[str, Array],
        inputs: Mapping[str, Array],
        key: Array,
        step: Array,
    ) -> Losses:
        """Return the losses of the level, or of fine-tuning, that the step belongs to."""
        names = self.names(core.modalities)
        zero = jnp.zeros((), inputs[core.modalities[0]].dtype)

        def out(total: Array, values: dict[str, Array]) -> tuple[Array, dict[str, Array], dict[str, Array]]:
            return total, {n: values.get(n, zero) for n in names}, {n: zero + (n in values) for n in names}

        def level(number: int, params: Any) -> tuple[Array, dict[str, Array], dict[str, Array]]:
            return out(*core.layerwise_divergence(params, inputs, key, number, steps=self.cd_steps))

        def fine_tune(params: Any) -> tuple[Array, dict[str, Array], dict[str, Array]]:
            values = multi_prediction(
                core,
                params,
                inputs,
                key,
                n_steps=self.n_steps,
                keep_max=0.0,
                backprop_steps=self.backprop_steps,
                directions=self.directions,
            )
            return out(sum(values.values(), zero), values)

        branches = [partial(level, number) for number in range(core.depth + 1)]
        total, values, weights = jax.lax.switch(self._phase(core, step), [*branches, fine_tune], params)
        return Losses(total, values, weights, {})

    def _phase(self, core: MDRNN, step: Array) -> Array:
        """Return the level, or depth + 1 for fine-tuning."""
        last = core.depth + 1
        return jnp.minimum(step // self.pretrain_steps, last) if self.pretrain_steps else jnp.asarray(last)

    def trained(self, core: MDRNN, params: PyTree, step: Array) -> PyTree | None:
        """Return which parameters this step trains: a level's, or all."""
        if not self.pretrain_steps:
            return None
        phase = self._phase(core, step)
        return jax.tree.map(lambda level: (phase == level) | (phase > core.depth), core.levels(params))

    def validate(self) -> None:
        """Raise ValueError naming an option out of range."""
        super().validate()
        self._at_least(0, "pretrain_steps", "n_steps")
        self._at_least(1, "cd_steps", "backprop_steps")


GENERATIVE_METHODS: dict[str, type[GenerativeMethod]] = {
    "pcd": PCDConfig,
    "cd_percloss": CDPercLossConfig,
    "multi_prediction": MultiPredictionConfig,
    "hybrid": HybridConfig,
    "recurrent": RecurrentConfig,
}
