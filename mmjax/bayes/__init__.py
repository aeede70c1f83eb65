"""Bayesian building blocks: a last layer's Laplace posterior, moments of gradients, evidence and opinions."""

from mmjax.bayes.evidence import (
    BinaryOpinion,
    Calibration,
    Opinion,
    binary_opinion,
    calibrate,
    combine_binary,
    combine_opinions,
    expected_probability,
    opinion,
    precision_evidence,
)
from mmjax.bayes.laplace import Posterior, posterior, precision, predictive, sample_weights

__all__ = [
    "BinaryOpinion",
    "Calibration",
    "Opinion",
    "Posterior",
    "binary_opinion",
    "calibrate",
    "combine_binary",
    "combine_opinions",
    "expected_probability",
    "opinion",
    "posterior",
    "precision",
    "precision_evidence",
    "predictive",
    "sample_weights",
]
