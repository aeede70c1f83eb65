"""Your own data: an npz file with one array a modality, `label`, and optionally `split`.

    mmjax data check FILE.npz
    mmjax train configs/own_data.py --data.path FILE.npz --workdir runs/mine

Every modality gets an MLP; `--model.encoders.NAME.name lenet` and the like change that.
"""

from mmjax import Config, TrainConfig
from mmjax.data import Npz
from mmjax.optim import MimoConfig
from mmjax.train.optimizer import AdamConfig, CosineConfig


def get_config() -> Config:
    """Return the experiment; a penalty of about the number of modalities is a good start."""
    return Config(
        data=Npz(path="data.npz"),
        method=MimoConfig(penalty=2.0, smoothing=0.1),
        optimizer=AdamConfig(learning_rate=1e-3, schedule=CosineConfig()),
        train=TrainConfig(epochs=20, batch_size=64),
    )
