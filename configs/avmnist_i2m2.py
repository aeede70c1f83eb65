"""I2M2 on AV-MNIST in the published setting: LeNets with 3 channels for the experts alone, with 6 for the joint one.

mmjax data prepare avmnist --mnist DIR --speech DIR --noise DIR --out data/avmnist
mmjax train configs/avmnist_i2m2.py --data.path data/avmnist --workdir runs/avmnist_i2m2
mmjax train configs/avmnist_i2m2.py --data.path data/avmnist --model.experts inter --optimizer.learning_rate 0.1

Sizes, optimizer, batch, epochs and clipping are the published ones; training is from scratch, with one learning rate. Weight
decay is on kernels alone, as everywhere here; the published code's is on every parameter.
For an accelerator; what it reaches was not measured.
"""

from mmjax import Config, TrainConfig
from mmjax.data import AvMnist
from mmjax.models import ConcatConfig, ExpertsConfig, LeNetConfig
from mmjax.optim import JointConfig
from mmjax.train.optimizer import SGDConfig


def get_config() -> Config:
    """Return the experiment."""
    return Config(
        data=AvMnist(path="data/avmnist", size="lenet", num_train=55_000, num_validation=5_000, num_test=10_000),
        model=ExpertsConfig(
            encoders={"audio": LeNetConfig(channels=3, layers=5), "image": LeNetConfig(channels=3, layers=3)},
            inter_encoders={"audio": LeNetConfig(channels=6, layers=5), "image": LeNetConfig(channels=6, layers=3)},
            fusion=ConcatConfig(hidden=(100,)),
            head_hidden=(100,),
        ),
        method=JointConfig(),
        optimizer=SGDConfig(learning_rate=0.01, momentum=0.0, weight_decay=1e-4, clip_norm=8.0),
        train=TrainConfig(epochs=30, batch_size=40, select="score"),
    )
