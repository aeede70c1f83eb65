"""More modalities are worse while samples are few: five strong and forty weak linear inputs.

    mmjax theory configs/theory_reversal.py --learner linear --oracle-risk 1 --sizes 20 60 100 300 1000 --seeds 100 \
        --out runs/theory_reversal

Expected: the weak modality raises the risk at n = 20 and 60 and lowers it from n = 300 on.
"""

from mmjax import Config
from mmjax.optim import JointConfig
from mmjax.theory import StrongWeak
from mmjax.train.optimizer import AdamConfig


def get_config() -> Config:
    """Return the study's data; without `--learner linear`, MLPs with default options."""
    return Config(data=StrongWeak(), method=JointConfig(), optimizer=AdamConfig(learning_rate=1e-3))
