"""MIMO on planted information: two modalities, one of them hidden behind a random deep map.

mmjax train configs/planted_mimo.py --workdir runs/planted_mimo

Ten seconds on one CPU core; test accuracy of the fusion with seed 0: 69.5 %.
"""

from mmjax import Config, ModelConfig, TrainConfig
from mmjax.data import Planted
from mmjax.models import ConcatConfig, MLPConfig
from mmjax.optim import MimoConfig
from mmjax.train.optimizer import AdamConfig, CosineConfig


def get_config() -> Config:
    """Return the experiment."""
    return Config(
        data=Planted(),
        model=ModelConfig(encoders={"a": MLPConfig(), "b": MLPConfig()}, fusion=ConcatConfig()),
        method=MimoConfig(penalty=2.0, smoothing=0.1),
        optimizer=AdamConfig(learning_rate=3e-3, schedule=CosineConfig()),
        train=TrainConfig(epochs=30, batch_size=64),
    )
