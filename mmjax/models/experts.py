"""I2M2: a product of an expert on all modalities together (inter) and one on each alone (intra).

    log p(y|x) = log p_inter(y|x_1..x_M) + Σ_m log p_m(y|x_m) − log Z(x)

Up to what normalises, logs of probabilities are logits: the product's logits are the sum of the experts' logits, for the
softmax of single labels as for the sigmoid of each of several labels. One loss, on the product, trains all; no expert has
a loss of its own unless the method of balancing gives it one.

Source: Madaan et al., "Jointly Modeling Inter- & Intra-Modality Dependencies" (2024).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from mmjax.config import EncoderConfig, ModelConfig
from mmjax.models.encoders import MLPConfig
from mmjax.models.fusion import ConcatConfig, DecisionFusion, ProductFusion
from mmjax.models.heads import Head, HeadOutput, LastLayer
from mmjax.models.multimodal import MultiModal, Outputs
from mmjax.models.options import check_option
from mmjax.models.tokens import as_vector
from mmjax.objectives import FUSION

Kind = Literal["i2m2", "intra", "inter"]

INTER = "inter"
"""Name of the expert on all modalities among the outputs of I2M2."""


class ExpertPair(nn.Module):
    """The encoders of one modality, for its own expert and for the joint one: x [B, ...] -> features [B, D_intra + D_inter].

    Tokens [B, T, D] become the mean over the real ones.

    >>> from mmjax.models import MLP
    >>> pair = ExpertPair(intra=MLP(4), inter=MLP(6))
    >>> pair.init_with_output(jax.random.key(0), jnp.ones((2, 3)), False)[0].shape
    (2, 10)
    """

    intra: nn.Module
    inter: nn.Module

    def __call__(self, x: Array, train: bool) -> Array:
        """Encode x twice, and put the features side by side."""
        return jnp.concatenate([self.alone(x, train), as_vector(self.inter(x, train))], axis=-1)

    def alone(self, x: Array, train: bool) -> Array:
        """Return the features of the modality's own expert, [B, D_intra]."""
        return as_vector(self.intra(x, train))


class ProductOfExperts(MultiModal):
    """A `MultiModal` that says the product of an expert on all modalities and of each modality's own.

    encoders: one `ExpertPair` a modality; fusion: the joint expert's, ({modality: features}, train, present) ->
    `HeadOutput`; heads: the experts on single modalities. `Outputs.logits` are the product's; `unimodal_logits` each
    modality's expert's, and `experts` has the joint one's, as "inter". An absent modality's own expert is left out of
    the product. probe_heads: the experts on single modalities learn through the product alone.

    Raises:
      ValueError: as `MultiModal`; a fusion of decisions, which the product is itself; a modality called "inter".

    >>> from mmjax.models import MLP, ConcatFusion
    >>> names = ("audio", "image")
    >>> model = ProductOfExperts(
    ...     encoders={m: ExpertPair(MLP(4), MLP(6)) for m in names},
    ...     fusion=ConcatFusion(num_outputs=3),
    ...     heads={m: Head(3) for m in names},
    ... )
    >>> batch = {"image": jnp.ones((2, 8)), "audio": jnp.ones((2, 5))}
    >>> outputs = model.init_with_output(jax.random.key(0), batch)[0]
    >>> total = outputs.experts["inter"] + sum(outputs.unimodal_logits.values())
    >>> bool(jnp.allclose(outputs.logits, total)), sorted(outputs.by_objective)
    (True, ['audio', 'fusion', 'image'])
    """

    def decide(self, features: Mapping[str, Array], train: bool = False, present: Array | None = None) -> Outputs:
        """Return the outputs that follow from the features [B, D_intra + D_inter] of every modality."""
        self._check(features, "features")
        self._check(self.heads, "heads")
        if isinstance(self.fusion, DecisionFusion):
            raise ValueError(
                f"the joint expert needs a fusion of features; {type(self.fusion).__name__} fuses decisions, as the "
                "product does"
            )
        if INTER in self.encoders:
            raise ValueError(f"no modality may be called {INTER!r}: that is the name of the joint expert")
        widths = {m: self._width(m) for m in sorted(features)}
        joint: HeadOutput = self.fusion({m: features[m][:, d:] for m, d in widths.items()}, train, present)
        alone: dict[str, HeadOutput] = {m: self.heads[m](features[m][:, :d], train) for m, d in widths.items()}
        separate: Any = ProductFusion(parent=None).apply({}, alone, train, present)
        product = _times(joint, separate)
        if self.probe_heads:
            alone = jax.lax.stop_gradient(alone)
        decisions = {FUSION: product, **alone}
        return Outputs(
            features=dict(features),
            unimodal_logits={m: out.logits for m, out in alone.items()},
            logits=product.logits,
            last_layer={name: out.last_layer for name, out in decisions.items() if out.last_layer is not None},
            present=present,
            experts={INTER: joint.logits},
        )

    def __call__(self, inputs: Mapping[str, Array], train: bool = False, present: Array | None = None) -> Outputs:
        """Encode and decide."""
        features = self.encode(inputs, train, present)
        if self.is_initializing():  # `decide` reads off the heads' weights where the features are to be parted
            for m in sorted(inputs):
                pair: Any = self.encoders[m]
                self.heads[m](pair.alone(inputs[m], train), train)
        return self.decide(features, train, present)

    def _width(self, modality: str) -> int:
        weights: Any = self.heads[modality].variables["params"]
        return int(weights.get("dense_0", weights["last"])["kernel"].shape[0])


