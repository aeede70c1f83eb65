"""Robustness curves: a metric against the level of noise in one modality at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np


def robustness_curves(
    score: Callable[[Mapping[str, np.ndarray]], float],
    inputs: Mapping[str, np.ndarray],
    levels: Sequence[float],
    *,
    seed: int = 0,
    present: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Return {modality: float64 [levels]}: the score with so much noise in that modality, the others clean.

    score: from inputs like `inputs` to a number, for instance a model's accuracy on them.
    levels: for numbers, the noise's standard deviation in units of each feature's own (last axis, over everything
      else); for tokens (integers), the probability in [0, 1] that a token is replaced by one drawn from the modality's
      own; padding (id 0) stays. Level 0 is the clean input itself.
    present: bool [N, M], who has which modality, columns in sorted order; noise is measured on, drawn from and added to
      those alone. None: everybody has all.

    The noise of a modality is drawn once and scaled, so a curve shows the level and not the draw.

    Raises:
      ValueError: no modality, no level, a negative level, or one above 1 for tokens; `present` of another shape.

    >>> curves = robustness_curves(lambda x: -float(np.std(x["a"])), {"a": np.zeros((2, 1)), "b": np.eye(2)}, [0.0, 1.0])
    >>> {m: c.tolist() for m, c in curves.items()}
    {'a': [-0.0, -0.0], 'b': [-0.0, -0.0]}
    """
    if not inputs:
        raise ValueError("inputs has no modality to add noise to")
    if len(levels) == 0 or min(levels) < 0:
        raise ValueError(f"noise needs at least one level, and levels of at least 0; got {list(levels)}")
    examples = len(next(iter(inputs.values())))
    here = np.ones((examples, len(inputs)), bool) if present is None else np.asarray(present)
    if here.shape != (examples, len(inputs)) or here.dtype != bool:
        raise ValueError(f"present must be bool [{examples}, {len(inputs)}]; got {here.dtype} {list(here.shape)}")
    curves = {}
    for number, m in enumerate(sorted(inputs)):
        rng = np.random.default_rng([seed, number])
        clean = np.asarray(inputs[m])
        tokens = clean.dtype.kind in "iu"
        if tokens and max(levels) > 1:
            raise ValueError(f"{m} holds tokens, of which a share is replaced: levels must be at most 1, got {levels}")
        noisy = (_replaced if tokens else _added)(clean, here[:, number], rng)
        curves[m] = np.array([score({**inputs, m: noisy(level) if level else clean}) for level in levels])
    return curves


def _added(clean: np.ndarray, here: np.ndarray, rng: np.random.Generator) -> Callable[[float], np.ndarray]:
    deviation = clean[here].std(axis=tuple(range(clean.ndim - 1)), dtype=np.float64) if here.any() else 0.0
    noise = rng.standard_normal(clean.shape) * deviation
    noise[~here] = 0
    return lambda level: (clean + level * noise).astype(np.float32)


def _replaced(clean: np.ndarray, here: np.ndarray, rng: np.random.Generator) -> Callable[[float], np.ndarray]:
    real = (clean != 0) & here.reshape(-1, *[1] * (clean.ndim - 1))
    others = rng.choice(clean[real], clean.shape) if real.any() else clean
    chance = rng.random(clean.shape)
    return lambda level: np.where(real & (chance < level), others, clean)
