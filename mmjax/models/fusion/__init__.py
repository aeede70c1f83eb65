"""Fusion heads: the features of all modalities, or their heads' decisions, to one prediction.

One signature: `module({modality: features}, train, present=None) -> HeadOutput`, features [B, D_m] or tokens
[B, T_m, D_m]; present bool [B, M], columns in the sorted order of the modalities' names, says which are there. Without
it, or with all of it true, the result is the same bit for bit. Options are subclasses of `FusionConfig`.
"""

from mmjax.config import FusionConfig
from mmjax.models.fusion.attention import (
    BottleneckConfig,
    BottleneckFusion,
    CrossAttentionConfig,
    CrossAttentionFusion,
)
from mmjax.models.fusion.bilateral import FiLMConfig, FiLMFusion, MultiplicativeConfig, MultiplicativeFusion
from mmjax.models.fusion.combine import ConcatConfig, ConcatFusion, GatedConfig, GatedFusion, SumConfig, SumFusion
from mmjax.models.fusion.late import (
    DecisionFusion,
    EvidentialConfig,
    EvidentialFusion,
    LateConfig,
    LateFusion,
    ProductConfig,
    ProductFusion,
    UncertaintyWeightedConfig,
    UncertaintyWeightedFusion,
)
from mmjax.models.fusion.tensor import LowRankTensorConfig, LowRankTensorFusion, TensorConfig, TensorFusion

FUSIONS: dict[str, type[FusionConfig]] = {
    "concat": ConcatConfig,
    "sum": SumConfig,
    "gated": GatedConfig,
    "film": FiLMConfig,
    "multiplicative": MultiplicativeConfig,
    "tensor": TensorConfig,
    "low_rank_tensor": LowRankTensorConfig,
    "cross_attention": CrossAttentionConfig,
    "bottleneck": BottleneckConfig,
    "late": LateConfig,
    "product": ProductConfig,
    "uncertainty_weighted": UncertaintyWeightedConfig,
    "evidential": EvidentialConfig,
}

__all__ = [
    "FUSIONS",
    "BottleneckConfig",
    "BottleneckFusion",
    "ConcatConfig",
    "ConcatFusion",
    "CrossAttentionConfig",
    "CrossAttentionFusion",
    "DecisionFusion",
    "EvidentialConfig",
    "EvidentialFusion",
    "FiLMConfig",
    "FiLMFusion",
    "GatedConfig",
    "GatedFusion",
    "LateConfig",
    "LateFusion",
    "LowRankTensorConfig",
    "LowRankTensorFusion",
    "MultiplicativeConfig",
    "MultiplicativeFusion",
    "ProductConfig",
    "ProductFusion",
    "SumConfig",
    "SumFusion",
    "TensorConfig",
    "TensorFusion",
    "UncertaintyWeightedConfig",
    "UncertaintyWeightedFusion",
]