def _times(one: HeadOutput, other: HeadOutput) -> HeadOutput:
    """Return the product of two experts: logits, and so last layers side by side, add up."""
    logits, a, b = one.logits + other.logits, one.last_layer, other.last_layer
    if a is None or b is None:
        return HeadOutput(logits, None)
    inputs = jnp.concatenate([a.inputs, b.inputs.astype(a.inputs.dtype)], axis=-1)
    return HeadOutput(logits, LastLayer(inputs, jnp.concatenate([a.kernel, b.kernel]), a.bias + b.bias))


@dataclass(frozen=True, kw_only=True)
class ExpertsConfig(ModelConfig):
    """I2M2, or one kind of its experts alone.

    `encoders` and `head_hidden` are those of the experts on single modalities, `fusion` is the joint expert's.

    >>> from mmjax.models import LeNetConfig
    >>> own, joint = {"image": LeNetConfig(channels=3)}, {"image": LeNetConfig(channels=6)}
    >>> ExpertsConfig(encoders=own, inter_encoders=joint).experts
    'i2m2'
    """

    experts: Kind = "i2m2"
    """i2m2: the product of all; intra: of the experts on single modalities; inter: the joint expert alone."""
    inter_encoders: dict[str, EncoderConfig] = field(default_factory=dict)
    """Encoder of each modality for the joint expert; a modality not named gets an MLP with default options."""

    def validate(self) -> None:
        """Raise ValueError for an unknown kind."""
        kinds = get_args(Kind)
        check_option("model", "experts", self.experts, self.experts in kinds, f"one of {', '.join(kinds)}")

    def build(
        self,
        modalities: tuple[str, ...],
        num_outputs: int,
        *,
        probe_heads: bool = False,
        axis_name: str | None = None,
    ) -> MultiModal:
        """Make the module for these modalities. Alone, the joint expert is watched by heads that do not steer it.

        Raises:
          ValueError: fewer than two modalities; an encoder for a modality that the data do not have.
        """
        if len(modalities) < 2:
            raise ValueError(f"experts within and between modalities need at least two; the data have {modalities}")
        dtype = jnp.dtype(self.dtype)

        def built(section: str) -> dict[str, nn.Module]:
            configured: dict[str, EncoderConfig] = getattr(self, section)
            unknown = sorted(set(configured) - set(modalities))
            if unknown:
                raise ValueError(
                    f"model.{section}.{unknown[0]}: the data have no such modality, only {sorted(modalities)}"
                )
            return {m: (configured.get(m) or MLPConfig()).build(dtype=dtype, axis_name=axis_name) for m in modalities}

        alone, joint = built("encoders"), built("inter_encoders")
        heads = {m: Head(num_outputs, self.head_hidden, dtype) for m in modalities}
        if self.experts == "intra":
            return MultiModal(alone, ProductFusion(), heads, probe_heads)
        fusion = (self.fusion or ConcatConfig()).build(num_outputs, dtype=dtype, axis_name=axis_name)
        if self.experts == "inter":
            return MultiModal(joint, fusion, {m: Head(num_outputs, (), dtype) for m in modalities}, True)
        return ProductOfExperts({m: ExpertPair(alone[m], joint[m]) for m in modalities}, fusion, heads, probe_heads)
