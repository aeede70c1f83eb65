"""Combiners: Optax gradient transformations that turn per-objective gradients into one update.

One file a method family. A new method is a file with a constructor and a `MethodConfig`, and one line in `METHODS`.
"""

from mmjax.config import MethodConfig
from mmjax.optim.agm import AgmConfig, AgmState, agm, agm_objectives
from mmjax.optim.aligned_mtl import AlignedMtlConfig, aligned_mtl
from mmjax.optim.bogc import BogcConfig, BogcState, bogc
from mmjax.optim.cagrad import CagradConfig, cagrad
from mmjax.optim.dwa import DwaConfig, dwa
from mmjax.optim.famo import FamoConfig, famo
from mmjax.optim.gblend import GBlendConfig, gblend
from mmjax.optim.graddrop import GradDropConfig, GradDropState, graddrop
from mmjax.optim.gramian import GramState
from mmjax.optim.imtl_g import ImtlGConfig, imtl_g
from mmjax.optim.joint import JointConfig, JointState, joint
from mmjax.optim.mgda import MgdaConfig, mgda
from mmjax.optim.mimo import MimoConfig, MimoState, mimo, mimo_weights, smooth_maximum
from mmjax.optim.mmpareto import MMParetoConfig, mmpareto
from mmjax.optim.monitor import MonitorState, monitor
from mmjax.optim.nash_mtl import NashMtlConfig, nash_mtl
from mmjax.optim.ogm import OgmConfig, OgmGeConfig, OgmState, ogm, ogm_ge
from mmjax.optim.pcgrad import PcgradConfig, pcgrad
from mmjax.optim.promises import Promise
from mmjax.optim.rlw import RlwConfig, rlw
from mmjax.optim.skip_nonfinite import SkipNonfiniteState, skip_nonfinite
from mmjax.optim.stch import StchConfig, stch
from mmjax.optim.uncertainty import UncertaintyConfig, uncertainty
from mmjax.optim.uniform import UniformConfig, UniformState, uniform
from mmjax.optim.upgrad import UpgradConfig, upgrad
from mmjax.optim.weighing import WeighingState

METHODS: dict[str, type[MethodConfig]] = {
    "joint": JointConfig,
    "uniform": UniformConfig,
    "mimo": MimoConfig,
    "stch": StchConfig,
    "uncertainty": UncertaintyConfig,
    "dwa": DwaConfig,
    "famo": FamoConfig,
    "gblend": GBlendConfig,
    "rlw": RlwConfig,
    "graddrop": GradDropConfig,
    "ogm": OgmConfig,
    "ogm_ge": OgmGeConfig,
    "agm": AgmConfig,
    "mgda": MgdaConfig,
    "upgrad": UpgradConfig,
    "cagrad": CagradConfig,
    "pcgrad": PcgradConfig,
    "imtl_g": ImtlGConfig,
    "nash_mtl": NashMtlConfig,
    "aligned_mtl": AlignedMtlConfig,
    "mmpareto": MMParetoConfig,
    "bogc": BogcConfig,
}

__all__ = [
    "METHODS",
    "AgmConfig",
    "AgmState",
    "AlignedMtlConfig",
    "BogcConfig",
    "BogcState",
    "CagradConfig",
    "DwaConfig",
    "FamoConfig",
    "GBlendConfig",
    "GradDropConfig",
    "GradDropState",
    "GramState",
    "ImtlGConfig",
    "JointConfig",
    "JointState",
    "MMParetoConfig",
    "MgdaConfig",
    "MimoConfig",
    "MimoState",
    "MonitorState",
    "NashMtlConfig",
    "OgmConfig",
    "OgmGeConfig",
    "OgmState",
    "PcgradConfig",
    "Promise",
    "RlwConfig",
    "SkipNonfiniteState",
    "StchConfig",
    "UncertaintyConfig",
    "UniformConfig",
    "UniformState",
    "UpgradConfig",
    "WeighingState",
    "agm",
    "agm_objectives",
    "aligned_mtl",
    "bogc",
    "cagrad",
    "dwa",
    "famo",
    "gblend",
    "graddrop",
    "imtl_g",
    "joint",
    "mgda",
    "mimo",
    "mimo_weights",
    "mmpareto",
    "monitor",
    "nash_mtl",
    "ogm",
    "ogm_ge",
    "pcgrad",
    "rlw",
    "skip_nonfinite",
    "smooth_maximum",
    "stch",
    "uncertainty",
    "uniform",
    "upgrad",
]
