"""I2M2 on questions about pictures: an image and token numbers, two-class or multi-label answers; made-up, or your own.

    mmjax data prepare questions --out data/questions.npz [--answers multi-label]
    mmjax train configs/questions_i2m2.py --workdir runs/questions

An npz file of your own has `image` [N, H, W, C], `question` int [N, T] (0 is padding) and `label`, [N] or 0 and 1 [N, L]:

    mmjax train configs/questions_i2m2.py --data.path FILE.npz --model.encoders.question.vocabulary 30000 \
        --model.inter_encoders.question.vocabulary 30000

A minute and a half on one CPU core; test accuracy of the product on the made-up questions with seed 0: 71.4 %.
"""

from mmjax import Config, TrainConfig
from mmjax.data import Npz
from mmjax.models import BottleneckConfig, ExpertsConfig, TransformerConfig, ViTConfig
from mmjax.optim import JointConfig
from mmjax.train.optimizer import AdamConfig


def get_config() -> Config:
    """Return the experiment."""
    image, question = ViTConfig(width=32, layers=1, heads=2, patch=12), TransformerConfig(width=32, vocabulary=13)
    return Config(
        data=Npz(path="data/questions.npz", tokens=("question",)),
        model=ExpertsConfig(
            encoders={"image": image, "question": question},
            inter_encoders={
                "image": ViTConfig(width=32, layers=1, heads=2, patch=12, features="tokens"),
                "question": TransformerConfig(width=32, vocabulary=13, features="tokens"),
            },
            fusion=BottleneckConfig(width=32, heads=2, bottlenecks=4),
        ),
        method=JointConfig(),
        optimizer=AdamConfig(learning_rate=1e-3),
        train=TrainConfig(epochs=15, batch_size=64),
    )
