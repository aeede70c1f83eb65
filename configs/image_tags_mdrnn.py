"""An MDRNN on image features (3857) and tags (2000) with 38 labels: 3857-1024-1024 and 2000-1024-1024 below 2048.

mmjax train configs/image_tags_mdrnn.py --workdir runs/image_tags_mdrnn
mmjax evaluate runs/image_tags_mdrnn

The published network, for an accelerator, on made-up data of the published shape. With the real features in an npz file
(`image` [N, 3857], `tags` [N, 2000] of 0 and 1, `label` [N, 38], `split`):

mmjax train configs/image_tags_mdrnn.py --data.name npz --data.path FILE.npz --data.raw tags --workdir runs/real

The same at a size for two CPU cores, with Adam and a start scaled to the data, a minute and a half; what it reaches is in
docs/generative.md:

mmjax train configs/image_tags_mdrnn.py:get_quick_config --workdir runs/image_tags_quick
"""

import dataclasses

from mmjax import Config, TrainConfig
from mmjax.data import ImageTags
from mmjax.generative import MDRNNConfig, RecurrentConfig
from mmjax.train.optimizer import AdamConfig, SGDConfig


def get_config() -> Config:
    """Return the experiment: three levels of 50 epochs each by CD-1, then 150 epochs of fine-tuning with 10 rounds."""
    return Config(
        data=ImageTags(),
        model=MDRNNConfig(
            visible={"image": "gaussian", "tags": "binary"},
            stacks={"image": (1024, 1024), "tags": (1024, 1024)},
            hidden=2048,
            rounds=10,
        ),
        method=RecurrentConfig(pretrain_steps=5000, cd_steps=1, n_steps=10),
        optimizer=SGDConfig(learning_rate=0.001, momentum=0.9, weight_decay=1e-4),
        train=TrainConfig(
            epochs=300, batch_size=100, evaluate_every=2500, log_every=100, monitor_every=0, select="score"
        ),
    )


def get_quick_config() -> Config:
    """Return the experiment at its quick size: 300 image features, 200 tags, 10 labels, two levels of 128 units."""
    config = get_config()
    return dataclasses.replace(
        config,
        data=ImageTags(
            image_features=300, tags=200, labels=10, train_examples=2000, validation_examples=500, test_examples=500
        ),
        model=MDRNNConfig(
            visible={"image": "gaussian", "tags": "binary"},
            stacks={"image": (128, 128), "tags": (128, 128)},
            hidden=256,
            rounds=10,
            start="scaled",
        ),
        method=RecurrentConfig(pretrain_steps=500, cd_steps=1, n_steps=10),
        optimizer=AdamConfig(learning_rate=1e-3),
        train=dataclasses.replace(config.train, epochs=200, evaluate_every=1500),
    )
