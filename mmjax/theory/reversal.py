"""A linear case in which more modalities are worse until there are enough samples.

x ~ N(0, I), five strong inputs of weight 1, forty weak ones of weight 0.15, noise of variance 1. N is the strong
modality alone, M both. The representation is the direction of the least-squares solution of smallest norm, and its
quality is known in closed form. With few samples the forty weak weights are mostly noise, and gamma(M, N) > 0: nothing
in the theory says that a larger set is better at every n.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from mmjax.config import DataConfig
from mmjax.data import Dataset, Splits, Task, check_splits, select
from mmjax.theory.latent_quality import quality_gap
from mmjax.theory.linear import eta_linear, least_squares

STRONG, WEAK = 5, 40
WEIGHTS = np.repeat([1.0, 0.15], [STRONG, WEAK])
"""[45]: what each input counts in y."""
ORACLE_RISK = 1.0
"""The noise's variance."""


def strong_weak(key: Array, n: int) -> tuple[Array, Array]:
    """Draw n examples, float32: x [n, 45], the strong inputs first, and y [n, 1].

    >>> x, y = strong_weak(jax.random.key(0), 7)
    >>> x.shape, y.shape
    ((7, 45), (7, 1))
    """
    inputs, noise = jax.random.split(key)
    x = jax.random.normal(inputs, (n, STRONG + WEAK), jnp.float32)
    y = x @ jnp.asarray(WEIGHTS, jnp.float32)[:, None] + jax.random.normal(noise, (n, 1), jnp.float32)
    return x, y


def strong_weak_gammas(key: Array, n: int, repetitions: int) -> NDArray[np.float64]:
    """Return gamma(strong and weak, strong) of `repetitions` samples of size n, by the closed form of eta.

    >>> bool((strong_weak_gammas(jax.random.key(0), n=300, repetitions=8) < 0).all())
    True
    """
    x, y = jax.jit(jax.vmap(partial(strong_weak, n=n)))(jax.random.split(key, repetitions))
    with jax.enable_x64(True):
        x, y = x.astype(jnp.float64), y.astype(jnp.float64)
        solve = jax.jit(jax.vmap(least_squares))
        # one program after the other: see `least_squares`
        both, strong = (np.asarray(solve(x[..., :width], y)) for width in (STRONG + WEAK, STRONG))
    known = (WEIGHTS[:, None], np.ones(1), np.eye(STRONG + WEAK))
    strong = np.pad(strong, ((0, 0), (0, WEAK), (0, 0)))
    return quality_gap(eta_linear(both, *known), eta_linear(strong, *known))


@dataclass(frozen=True, kw_only=True)
class StrongWeak(DataConfig):
    """Five strong and forty weak linear inputs: with few samples the weak modality does harm; oracle risk 1.

    Example:
    >>> splits = StrongWeak(train_examples=5, validation_examples=5, test_examples=5).load()
    >>> {m: x.shape for m, x in splits.train.inputs.items()}
    {'strong': (5, 5), 'weak': (5, 40)}
    """

    name: str = "strong_weak"
    train_examples: int = 20_000
    """Examples to draw training samples from."""
    validation_examples: int = 5_000
    """Examples for validation, on which a study refits its heads."""
    test_examples: int = 5_000
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
            drawn = strong_weak(jax.random.fold_in(jax.random.key(self.seed), code), n)
            x, y = (np.asarray(array) for array in drawn)
            return Dataset({"strong": x[:, :STRONG], "weak": x[:, STRONG:]}, y, Task("regression", 1))

        sizes = (self.train_examples, self.validation_examples, self.test_examples)
        return check_splits(select(Splits(*(part(code, n) for code, n in enumerate(sizes))), self.modalities))
