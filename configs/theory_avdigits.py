"""When does speech help with handwritten digits, and the other way round? The embedded set, MLP encoders.

mmjax theory configs/theory_avdigits.py --sizes 50 200 500 1500 --seeds 10 --out runs/theory_avdigits
"""

from mmjax import Config, ModelConfig, TrainConfig
from mmjax.data import AvDigits
from mmjax.models import ConcatConfig, MLPConfig
from mmjax.optim import JointConfig
from mmjax.train.optimizer import AdamConfig


def get_config() -> Config:
    """Return the experiment; joint training is empirical risk minimisation of the fusion loss, as in the paper."""
    return Config(
        data=AvDigits(),
        model=ModelConfig(
            encoders={"audio": MLPConfig(width=64), "image": MLPConfig(width=64)}, fusion=ConcatConfig(hidden=())
        ),
        method=JointConfig(),
        optimizer=AdamConfig(learning_rate=1e-3),
        train=TrainConfig(epochs=10, batch_size=64),
    )
