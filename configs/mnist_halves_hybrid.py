"""Multi-prediction and maximum likelihood, half and half: left and right halves of MNIST, 1000 hidden units.

mmjax train configs/mnist_halves_hybrid.py --data.path FOLDER --workdir runs/mnist_halves_hybrid

The published setting: 300 epochs of 50,000 digits, for an accelerator. The same at a size for two CPU cores, 200 hidden
units and 20 epochs of 10,000 digits, about a minute; what it reaches stands in docs/generative.md:

mmjax train configs/mnist_halves_hybrid.py:get_quick_config --data.path FOLDER --workdir runs/mnist_halves_hybrid
"""

import dataclasses

from mmjax import Config, TrainConfig
from mmjax.data import MnistHalves
from mmjax.generative import HybridConfig, MRBMConfig
from mmjax.train.optimizer import InverseConfig, SGDConfig


def get_config() -> Config:
    """Return the experiment as published; momentum and the unit of the decay (an epoch) are ours."""
    return Config(
        data=MnistHalves(path="data/mnist"),
        model=MRBMConfig(hidden=1000, visible={"left": "binary", "right": "binary"}, init_std=0.01),
        method=HybridConfig(alpha=0.5, n_steps=5, keep_max=0.1, steps=10, chains=500),
        optimizer=SGDConfig(
            learning_rate=0.01, momentum=0.9, weight_decay=1e-4, schedule=InverseConfig(decay=0.005, every=500)
        ),
        train=TrainConfig(epochs=300, batch_size=100, evaluate_every=5000, log_every=100, monitor_every=0),
    )


def get_quick_config() -> Config:
    """Return the experiment at its quick size."""
    config = get_config()
    return dataclasses.replace(
        config,
        data=MnistHalves(path="data/mnist", num_train=10_000, num_validation=2_000, num_test=10_000),
        model=MRBMConfig(hidden=200, visible={"left": "binary", "right": "binary"}),
        method=HybridConfig(alpha=0.5, n_steps=5, keep_max=0.1, steps=10, chains=100),
        optimizer=dataclasses.replace(config.optimizer, schedule=InverseConfig(decay=0.005, every=100)),
        train=dataclasses.replace(config.train, epochs=20, evaluate_every=2000),
    )
