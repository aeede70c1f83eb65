"""Products of experts: one expert a modality (intra), one of all modalities together (inter), or both (I2M2).

    log p(y|x) = log p_inter(y|x_1..x_M) + Σ_m log p_m(y|x_m) − log Z(x)

For a single label Z normalises over classes, and the product's logits are the sum of the experts' logits. For
multi-label and binary answers every label is a product of Bernoulli experts of its own: the sum of logits per label.
(A binary loss on log-probabilities normalised over labels would cap every probability.) So one loss on the summed
logits is the loss of the normalised product, and there are no others.

Source: Madaan et al., "Jointly Modeling Inter- & Intra-Modality Dependencies for Multi-modal Learning" (I2M2).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax import Array

from mmjax.config import EncoderConfig, ModelConfig
from mmjax.data.dataset import Task, TaskKind
from mmjax.models.encoders import MLPConfig
from mmjax.models.fusion import ConcatConfig, DecisionFusion
from mmjax.models.fusion.inputs import check_present
from mmjax.models.fusion.late import weighted_decisions
from mmjax.models.heads import Head, HeadOutput
from mmjax.models.multimodal import Outputs, check_modalities, encode_one, objective_names_of
from mmjax.models.options import check_option
from mmjax.objectives import FUSION

ExpertKind = Literal["i2m2", "intra", "inter"]
INTER = "inter"
"""Name of the expert of all modalities together; those of single modalities have the modalities' names."""


def log_probabilities(kind: TaskKind, logits: Array) -> Array:
    """Return what logits [B, C] mean: log p(class) for classification, log p(label is 1) for multi-label answers.

    >>> jnp.exp(log_probabilities("multilabel", jnp.array([[0.0]]))).tolist()
    [[0.5]]
    """
    if kind == "classification":
        return jax.nn.log_softmax(logits)
    if kind == "multilabel":
        return jax.nn.log_sigmoid(logits)
    raise ValueError(f"experts give probabilities of classes or labels; the task is {kind}")


def product_of_experts(kind: TaskKind, logits: Mapping[str, Array]) -> Array:
    """Return the log-probabilities [B, C] of the normalised product of experts, given by their logits {name: [B, C]}.

    >>> p, q = jnp.array([[0.8, 0.2]]), jnp.array([[0.5, 0.5]])
    >>> jnp.exp(product_of_experts("classification", {"p": jnp.log(p), "q": jnp.log(q)})).round(3).tolist()
    [[0.800000011920929, 0.20000000298023224]]
    """
    if not logits:
        raise ValueError("a product needs at least one expert")
    return log_probabilities(kind, functools.reduce(jnp.add, (logits[name] for name in sorted(logits))))


@flax.struct.dataclass
class ExpertOutputs(Outputs):
    """What a product of experts says: `logits` are the product's, `unimodal_logits` each expert's.

    features: {expert: features}; the inter expert has one entry a modality, "inter.audio". With one expert alone the
    product is that expert, and `unimodal_logits` is empty. kind: of the task.

    >>> zero = jnp.zeros((1, 2))
    >>> outputs = ExpertOutputs({"a": zero, "inter.a": zero}, {"a": zero, "inter": zero}, zero, {})
    >>> {name: jnp.exp(log_p).tolist() for name, log_p in outputs.log_probabilities.items()}["inter"]
    [[0.5, 0.5]]
    """

    kind: TaskKind = flax.struct.field(pytree_node=False, default="classification")

    @property
    def log_probabilities(self) -> dict[str, Array]:
        """{"fusion": the product's, expert: its own}, [B, C]: see `log_probabilities`."""
        return {name: log_probabilities(self.kind, logits) for name, logits in self.by_objective.items()}


class JointEncoder(nn.Module):
    """The encoders of the expert of all modalities, {modality: module (x, train) -> features}.

    >>> from mmjax.models import MLP
    >>> batch = {"a": jnp.ones((2, 5)), "b": jnp.ones((2, 7))}
    >>> joint = JointEncoder({"a": MLP(4), "b": MLP(8)})
    >>> {m: z.shape for m, z in joint.init_with_output(jax.random.key(0), batch, False)[0].items()}
    {'a': (2, 4), 'b': (2, 8)}
    """

    encoders: Mapping[str, nn.Module]

    def __call__(
        self, inputs: Mapping[str, Array], train: bool, here: Mapping[str, Array | None] | None = None
    ) -> dict[str, Array]:
        """Encode {modality: [B, ...]}; here: {modality: bool [B]}, who has it; None: all have all."""
        here = here or dict.fromkeys(self.encoders)
        return {
            m: encode_one(self.encoders[m], f"{INTER}.{m}", inputs[m], train, here[m]) for m in sorted(self.encoders)
        }


