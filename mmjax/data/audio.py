"""Log power spectrograms, computed inside the compiled step so that only waveforms are kept."""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jax import Array

FLOOR = 1e-4
"""Added to the power before the logarithm."""


def log_power_spectrogram(waveform: Array, *, window: int, hop: int, frames: int, bins: int, group: int = 1) -> Array:
    """Log power spectrogram log(|STFT|² + 1e-4): waveform [B, T] to float32 [B, frames, bins // group].

    Periodic Hann window and Fourier transform of `window` samples, `hop` samples from one frame to the next, the
    first `frames` frames (no padding) and the lowest `bins` bins, averaged (after the logarithm) in groups of `group`.
    Raises ValueError when the waveform is too short for so many frames, when there are not so many bins, or when
    `group` does not divide `bins`.

    >>> import jax.numpy as jnp
    >>> log_power_spectrogram(jnp.zeros((2, 8000)), window=256, hop=400, frames=20, bins=128, group=8).shape
    (2, 20, 16)
    """
    if min(window, hop, frames, bins, group) < 1:
        raise ValueError(
            f"window={window}, hop={hop}, frames={frames}, bins={bins} and group={group} must all be at least 1"
        )
    if waveform.ndim != 2:
        raise ValueError(f"waveform has shape {waveform.shape}; it must be [B, T]")
    needed = (frames - 1) * hop + window
    if waveform.shape[1] < needed:
        raise ValueError(
            f"waveform has {waveform.shape[1]} samples; {frames} frames of {window} with hop {hop} need {needed}"
        )
    if bins > window // 2 + 1:
        raise ValueError(f"bins={bins} is more than the {window // 2 + 1} bins of a window of {window} samples")
    if bins % group:
        raise ValueError(f"group={group} does not divide bins={bins}")
    # the indices are computed in the program: neither they nor a Fourier basis weigh on it as a constant
    index = (jnp.arange(frames) * hop)[:, None] + jnp.arange(window)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    spectrum = jnp.fft.rfft(waveform.astype(jnp.float32)[:, index] * hann.astype(np.float32))[..., :bins]
    log_power = jnp.log(spectrum.real**2 + spectrum.imag**2 + FLOOR)
    return log_power.reshape(*log_power.shape[:-1], bins // group, group).mean(-1)


@dataclass(frozen=True, kw_only=True)
class Spectrogram:
    """Waveform [B, T] to standardised log power spectrogram; hashable, so that it can stand in `Dataset.preprocess`.

    Result [B, frames, bins // group], with `channel` [B, frames, bins // group, 1]; `mean` and `std` are those of the
    spectrograms of the training split, one number each.

    >>> import jax.numpy as jnp
    >>> spectrogram = Spectrogram(hop=69, frames=112, bins=112, channel=True)
    >>> spectrogram(jnp.zeros((2, 8000))).shape
    (2, 112, 112, 1)
    """

    window: int = 256
    hop: int = 400
    frames: int = 20
    bins: int = 128
    group: int = 1
    channel: bool = False
    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        """Raise ValueError for a standard deviation that is not a positive number."""
        if not (np.isfinite(self.mean) and np.isfinite(self.std) and self.std > 0):
            raise ValueError(f"mean={self.mean} and std={self.std} must be finite, and std above 0")

    def __call__(self, waveform: Array) -> Array:
        """Transform a batch."""
        spectrogram = log_power_spectrogram(
            waveform, window=self.window, hop=self.hop, frames=self.frames, bins=self.bins, group=self.group
        )
        spectrogram = (spectrogram - self.mean) / self.std
        return spectrogram[..., None] if self.channel else spectrogram
