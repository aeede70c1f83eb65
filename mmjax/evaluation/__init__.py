"""Evaluation: metrics and late fusion; knows nothing of training."""
