"""I2M2 on AV-MNIST in the published stages: the experts apart, each at its own learning rate, then together.

mmjax data prepare avmnist --mnist DIR --speech DIR --noise DIR --out data/avmnist
mmjax train configs/avmnist_i2m2_staged.py --data.path data/avmnist --workdir runs/avmnist_i2m2_staged

Sizes, optimizer, batch, epochs of a stage and clipping are those of avmnist_i2m2.py, which trains from scratch. For
`--model.experts i2m2` only: the other kinds lack some of the experts that the stages name.
For an accelerator; what it reaches was not measured.
"""

import dataclasses
from pathlib import Path

from mmjax import Config, StageConfig, load_config
from mmjax.optim import UniformConfig


def get_config() -> Config:
    """Return the experiment."""
    base = load_config(Path(__file__).with_name("avmnist_i2m2.py"))
    alone = UniformConfig()  # each expert's own loss; with `joint` only the product has one
    return dataclasses.replace(
        base,
        stages=(
            # one stage each, so that clipping and the best epoch are each expert's own
            StageConfig(title="audio", method=alone, objectives=("audio",)),
            StageConfig(title="image", method=alone, objectives=("image",)),
            StageConfig(
                title="all modalities",
                method=alone,
                objectives=("inter",),
                optimizer=dataclasses.replace(base.optimizer, learning_rate=0.1),
            ),
            StageConfig(title="together"),
        ),
    )
