"""Made-up patients in the shape of intensive-care records: five static numbers, twelve series of 24 hours, who dies.

The chance of death is logistic in three terms: one of the static numbers alone, one of the series alone, and a product of
both (a weight that the course of the series has only for some patients). So each modality says something by itself, and
more is known from both together.
"""

from __future__ import annotations

import numpy as np

STATIC, HOURS, SERIES = 5, 24, 12


def health_arrays(examples: int = 6000, seed: int = 0) -> dict[str, np.ndarray]:
    """Return arrays for an npz file: "static" [N, 5], "series" [N, 24, 12], "label" [N] (1: died, about a quarter).

    Raises:
      ValueError: fewer than 20 examples, a negative seed.

    >>> {name: array.shape for name, array in health_arrays(50).items()}
    {'static': (50, 5), 'series': (50, 24, 12), 'label': (50,)}
    """
    static, series, chance, rng = _patients(examples, seed)
    return {"static": static, "series": series, "label": (rng.random(examples) < chance).astype(np.int64)}


def chances(examples: int = 6000, seed: int = 0) -> np.ndarray:
    """Return the true chance of death [N] of the same patients: nobody can predict better.

    >>> chances(50).shape
    (50,)
    """
    return _patients(examples, seed)[2]


def _patients(examples: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.random.Generator]:
    if examples < 20 or seed < 0:
        raise ValueError(f"examples must be at least 20 and seed at least 0, got {examples} and {seed}")
    rng = np.random.default_rng(seed)
    static = rng.normal(size=(examples, STATIC))
    course = rng.normal(size=(examples, 3))  # level, trend and swing of a patient's state
    hours = np.linspace(-1, 1, HOURS)
    curves = np.stack([np.ones(HOURS), hours, np.sin(np.pi * hours)])
    state = course[:, :, None] * curves  # [N, 3, 24]
    mixing = rng.normal(size=(3, SERIES)) / np.sqrt(3)
    series = np.einsum("nkt,kf->ntf", state, mixing) + rng.normal(0, 0.7, size=(examples, HOURS, SERIES))
    one, other = static[:, 0] + static[:, 1], static[:, 2] + static[:, 3]
    score = -1.6 + 0.7 * one + 1.0 * course[:, 1] + 1.2 * other * course[:, 0]
    return static.astype(np.float32), series.astype(np.float32), 1 / (1 + np.exp(-score)), rng
