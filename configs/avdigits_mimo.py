"""MIMO on the embedded digits: images 8x8 and the spoken digit, MLP encoders.

mmjax train configs/avdigits_mimo.py --workdir runs/avdigits_mimo

A quarter of a minute on 2 CPU cores; test accuracy of the fusion with seed 0: 88.6 to 88.7 %, by machine.
"""

from mmjax import Config, ModelConfig, TrainConfig
from mmjax.data import AvDigits
from mmjax.models import ConcatConfig, MLPConfig
from mmjax.optim import MimoConfig
from mmjax.train.optimizer import AdamConfig, CosineConfig


def get_config() -> Config:
    """Return the experiment."""
    return Config(
        data=AvDigits(),
        model=ModelConfig(encoders={"audio": MLPConfig(), "image": MLPConfig()}, fusion=ConcatConfig()),
        method=MimoConfig(penalty=2.0, smoothing=0.1),
        optimizer=AdamConfig(learning_rate=1e-3, schedule=CosineConfig()),
        train=TrainConfig(epochs=20, batch_size=64),
    )
