"""mmjax: multi-modal models whose modalities learn in balance, in JAX.

Importing it touches no device.
"""

from mmjax import optim
from mmjax.config import (
    Config,
    DataConfig,
    EncoderConfig,
    FusionConfig,
    MethodConfig,
    ModelConfig,
    OptimizerConfig,
    StageConfig,
    TrainConfig,
)
from mmjax.config_file import load_config
from mmjax.data import Dataset, Splits
from mmjax.lazy_gradients import FeatureGrads, LazyGradientsError, ObjectiveGrads
from mmjax.models import MultiModal, Outputs
from mmjax.objectives import objective_grads
from mmjax.train.loop import fit
from mmjax.train.nonfinite import NonFiniteError
from mmjax.train.run import Run, evaluate, load

__all__ = [
    "Config",
    "DataConfig",
    "Dataset",
    "EncoderConfig",
    "FeatureGrads",
    "FusionConfig",
    "LazyGradientsError",
    "MethodConfig",
    "ModelConfig",
    "MultiModal",
    "NonFiniteError",
    "ObjectiveGrads",
    "OptimizerConfig",
    "Outputs",
    "Run",
    "Splits",
    "StageConfig",
    "TrainConfig",
    "evaluate",
    "fit",
    "load",
    "load_config",
    "objective_grads",
    "optim",
]