class ExpertModel(nn.Module):
    """A product of experts, each with encoders of its own.

    encoders: {modality: module (x, train) -> features, "inter": JointEncoder}; heads: {modality: module (features,
    train) -> HeadOutput, "inter": a fusion module}; the same names, any of them. No parameter is shared. Objectives:
    "fusion" is the product, every expert is one of the others. probe_heads: the experts' own logits carry a
    stop_gradient, so that the product's loss alone trains everything (as published); without, whoever balances the
    objectives trains the experts by their own losses, too.

    Raises:
      ValueError: no expert, heads of other experts than the encoders, inputs of other modalities, one called "inter".

    >>> from mmjax.models import MLP, ConcatFusion
    >>> model = ExpertModel(
    ...     encoders={"a": MLP(4), "b": MLP(4), "inter": JointEncoder({"a": MLP(8), "b": MLP(8)})},
    ...     heads={"a": Head(3), "b": Head(3), "inter": ConcatFusion(3)},
    ...     modalities=("a", "b"),
    ... )
    >>> batch = {"a": jnp.ones((2, 5)), "b": jnp.ones((2, 7))}
    >>> outputs = model.apply(model.init(jax.random.key(0), batch), batch)
    >>> sorted(outputs.by_objective), outputs.features["inter.b"].shape
    (['a', 'b', 'fusion', 'inter'], (2, 8))
    """

    encoders: Mapping[str, nn.Module]
    heads: Mapping[str, nn.Module]
    modalities: tuple[str, ...]
    kind: TaskKind = "classification"
    probe_heads: bool = False

    @property
    def objectives(self) -> tuple[str, ...]:
        """Names of the objectives: the product, called "fusion", and the experts, if there are several."""
        return objective_names_of(() if len(self.encoders) == 1 else self.encoders)

    def encode(
        self, inputs: Mapping[str, Array], train: bool = False, present: Array | None = None
    ) -> dict[str, Array]:
        """Return the features of inputs {modality: [B, ...]}: {modality: ..., "inter.modality": ...}."""
        check_modalities(self.modalities)
        if INTER in self.modalities:
            raise ValueError(f"no modality may be called {INTER!r}: that is the name of the expert of all of them")
        if not self.encoders or set(self.heads) != set(self.encoders):
            raise ValueError(f"heads are of the experts {sorted(self.heads)}; the encoders of {sorted(self.encoders)}")
        if set(inputs) != set(self.modalities):
            raise ValueError(f"inputs are of modalities {sorted(inputs)}; the experts of {sorted(self.modalities)}")
        here: dict[str, Array | None] = dict.fromkeys(inputs)
        if present is not None:
            names = sorted(inputs)
            flags = check_present(present, inputs[names[0]].shape[0], len(names))
            here = {m: flags[:, i] for i, m in enumerate(names)}
        features: dict[str, Array] = {}
        for expert in sorted(self.encoders):
            if expert == INTER:
                together = self.encoders[expert](inputs, train, here)
                features |= {f"{INTER}.{m}": z for m, z in together.items()}
            else:
                features[expert] = encode_one(self.encoders[expert], expert, inputs[expert], train, here[expert])
        return features

    def decide(self, features: Mapping[str, Array], train: bool = False, present: Array | None = None) -> ExpertOutputs:
        """Return the outputs that follow from the features alone.

        present: bool [B, M], columns by sorted modality; the expert of an absent modality is left out of the product,
        and the inter expert's fusion ignores its features. None: all.
        """
        experts: dict[str, HeadOutput] = {}
        for expert in sorted(self.encoders):
            if expert == INTER:
                together = {m: features[f"{INTER}.{m}"] for m in self.modalities}
                experts[expert] = self.heads[expert](together, train, present)
            else:
                experts[expert] = self.heads[expert](features[expert], train)
        names = sorted(self.modalities)
        here = check_present(present, next(iter(features.values())).shape[0], len(names))
        always = jnp.ones_like(here[:, 0])
        used = jnp.stack([always if e == INTER else here[:, names.index(e)] for e in sorted(experts)], axis=1)
        product = weighted_decisions(experts, used.astype(jnp.float32))
        alone = experts if len(experts) > 1 else {}
        if self.probe_heads:
            alone = jax.lax.stop_gradient(alone)
        decisions = {FUSION: product, **alone}
        return ExpertOutputs(
            features=dict(features),
            unimodal_logits={name: out.logits for name, out in alone.items()},
            logits=product.logits,
            last_layer={name: out.last_layer for name, out in decisions.items() if out.last_layer is not None},
            present=present,
            kind=self.kind,
        )

    def __call__(self, inputs: Mapping[str, Array], train: bool = False, present: Array | None = None) -> ExpertOutputs:
        """Encode and decide."""
        return self.decide(self.encode(inputs, train, present), train, present)


