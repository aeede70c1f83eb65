"""The synthetic study: modalities that overlap with the first one by a stated amount.

Source: Huang et al., "What Makes Multi-Modal Learning Better than Single (Provably)", the synthetic experiment. There
m_1..m_k are independent N(0, I), m_i is replaced by (1-w) m_i + w m_1 for i >= 2, and y is the sum of all of them. Given
m_1, each other modality still holds (1-w) m_i of its own, so without s of the others the least possible squared error,
summed over the dimensions, is dim s (1-w)^2.
"""

from __future__ import annotations

import numbers
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mmjax.config import DataConfig
from mmjax.data import Dataset, Splits, Task, check_splits, select

PUBLISHED: dict[float, tuple[float, float, float, float]] = {
    0.8: (12.04, 8.16, 4.18, 0.0),
    0.5: (75.89, 51.25, 26.06, 0.0),
    0.2: (193.28, 129.81, 65.17, 0.0),
    0.0: (301.92, 207.45, 103.23, 0.0),
}
"""{w: the paper's squared errors with the modalities 1, 1-2, 1-3, 1-4}; of a finite sample that it does not state."""


def overlap_modalities(key: Array, n: int, w: float, dim: int = 100, k: int = 4) -> tuple[list[Array], Array]:
    """Draw n examples of the synthetic study: ([x_1, ..., x_k], y), each float32 [n, dim].

    w: overlap with the first modality, 0 (none) to 1 (copies of it). y = x_1 + ... + x_k.

    Raises:
      ValueError: n, dim or k not an integer of at least 1, w outside 0..1.

    >>> xs, y = overlap_modalities(jax.random.key(0), n=5, w=1.0, dim=3, k=2)
    >>> bool(jnp.allclose(xs[0], xs[1])), bool(jnp.allclose(y, 2 * xs[0]))
    (True, True)
    """
    for name, value in (("n", n), ("dim", dim), ("k", k)):
        if not isinstance(value, numbers.Integral) or value < 1:
            raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
    if not 0 <= w <= 1:
        raise ValueError(f"w must be in 0..1, got {w}")
    first, *others = jax.random.normal(key, (k, n, dim))
    xs = [first, *((1 - w) * m + w * first for m in others)]
    return xs, jnp.sum(jnp.stack(xs), axis=0)


def overlap_risk(missing: int, w: float, dim: int = 100) -> float:
    """Return the least possible risk without `missing` of the modalities, the first one being there.

    >>> overlap_risk(3, w=0.5)
    75.0
    """
    return dim * missing * (1 - w) ** 2


@dataclass(frozen=True, kw_only=True)
class Overlap(DataConfig):
    """The synthetic study's data: modalities x1 to xk, each overlapping the first one by w; y is their sum.

    Example:
    >>> splits = Overlap(w=1.0, dim=3, k=2, train_examples=5, validation_examples=5, test_examples=5).load()
    >>> splits.train.modalities, splits.train.inputs["x2"].shape, splits.train.task.kind
    (('x1', 'x2'), (5, 3), 'regression')
    """

    name: str = "overlap"
    w: float = 0.5
    """Overlap with the first modality, 0 to 1."""
    dim: int = 100
    """Dimensions of each modality and of y."""
    k: int = 4
    """Number of modalities."""
    train_examples: int = 16_000
    """Examples to train on."""
    validation_examples: int = 4_000
    """Examples for validation, on which a study refits its heads."""
    test_examples: int = 4_000
    """Examples for the test."""
    seed: int = 0
    """Seed of the examples."""

    needs: ClassVar[str] = "nothing: it is made up from a seed"

    def load(self) -> Splits:
        """Draw the three splits. Raises ValueError for a field out of range."""
        for field in ("train_examples", "validation_examples", "test_examples"):
            if getattr(self, field) < 1:
                raise ValueError(f"data.{field} must be at least 1, got {getattr(self, field)}")

        def part(code: int, n: int) -> Dataset:
            key = jax.random.fold_in(jax.random.key(self.seed), code)
            xs, y = overlap_modalities(key, n, self.w, self.dim, self.k)
            inputs = {f"x{i}": np.asarray(x) for i, x in enumerate(xs, start=1)}
            return Dataset(inputs, np.asarray(y), Task("regression", self.dim))

        sizes = (self.train_examples, self.validation_examples, self.test_examples)
        return check_splits(select(Splits(*(part(code, n) for code, n in enumerate(sizes))), self.modalities))
