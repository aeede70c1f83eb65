"""Bayesian building blocks: opinions from evidence and their fusion."""

from mmjax.bayes.evidence import (
    BinaryOpinion,
    Opinion,
    binary_opinion,
    combine_binary,
    combine_opinions,
    expected_probability,
    opinion,
)

__all__ = [
    "BinaryOpinion",
    "Opinion",
    "binary_opinion",
    "combine_binary",
    "combine_opinions",
    "expected_probability",
    "opinion",
]
