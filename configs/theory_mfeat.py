"""Which of the six views of handwritten digits help (UCI Multiple Features), each view an MLP.

    mmjax theory configs/theory_mfeat.py --data.path FOLDER --subsets leave-one-out --sizes 50 150 500 --seeds 10 \
        --out runs/theory_mfeat

All 63 subsets by least squares (the risk is then the squared error of one-hot predictions):

    mmjax theory configs/theory_mfeat.py --data.path FOLDER --learner linear --sizes 50 150 500 --seeds 10
"""

from mmjax import Config, ModelConfig, TrainConfig
from mmjax.data import Mfeat
from mmjax.models import ConcatConfig, MLPConfig
from mmjax.optim import JointConfig
from mmjax.train.optimizer import AdamConfig

VIEWS = ("fac", "fou", "kar", "mor", "pix", "zer")


def get_config() -> Config:
    """Return the experiment; joint training is empirical risk minimisation of the fusion loss, as in the paper."""
    return Config(
        data=Mfeat(path="data/mfeat"),
        model=ModelConfig(encoders={view: MLPConfig(width=32) for view in VIEWS}, fusion=ConcatConfig(hidden=())),
        method=JointConfig(),
        optimizer=AdamConfig(learning_rate=3e-3),
        train=TrainConfig(epochs=20, batch_size=64),
    )
