"""Combiners: Optax gradient transformations that turn per-objective gradients into one update.

One file a method family. A new method is a file with a constructor and a `MethodConfig`, and one line in `METHODS`.
"""

from mmjax.config import MethodConfig
from mmjax.optim.joint import JointConfig, JointState, joint
from mmjax.optim.mgda import MgdaConfig, mgda
from mmjax.optim.mimo import MimoConfig, MimoState, mimo, mimo_weights, smooth_maximum
from mmjax.optim.uniform import UniformConfig, UniformState, uniform

METHODS: dict[str, type[MethodConfig]] = {
    "joint": JointConfig,
    "uniform": UniformConfig,
    "mimo": MimoConfig,
    "mgda": MgdaConfig,
}

__all__ = [
    "METHODS",
    "JointConfig",
    "JointState",
    "MgdaConfig",
    "MimoConfig",
    "MimoState",
    "UniformConfig",
    "UniformState",
    "joint",
    "mgda",
    "mimo",
    "mimo_weights",
    "smooth_maximum",
    "uniform",
]
