"""Encoders: one modality's input [B, ...] to features [B, D] or tokens [B, T, D].

One signature: `module(x, train) -> features`. Tokens that are zero throughout are padding. Options are subclasses of
`EncoderConfig`.
"""

from mmjax.config import EncoderConfig
from mmjax.models.encoders.conv1d import Conv1D, Conv1DConfig
from mmjax.models.encoders.custom import CustomConfig
from mmjax.models.encoders.gru import GRU, GRUConfig
from mmjax.models.encoders.identity import Identity, IdentityConfig
from mmjax.models.encoders.lenet import LeNet, LeNetConfig
from mmjax.models.encoders.mlp import MLP, MLPConfig
from mmjax.models.encoders.resnet import ResNet18, ResNet18Config
from mmjax.models.encoders.transformer import Transformer, TransformerConfig
from mmjax.models.encoders.vit import ViT, ViTConfig

ENCODERS: dict[str, type[EncoderConfig]] = {
    "mlp": MLPConfig,
    "lenet": LeNetConfig,
    "resnet18": ResNet18Config,
    "vit": ViTConfig,
    "gru": GRUConfig,
    "conv1d": Conv1DConfig,
    "transformer": TransformerConfig,
    "identity": IdentityConfig,
    "custom": CustomConfig,
}

__all__ = [
    "ENCODERS",
    "GRU",
    "MLP",
    "Conv1D",
    "Conv1DConfig",
    "CustomConfig",
    "GRUConfig",
    "Identity",
    "IdentityConfig",
    "LeNet",
    "LeNetConfig",
    "MLPConfig",
    "ResNet18",
    "ResNet18Config",
    "Transformer",
    "TransformerConfig",
    "ViT",
    "ViTConfig",
]
