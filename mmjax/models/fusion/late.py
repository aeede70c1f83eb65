"""Late fusion: the uni-modal heads' decisions to one decision. Nothing of its own to learn.

Such a fusion is a `DecisionFusion`: it is given {modality: HeadOutput} where others are given features. The uni-modal
heads are then parts of the fused model: the fusion loss trains them and, through them, the encoders.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from mmjax.bayes import Opinion, combine_opinions, expected_probability, opinion
from mmjax.config import FusionConfig
from mmjax.models.fusion.inputs import check_present, mean_weights, weighted_sum
from mmjax.models.heads import HeadOutput, LastLayer


class DecisionFusion(nn.Module):
    """Base of the fusions of decisions: `__call__({modality: HeadOutput}, train, present=None) -> HeadOutput`."""


class LateFusion(DecisionFusion):
    """The mean of the uni-modal logits over the modalities present.

    For classification its softmax is the mean of the uni-modal log-probabilities, renormalised; for multi-label data
    the same for each label; for regression the mean prediction. So it is what `evaluation.metrics.late_fusion` says,
    as a model that can be trained. Its last layer is the heads' last layers side by side.

    >>> import jax
    >>> last = LastLayer(jnp.ones((1, 2)), jnp.ones((2, 3)), jnp.zeros(3))
    >>> decisions = {"a": HeadOutput(jnp.array([[2.0, 0.0]]), last), "b": HeadOutput(jnp.array([[0.0, 4.0]]), last)}
    >>> LateFusion().apply({}, decisions, train=False).logits.tolist()
    [[1.0, 2.0]]
    """

    def __call__(self, decisions: Mapping[str, HeadOutput], train: bool, present: Array | None = None) -> HeadOutput:
        """Fuse {modality: HeadOutput}; present: bool [B, M], None for all."""
        del train
        return weighted_decisions(decisions, mean_weights(_present(decisions, present)))


class ProductFusion(DecisionFusion):
    """The sum of the uni-modal logits over the modalities present: the normalised product of their probabilities.

    For classification log softmax(Σ_m z_m) = Σ_m log p_m − log Z; for multi-label data the same for each label. Its last
    layer is the heads' last layers side by side.

    >>> import jax
    >>> last = LastLayer(jnp.ones((1, 2)), jnp.ones((2, 3)), jnp.zeros(3))
    >>> decisions = {"a": HeadOutput(jnp.array([[2.0, 0.0]]), last), "b": HeadOutput(jnp.array([[0.0, 4.0]]), last)}
    >>> ProductFusion().apply({}, decisions, train=False).logits.tolist()
    [[2.0, 4.0]]
    """

    def __call__(self, decisions: Mapping[str, HeadOutput], train: bool, present: Array | None = None) -> HeadOutput:
        """Fuse {modality: HeadOutput}; present: bool [B, M], None for all."""
        del train
        return weighted_decisions(decisions, _present(decisions, present).astype(jnp.float32))


class UncertaintyWeightedFusion(DecisionFusion):
    """z = Σ_m w_m z_m with w_m = stop_gradient(log Σ_c exp(z_mc) / 10): logits weighted by the energy of each decision.

    For classification. Source: Zhang et al., "Provable Dynamic Fusion for Low-Quality Multimodal Data" (QMF): its
    weights, not normalised; the paper's ranking loss on the weights is not part of a fusion head and not here. An
    energy may be negative. Its last layer is the heads' last layers side by side, at these weights.

    >>> import jax
    >>> last = LastLayer(jnp.ones((1, 2)), jnp.ones((2, 3)), jnp.zeros(3))
    >>> decisions = {"a": HeadOutput(jnp.array([[10.0, -90.0]]), last), "b": HeadOutput(jnp.array([[0.0, 20.0]]), last)}
    >>> UncertaintyWeightedFusion().apply({}, decisions, train=False).logits.tolist()
    [[10.0, -50.0]]
    """

    def __call__(self, decisions: Mapping[str, HeadOutput], train: bool, present: Array | None = None) -> HeadOutput:
        """Fuse {modality: HeadOutput}; present: bool [B, M], None for all."""
        del train
        present = _present(decisions, present)
        energies = [jax.nn.logsumexp(decisions[m].logits, axis=-1) / 10 for m in sorted(decisions)]
        weights = jnp.where(present, jnp.stack(energies, axis=1), 0)
        return weighted_decisions(decisions, jax.lax.stop_gradient(weights))


class EvidentialFusion(DecisionFusion):
    """Opinions from evidence softplus(logits), fused by the reduced Dempster rule of `mmjax.bayes`.

    For classification. The fused logits are the logarithm of the fused opinion's expected probability, so that softmax
    gives that probability back. An absent modality is a vacuous opinion. Source of the scheme: Han et al., "Trusted
    Multi-View Classification"; their loss on the Dirichlet distribution is not here: cross-entropy is taken of the
    expected probability. It has no linear last layer: what needs one (Laplace approximations) does not work with it.

    >>> import jax
    >>> last = LastLayer(jnp.ones((1, 2)), jnp.ones((2, 2)), jnp.zeros(2))
    >>> decisions = {m: HeadOutput(jnp.array([[5.0, -5.0]]), last) for m in ("a", "b")}
    >>> out = EvidentialFusion().apply({}, decisions, train=False)
    >>> jnp.exp(out.logits).round(2).tolist(), out.last_layer
    ([[0.9599999785423279, 0.03999999910593033]], None)
    """

    def __call__(self, decisions: Mapping[str, HeadOutput], train: bool, present: Array | None = None) -> HeadOutput:
        """Fuse {modality: HeadOutput}; present: bool [B, M], None for all."""
        del train
        present = _present(decisions, present)
        fused = combine_opinions(
            [_opinion(decisions[m].logits, present[:, i, None]) for i, m in enumerate(sorted(decisions))]
        )
        # below the smallest normal number, reached only where products of evidence exceed 1e38, the logarithm is -inf
        probability = jnp.maximum(expected_probability(fused), jnp.finfo(fused.belief.dtype).tiny)
        return HeadOutput(jnp.log(probability), None)


def _opinion(logits: Array, here: Array) -> Opinion:
    return opinion(jnp.where(here, jax.nn.softplus(jnp.where(here, logits, 0)), 0))


def _present(decisions: Mapping[str, HeadOutput], present: Array | None) -> Array:
    if not decisions:
        raise ValueError("a late fusion needs the decision of at least one modality")
    shapes = {m: out.logits.shape for m, out in decisions.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"logits of all modalities must have one shape [B, C]; got {shapes}")
    return check_present(present, next(iter(shapes.values()))[0], len(decisions))


def weighted_decisions(decisions: Mapping[str, HeadOutput], weights: Array) -> HeadOutput:
    """Return Σ_m weights[:, m] logits_m and its last layer; weights: [B, M], columns by sorted name.

    The logits are linear in the weighted inputs of the heads' last layers and, for their biases, in the weights. Where a
    weight is 0 a decision has no influence, NaN included.

    >>> last = LastLayer(jnp.ones((1, 2)), jnp.ones((2, 3)), jnp.zeros(3))
    >>> out = weighted_decisions({"a": HeadOutput(jnp.array([[2.0, 0.0, 1.0]]), last)}, jnp.array([[3.0]]))
    >>> out.logits.tolist(), out.last_layer.kernel.shape
    ([[6.0, 0.0, 3.0]], (3, 3))
    """
    outputs = [decisions[m] for m in sorted(decisions)]
    used = [weights[:, i, None] != 0 for i in range(len(outputs))]
    logits = weighted_sum([jnp.where(u, out.logits, 0) for u, out in zip(used, outputs, strict=True)], weights)
    lasts = [out.last_layer for out in outputs]
    if any(last is None for last in lasts):
        return HeadOutput(logits, None)
    inputs = [
        jnp.where(u, last.inputs, 0) * weights[:, i, None].astype(last.inputs.dtype)
        for i, (u, last) in enumerate(zip(used, lasts, strict=True))
        if last is not None
    ]
    kernels = [last.kernel for last in lasts if last is not None]
    biases = jnp.stack([last.bias for last in lasts if last is not None])
    side_by_side = LastLayer(
        jnp.concatenate([*inputs, weights.astype(inputs[0].dtype)], axis=-1),
        jnp.concatenate([*kernels, biases], axis=0),
        jnp.zeros_like(biases[0]),
    )
    return HeadOutput(logits, side_by_side)


@dataclass(frozen=True, kw_only=True)
class ProductConfig(FusionConfig):
    """Product of the uni-modal probabilities: the sum of their logits.

    Example:
    >>> ProductConfig().name
    'product'
    """

    name: str = "product"

    tasks: ClassVar[tuple[str, ...]] = ("classification", "multilabel")

    def build(self, num_outputs: int, *, dtype: Any = jnp.float32, axis_name: str | None = None) -> nn.Module:
        """Make the module."""
        del num_outputs, dtype, axis_name  # the uni-modal heads have seen to them
        return ProductFusion()


@dataclass(frozen=True, kw_only=True)
class LateConfig(FusionConfig):
    """Mean of the uni-modal logits.

    Example:
    >>> LateConfig().name
    'late'
    """

    name: str = "late"

    def build(self, num_outputs: int, *, dtype: Any = jnp.float32, axis_name: str | None = None) -> nn.Module:
        """Make the module."""
        del num_outputs, dtype, axis_name  # the uni-modal heads have seen to them
        return LateFusion()


@dataclass(frozen=True, kw_only=True)
class UncertaintyWeightedConfig(FusionConfig):
    """Uni-modal logits weighted by their energy, as QMF does; for classification.

    Example:
    >>> UncertaintyWeightedConfig().name
    'uncertainty_weighted'
    """

    name: str = "uncertainty_weighted"

    tasks: ClassVar[tuple[str, ...]] = ("classification",)

    def build(self, num_outputs: int, *, dtype: Any = jnp.float32, axis_name: str | None = None) -> nn.Module:
        """Make the module."""
        del num_outputs, dtype, axis_name
        return UncertaintyWeightedFusion()


@dataclass(frozen=True, kw_only=True)
class EvidentialConfig(FusionConfig):
    """Uni-modal opinions fused by the reduced Dempster rule; for classification.

    Example:
    >>> EvidentialConfig().name
    'evidential'
    """

    name: str = "evidential"

    tasks: ClassVar[tuple[str, ...]] = ("classification",)

    def build(self, num_outputs: int, *, dtype: Any = jnp.float32, axis_name: str | None = None) -> nn.Module:
        """Make the module."""
        del num_outputs, dtype, axis_name
        return EvidentialFusion()
