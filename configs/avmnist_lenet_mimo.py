"""MIMO on AV-MNIST as it is usually published: LeNet encoders, spectrograms 112x112, all 55,000 pairs.

mmjax data prepare avmnist --mnist DIR --speech DIR --noise DIR --out data/avmnist
mmjax train configs/avmnist_lenet_mimo.py --data.path data/avmnist --workdir runs/avmnist_lenet_mimo

For an accelerator; what it reaches was not measured. (A step of 64 pairs takes 0.22 s on two CPU cores.)
"""

from mmjax import Config, ModelConfig, TrainConfig
from mmjax.data import AvMnist
from mmjax.models import ConcatConfig, LeNetConfig
from mmjax.optim import MimoConfig
from mmjax.train.optimizer import SGDConfig


def get_config() -> Config:
    """Return the experiment; channels, optimizer and batch are those of the published setting (see docs/methods.md)."""
    return Config(
        data=AvMnist(path="data/avmnist", size="lenet", num_train=55_000, num_validation=5_000, num_test=10_000),
        model=ModelConfig(
            encoders={"audio": LeNetConfig(channels=6, layers=5), "image": LeNetConfig(channels=6, layers=3)},
            fusion=ConcatConfig(hidden=(100,)),
            head_hidden=(100,),
        ),
        method=MimoConfig(penalty=2.0, smoothing=0.1),
        optimizer=SGDConfig(learning_rate=0.1, momentum=0.0, weight_decay=1e-4, clip_norm=8.0),
        train=TrainConfig(epochs=30, batch_size=40),
    )
