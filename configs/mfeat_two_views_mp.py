"""Multi-prediction on two real views of handwritten digits (UCI Multiple Features): Fourier and Karhunen-Loeve features.

mmjax train configs/mfeat_two_views_mp.py --data.path FOLDER --workdir runs/mfeat_two_views_mp
mmjax evaluate runs/mfeat_two_views_mp

Gaussian visible units; 1,200 training digits. A quarter of a minute on one CPU core; test accuracy with both views, seed 0:
97.5 %.
"""

from mmjax import Config, TrainConfig
from mmjax.data import Mfeat
from mmjax.generative import MRBMConfig, MultiPredictionConfig
from mmjax.train.optimizer import CosineConfig, SGDConfig


def get_config() -> Config:
    """Return the experiment."""
    return Config(
        data=Mfeat(path="data/mfeat", modalities=("fou", "kar")),
        model=MRBMConfig(hidden=200, visible={"fou": "gaussian", "kar": "gaussian"}),
        method=MultiPredictionConfig(n_steps=5, keep_max=0.25),
        optimizer=SGDConfig(learning_rate=0.003, momentum=0.9, weight_decay=1e-4, schedule=CosineConfig()),
        train=TrainConfig(epochs=100, batch_size=50, evaluate_every=480, log_every=48, monitor_every=0),
    )
