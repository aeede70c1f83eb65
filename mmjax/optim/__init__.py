"""Combiners: Optax gradient transformations that turn per-objective gradients into one update.

One file a method family. A new method is a file with a constructor and a `MethodConfig`, and one line in `METHODS`.
"""

from mmjax.config import MethodConfig
from mmjax.optim.bogc import BogcConfig, BogcState, bogc
from mmjax.optim.joint import JointConfig, JointState, joint
from mmjax.optim.mimo import MimoConfig, MimoState, mimo, mimo_weights, smooth_maximum
from mmjax.optim.promises import Promise
from mmjax.optim.uniform import UniformConfig, UniformState, uniform

METHODS: dict[str, type[MethodConfig]] = {
    "joint": JointConfig,
    "uniform": UniformConfig,
    "mimo": MimoConfig,
    "bogc": BogcConfig,
}

__all__ = [
    "METHODS",
    "BogcConfig",
    "BogcState",
    "JointConfig",
    "JointState",
    "MimoConfig",
    "MimoState",
    "Promise",
    "UniformConfig",
    "UniformState",
    "bogc",
    "joint",
    "mimo",
    "mimo_weights",
    "smooth_maximum",
    "uniform",
]
