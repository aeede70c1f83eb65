"""Log power spectrograms against an independent float64 computation."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.data.audio import Spectrogram, log_power_spectrogram
from mmjax.data.avmnist import SIZES


def reference(waveform: np.ndarray, window: int, hop: int, frames: int, bins: int, group: int) -> np.ndarray:
    """By the definition of the Fourier transform, frame by frame."""
    hann = np.sin(np.pi * np.arange(window) / window) ** 2
    basis = np.exp(-2j * np.pi * np.outer(np.arange(window), np.arange(bins)) / window)
    rows = []
    for frame in range(frames):
        piece = waveform[:, frame * hop : frame * hop + window].astype(np.float64) * hann
        rows.append(np.log(np.abs(piece @ basis) ** 2 + 1e-4))
    return np.stack(rows, 1).reshape(len(waveform), frames, bins // group, group).mean(-1)


@pytest.mark.parametrize(
    "options",
    [
        {"window": 256, "hop": 400, "frames": 20, "bins": 128, "group": 8},
        {"window": 256, "hop": 69, "frames": 112, "bins": 112, "group": 1},
        {"window": 31, "hop": 7, "frames": 5, "bins": 16, "group": 4},
    ],
)
def test_matches_the_definition(options: dict[str, int]) -> None:
    waveform = np.random.default_rng(0).normal(size=(3, 8000)).astype(np.float32)
    got = jax.jit(lambda x: log_power_spectrogram(x, **options))(waveform)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, reference(waveform, **options), atol=2e-3)


def test_matches_scipy_up_to_its_scale() -> None:
    signal = pytest.importorskip("scipy.signal")
    waveform = np.random.default_rng(1).normal(size=(2, 8000))
    _, _, power = signal.spectrogram(
        waveform, window="hann", nperseg=256, noverlap=256 - 69, detrend=False, scaling="spectrum", mode="psd"
    )
    # scipy divides by the window's sum squared and doubles all bins but the first and the last
    power = power * 128.0**2 / np.where(np.arange(129) % 128 == 0, 1, 2)[:, None]
    got = log_power_spectrogram(jnp.asarray(waveform, jnp.float32), window=256, hop=69, frames=112, bins=112)
    np.testing.assert_allclose(got, np.log(power[:, :112, :112] + 1e-4).swapaxes(1, 2), atol=2e-3)


def test_a_tone_falls_into_its_bin_and_silence_on_the_floor() -> None:
    tone = np.sin(2 * np.pi * 1000 * np.arange(8000) / 8000, dtype=np.float64)[None]
    got = np.asarray(log_power_spectrogram(jnp.asarray(tone, jnp.float32), window=256, hop=400, frames=20, bins=128))
    assert (got.argmax(-1) == 1000 * 256 // 8000).all()
    silent = log_power_spectrogram(jnp.zeros((1, 8000)), window=256, hop=400, frames=20, bins=128)
    np.testing.assert_allclose(silent, np.log(1e-4), rtol=1e-6)


def test_a_transform_is_hashable_standardises_and_does_not_recompile() -> None:
    plain, scaled = Spectrogram(group=8), Spectrogram(group=8, mean=-2.0, std=3.0)
    assert hash(scaled) == hash(Spectrogram(group=8, mean=-2.0, std=3.0)) != hash(plain)
    waveform = jnp.asarray(np.random.default_rng(2).normal(size=(2, 8000)), jnp.float32)
    np.testing.assert_allclose(scaled(waveform), (np.asarray(plain(waveform)) + 2) / 3, rtol=1e-5, atol=1e-6)
    traces = []

    def call(transform: Spectrogram, x: jax.Array) -> jax.Array:
        traces.append(transform)
        return transform(x)

    compiled = jax.jit(call, static_argnums=0)
    compiled(scaled, waveform)
    compiled(Spectrogram(group=8, mean=-2.0, std=3.0), waveform)
    assert len(traces) == 1


def test_the_program_holds_no_large_constants() -> None:
    for spectrogram in SIZES.values():
        text = jax.jit(spectrogram).lower(jax.ShapeDtypeStruct((64, 8000), jnp.float32)).as_text()
        assert len(text) < 100_000


def test_shapes_of_the_two_sizes() -> None:
    waveform = jax.ShapeDtypeStruct((5, 8000), jnp.float32)
    assert jax.eval_shape(SIZES["small"], waveform).shape == (5, 20, 16)
    assert jax.eval_shape(SIZES["lenet"], waveform).shape == (5, 112, 112, 1)


@pytest.mark.parametrize(
    ("options", "shape", "words"),
    [
        ({}, (2, 7000), "7000 samples; 20 frames of 256 with hop 400 need 7856"),
        ({}, (8000,), r"shape \(8000,\)"),
        ({"bins": 130}, (2, 8000), "bins=130 is more than the 129"),
        ({"group": 3}, (2, 8000), "group=3 does not divide bins=128"),
        ({"hop": 0}, (2, 8000), "hop=0"),
    ],
)
def test_what_cannot_be_is_an_error(options: dict[str, int], shape: tuple[int, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        # linen's own fields (parent, name) are in its signature, and are no ints
        Spectrogram(**options)(jnp.zeros(shape))  # type: ignore[arg-type]  # wrong on purpose


@pytest.mark.parametrize("std", [0.0, -1.0, float("nan")])
def test_a_std_that_is_not_positive_is_an_error(std: float) -> None:
    with pytest.raises(ValueError, match="std"):
        Spectrogram(std=std)
