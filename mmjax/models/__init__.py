"""Models: encoders, fusion heads and their assembly, in flax.linen, pure."""

from mmjax.models.encoders import ENCODERS, MLP, LeNet, LeNetConfig, MLPConfig
from mmjax.models.fusion import FUSIONS, ConcatConfig, ConcatFusion
from mmjax.models.heads import Head, HeadOutput, LastLayer
from mmjax.models.layers import Dropout, Norm
from mmjax.models.multimodal import MultiModal, Outputs, build_model, parameter_groups

__all__ = [
    "ENCODERS",
    "FUSIONS",
    "MLP",
    "ConcatConfig",
    "ConcatFusion",
    "Dropout",
    "Head",
    "HeadOutput",
    "LastLayer",
    "LeNet",
    "LeNetConfig",
    "MLPConfig",
    "MultiModal",
    "Norm",
    "Outputs",
    "build_model",
    "parameter_groups",
]
