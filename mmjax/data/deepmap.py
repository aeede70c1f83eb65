"""A random map, one-to-one, that hides bits from a linear model but keeps every one of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

AMPLITUDE = 2.0  # height of the sine against signals of height 1: one layer already moves a bit across its threshold
JITTER = 0.5  # below 1, so that a bit is never in doubt


@dataclass(frozen=True)
class Coupling:
    """One layer: the second half of the coordinates is moved by a sine of the first, then all are rotated."""

    kernel: np.ndarray
    phase: np.ndarray
    rotation: np.ndarray

    def forward(self, x: np.ndarray) -> np.ndarray:
        """Return the layer's output, [N, D]."""
        first, second = np.split(x, 2, axis=1)
        return np.concatenate([second + self._shift(first), first], axis=1) @ self.rotation

    def inverse(self, x: np.ndarray) -> np.ndarray:
        """Return the input that gives `x`."""
        moved, first = np.split(x @ self.rotation.T, 2, axis=1)
        return np.concatenate([first, moved - self._shift(first)], axis=1)

    def _shift(self, first: np.ndarray) -> np.ndarray:
        return AMPLITUDE * np.sin(first @ self.kernel + self.phase)


@dataclass(frozen=True)
class DeepMap:
    """Bits [N, k] and nuisance [N, D - k] -> inputs [N, D]: a rotation, then `layers`.

    Without layers a bit is the sign of a linear function of the inputs. Every layer bends its boundary further, so
    that it is learned later and by a non-linear model only. All steps can be undone, so nothing is lost: `decode`
    returns the bits exactly.

    >>> bits = np.array([[0, 1], [1, 1], [1, 0]])
    >>> hidden = random_map(np.random.default_rng(0), width=8, depth=3)
    >>> hidden.decode(hidden.encode(bits, np.random.default_rng(1)), 2).tolist() == bits.tolist()
    True
    """

    rotation: np.ndarray
    layers: tuple[Coupling, ...]

    def encode(self, bits: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return inputs float32 [N, D] that hold `bits` 0 and 1 [N, k]."""
        signal = 2.0 * bits - 1.0 + rng.uniform(-JITTER, JITTER, bits.shape)
        nuisance = rng.uniform(-np.sqrt(3.0), np.sqrt(3.0), (len(bits), len(self.rotation) - bits.shape[1]))
        x = np.concatenate([signal, nuisance], axis=1) @ self.rotation
        for layer in self.layers:
            x = layer.forward(x)
        return x.astype(np.float32)

    def decode(self, inputs: np.ndarray, num_bits: int) -> np.ndarray:
        """Return the bits int8 [N, num_bits] that `encode` put into `inputs`."""
        x = np.asarray(inputs, np.float64)
        for layer in reversed(self.layers):
            x = layer.inverse(x)
        return ((x @ self.rotation.T)[:, :num_bits] > 0).astype(np.int8)


def random_map(rng: np.random.Generator, *, width: int, depth: int) -> DeepMap:
    """Return a random map into `width` dimensions (even) with `depth` layers; 0 is a rotation only.

    >>> len(random_map(np.random.default_rng(0), width=4, depth=2).layers)
    2
    """
    half = width // 2
    rotation = _random_rotation(rng, width)
    layers = tuple(
        Coupling(
            kernel=rng.normal(size=(half, half)) / np.sqrt(half),
            phase=rng.uniform(0.0, 2.0 * np.pi, half),
            rotation=_random_rotation(rng, width),
        )
        for _ in range(depth)
    )
    return DeepMap(rotation, layers)


def _random_rotation(rng: np.random.Generator, size: int) -> np.ndarray:
    q, r = np.linalg.qr(rng.normal(size=(size, size)))
    return q * np.sign(np.diag(r))  # makes the draw even over all orthogonal matrices
