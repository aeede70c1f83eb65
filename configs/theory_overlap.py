"""The synthetic study of Huang et al.: four modalities that overlap with the first one, and their sum to predict.

    mmjax theory configs/theory_overlap.py --learner linear --oracle-risk 0 --sizes 16000 \
        --subsets x1 x1+x2 x1+x2+x3 x1+x2+x3+x4 --data.w 0.5 --out runs/theory_overlap

Expected: risks of 75, 50, 25 and 0 within 3 % (100 s (1-w)^2 without s of the modalities); see docs/theory.md.
"""

from mmjax import Config, ModelConfig
from mmjax.models import ConcatConfig, MLPConfig
from mmjax.optim import JointConfig
from mmjax.theory import Overlap
from mmjax.train.optimizer import AdamConfig


def get_config() -> Config:
    """Return the study's data; `--learner linear` has no use for the model, `--learner model` trains these MLPs."""
    return Config(
        data=Overlap(w=0.5, train_examples=32_000),  # twice a sample: seeds must not all learn from the same examples
        model=ModelConfig(
            encoders={f"x{i}": MLPConfig(width=200, depth=1) for i in range(1, 5)}, fusion=ConcatConfig(hidden=())
        ),
        method=JointConfig(),
        optimizer=AdamConfig(learning_rate=1e-3),
    )
