"""When are more modalities better? Latent representation quality, subset risks and bounds."""

from mmjax.evaluation.subsets import choose_subsets, subset_name
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
from mmjax.theory.learner import Learner, Predictions
from mmjax.theory.least_squares_learner import LeastSquares
from mmjax.theory.linear import LinearHead, eta_linear, least_squares
from mmjax.theory.overlap import Overlap, overlap_modalities, overlap_risk
from mmjax.theory.reversal import StrongWeak, strong_weak, strong_weak_gammas
from mmjax.theory.subset_risk import Cell, Comparison, Sweep, subset_risk_sweep
from mmjax.theory.trained_learner import Trained
from mmjax.theory.verdict import verdict

__all__ = [
    "BoundTerms",
    "Cell",
    "Comparison",
    "HeadClass",
    "Interval",
    "Learner",
    "LeastSquares",
    "LinearHead",
    "Overlap",
    "Predictions",
    "RiskDecomposition",
    "StrongWeak",
    "Sweep",
    "Trained",
    "choose_subsets",
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
    "subset_name",
    "subset_risk_sweep",
    "theorem1_bound",
    "verdict",
]
