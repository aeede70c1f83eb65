"""The multi-modal model: an encoder and a head a modality, and a fusion head over all features."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
from jax import Array

from mmjax.config import ModelConfig
from mmjax.models.encoders import MLPConfig
from mmjax.models.fusion import ConcatConfig, DecisionFusion
from mmjax.models.heads import Head, HeadOutput, LastLayer
from mmjax.objectives import FUSION


@flax.struct.dataclass
class Outputs:
    """What the model says of a batch.

    features: {modality: [B, D_m] or tokens [B, T_m, D_m]}; unimodal_logits: {modality: [B, C]}; logits: [B, C], the
    fused ones; last_layer: {objective: LastLayer(inputs, kernel, bias)} of the fusion ("fusion") and each uni-modal
    head, without those that have none (evidential fusion).

    >>> import jax.numpy as jnp
    >>> outputs = Outputs({"a": jnp.ones((2, 3))}, {"a": jnp.ones((2, 5))}, jnp.zeros((2, 5)), {})
    >>> sorted(outputs.by_objective)
    ['a', 'fusion']
    """

    features: dict[str, Array]
    unimodal_logits: dict[str, Array]
    logits: Array
    last_layer: dict[str, LastLayer]

    @property
    def by_objective(self) -> dict[str, Array]:
        """Logits of every expert: {"fusion": ..., modality: ...}."""
        return {FUSION: self.logits, **self.unimodal_logits}


class MultiModal(nn.Module):
    """Encoders {modality: module}, a fusion head, and one uni-modal head a modality.

    encoders: modules (x [B, ...], train) -> [B, D_m] or tokens [B, T_m, D_m]; fusion: module ({modality: features},
    train, present) -> HeadOutput, or a `DecisionFusion`, which is given the heads' outputs instead; heads: modules
    (features, train) -> HeadOutput, the same modalities. probe_heads: the heads see stop_gradient(features), so that
    they measure each modality without steering its encoder. The heads of a `DecisionFusion` are parts of it and no
    probes: then their own logits carry a stop_gradient, and the fusion loss alone trains them.

    Raises:
      ValueError: no modality, one called "fusion", heads or inputs of other modalities than the encoders.

    >>> import jax, jax.numpy as jnp
    >>> from mmjax.models import MLP, ConcatFusion, Head
    >>> model = MultiModal(
    ...     encoders={"image": MLP(8), "audio": MLP(8)},
    ...     fusion=ConcatFusion(num_outputs=3),
    ...     heads={"image": Head(3), "audio": Head(3)},
    ... )
    >>> batch = {"image": jnp.ones((2, 4, 4, 1)), "audio": jnp.ones((2, 5, 3))}
    >>> variables = model.init(jax.random.key(0), batch)
    >>> outputs = model.apply(variables, batch)
    >>> outputs.logits.shape, sorted(outputs.unimodal_logits), outputs.features["audio"].shape
    ((2, 3), ['audio', 'image'], (2, 8))
    """

    encoders: Mapping[str, nn.Module]
    fusion: nn.Module
    heads: Mapping[str, nn.Module]
    probe_heads: bool = False

    def _check(self, given: Mapping[str, Any], what: str) -> None:
        if not self.encoders:
            raise ValueError("MultiModal needs at least one modality; encoders is empty")
        if FUSION in self.encoders:
            raise ValueError(f"no modality may be called {FUSION!r}: that is the name of objective 0")
        if set(given) != set(self.encoders):
            raise ValueError(f"{what} are of modalities {sorted(given)}; the encoders of {sorted(self.encoders)}")

    def encode(self, inputs: Mapping[str, Array], train: bool = False) -> dict[str, Array]:
        """Return the features {modality: [B, D_m] or [B, T_m, D_m]} of inputs {modality: [B, ...]}."""
        self._check(inputs, "inputs")
        return {m: self._features(m, inputs[m], train) for m in sorted(inputs)}

    def _features(self, modality: str, x: Array, train: bool) -> Array:
        try:
            features = self.encoders[modality](x, train)
        except ValueError as error:
            raise ValueError(f"encoder of {modality!r}: {error}") from error
        if features.ndim not in (2, 3) or features.shape[0] != x.shape[0]:
            raise ValueError(
                f"the encoder of {modality!r} must give features [{x.shape[0]}, D] or tokens [{x.shape[0]}, T, D] for "
                f"inputs {x.shape}, got {features.shape}"
            )
        return features

    def decide(self, features: Mapping[str, Array], train: bool = False, present: Array | None = None) -> Outputs:
        """Return the outputs that follow from the features alone.

        present: bool [B, M], columns by sorted modality, which features the fusion may use; None: all.
        """
        self._check(features, "features")
        self._check(self.heads, "heads")
        late = isinstance(self.fusion, DecisionFusion)
        probes = self.probe_heads and not late
        seen = jax.lax.stop_gradient(dict(features)) if probes else features
        alone: dict[str, HeadOutput] = {m: self.heads[m](seen[m], train) for m in sorted(features)}
        fused: HeadOutput = self.fusion(alone if late else features, train, present)
        if late and self.probe_heads:
            alone = jax.lax.stop_gradient(alone)
        decisions = {FUSION: fused, **alone}
        return Outputs(
            features=dict(features),
            unimodal_logits={m: out.logits for m, out in alone.items()},
            logits=fused.logits,
            last_layer={name: out.last_layer for name, out in decisions.items() if out.last_layer is not None},
        )

    def __call__(self, inputs: Mapping[str, Array], train: bool = False, present: Array | None = None) -> Outputs:
        """Encode and decide."""
        return self.decide(self.encode(inputs, train), train, present)


def parameter_groups(params: Mapping[str, Any]) -> Any:
    """Label every parameter of a `MultiModal`: "encoder/m", "head/m" or "fusion"; a tree like params of str.

    >>> parameter_groups({"encoders_image": {"kernel": 1}, "fusion": {"bias": 2}, "heads_image": {"bias": 3}})
    {'encoders_image': {'kernel': 'encoder/image'}, 'fusion': {'bias': 'fusion'}, 'heads_image': {'bias': 'head/image'}}
    """

    def label(name: str) -> str:
        for prefix, group in (("encoders_", "encoder/"), ("heads_", "head/")):
            if name.startswith(prefix):
                return group + name.removeprefix(prefix)
        return name

    return {name: jax.tree.map(lambda _, name=name: label(name), tree) for name, tree in params.items()}


def build_model(
    config: ModelConfig,
    modalities: tuple[str, ...],
    num_outputs: int,
    *,
    probe_heads: bool = False,
    axis_name: str | None = None,
) -> MultiModal:
    """Make the model that `config` describes, for these modalities and this number of outputs.

    Raises:
      ValueError: an encoder is configured for a modality that the data do not have.

    >>> from mmjax.config import ModelConfig
    >>> from mmjax.models import LateConfig, LeNetConfig
    >>> config = ModelConfig(encoders={"image": LeNetConfig()}, fusion=LateConfig())
    >>> model = build_model(config, ("audio", "image"), num_outputs=10)
    >>> {m: type(encoder).__name__ for m, encoder in model.encoders.items()}
    {'audio': 'MLP', 'image': 'LeNet'}
    >>> build_model(config, ("audio", "text"), num_outputs=10)
    Traceback (most recent call last):
        ...
    ValueError: model.encoders.image: the data have no such modality, only ['audio', 'text']
    """
    unknown = sorted(set(config.encoders) - set(modalities))
    if unknown:
        raise ValueError(f"model.encoders.{unknown[0]}: the data have no such modality, only {sorted(modalities)}")
    dtype = jax.numpy.dtype(config.dtype)
    fusion = config.fusion or ConcatConfig()
    encoders = {m: config.encoders.get(m) or MLPConfig() for m in modalities}
    return MultiModal(
        encoders={m: e.build(dtype=dtype, axis_name=axis_name) for m, e in encoders.items()},
        fusion=fusion.build(num_outputs, dtype=dtype, axis_name=axis_name),
        heads={m: Head(num_outputs, config.head_hidden, dtype) for m in modalities},
        probe_heads=probe_heads,
    )
