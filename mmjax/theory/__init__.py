"""When are more modalities better? Latent representation quality, subset risks and bounds."""

from mmjax.theory.bounds import BoundTerms, rademacher_linear, theorem1_bound
from mmjax.theory.intervals import Interval, mean_interval
from mmjax.theory.latent_quality import (
    HeadClass,
    RiskDecomposition,
    head_risk,
    latent_representation_quality,
    quality_gap,
    risk_decomposition,
)
from mmjax.theory.linear import LinearHead, eta_linear, least_squares
from mmjax.theory.overlap import Overlap, overlap_modalities, overlap_risk
from mmjax.theory.reversal import StrongWeak, strong_weak, strong_weak_gammas

__all__ = [
    "BoundTerms",
    "HeadClass",
    "Interval",
    "LinearHead",
    "Overlap",
    "RiskDecomposition",
    "StrongWeak",
    "eta_linear",
    "head_risk",
    "latent_representation_quality",
    "least_squares",
    "mean_interval",
    "overlap_modalities",
    "overlap_risk",
    "quality_gap",
    "rademacher_linear",
    "risk_decomposition",
    "strong_weak",
    "strong_weak_gammas",
    "theorem1_bound",
]