@dataclass(frozen=True, kw_only=True)
class ExpertsConfig(ModelConfig):
    """A product of experts, for classification and multi-label answers, of two modalities or more.

    `encoders` and `head_hidden` are those of the experts of single modalities, `inter_encoders` and `fusion` those of
    the expert of all of them; none are shared.

    Example:
    >>> ExpertsConfig(experts="intra").experts
    'intra'
    """

    experts: ExpertKind = "i2m2"
    """Which experts: intra (one a modality), inter (one of all modalities), i2m2 (both)."""
    inter_encoders: dict[str, EncoderConfig] = field(default_factory=dict)
    """The inter expert's encoder of each modality; one not named is built like that of `encoders`."""

    def validate(self) -> None:
        """Raise ValueError naming an option out of range."""
        check_option("model", "experts", self.experts, self.experts in get_args(ExpertKind), "i2m2, intra or inter")

    def build(
        self, modalities: tuple[str, ...], task: Task, *, probe_heads: bool = False, axis_name: str | None = None
    ) -> ExpertModel:
        """Make the model for these modalities and this task.

        Raises:
          ValueError: fewer than two modalities, or one called "inter" or "fusion"; an encoder of a modality that the data
            do not have; regression; a fusion that takes decisions instead of features.
        """
        check_modalities(modalities)
        if len(modalities) < 2:
            raise ValueError(f"a product of experts needs at least 2 modalities, got {list(modalities)}")
        if INTER in modalities:
            raise ValueError(f"no modality may be called {INTER!r}: that is the name of the expert of all of them")
        if task.kind == "regression":
            raise ValueError(
                "a product of experts is for classification and multi-label answers; the task is regression"
            )
        for section in ("encoders", "inter_encoders"):
            unknown = sorted(set(getattr(self, section)) - set(modalities))
            if unknown:
                raise ValueError(
                    f"model.{section}.{unknown[0]}: the data have no such modality, only {sorted(modalities)}"
                )
        dtype = jnp.dtype(self.dtype)

        def encoder(config: EncoderConfig | None) -> nn.Module:
            return (config or MLPConfig()).build(dtype=dtype, axis_name=axis_name)

        encoders: dict[str, nn.Module] = {}
        heads: dict[str, nn.Module] = {}
        if self.experts != "inter":
            encoders |= {m: encoder(self.encoders.get(m)) for m in modalities}
            heads |= {m: Head(task.num_outputs, self.head_hidden, dtype) for m in modalities}
        if self.experts != "intra":
            own = {m: self.inter_encoders.get(m, self.encoders.get(m)) for m in modalities}
            encoders[INTER] = JointEncoder({m: encoder(config) for m, config in own.items()})
            fusion = (self.fusion or ConcatConfig()).build(task.num_outputs, dtype=dtype, axis_name=axis_name)
            if isinstance(fusion, DecisionFusion):
                raise ValueError(
                    f"model.fusion {self.fusion.name if self.fusion else ''!r} fuses decisions of modalities; the "
                    "inter expert needs one that fuses features"
                )
            heads[INTER] = fusion
        return ExpertModel(
            encoders=encoders, heads=heads, modalities=tuple(modalities), kind=task.kind, probe_heads=probe_heads
        )
