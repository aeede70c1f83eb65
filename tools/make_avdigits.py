"""Make mmjax/data/avdigits.npz: real handwritten digits, each paired with synthesised speech of the same digit.

    python tools/make_avdigits.py [--out mmjax/data/avdigits.npz] [--seed 0]

Needs scikit-learn and the program `espeak-ng` (Debian: apt-get install espeak-ng; 1.51 made the shipped file). The
result is a function of the seed and of these two: another version of espeak-ng speaks slightly differently.

Images: the test part of "Optical Recognition of Handwritten Digits" (E. Alpaydin and C. Kaynak, UCI Machine Learning
Repository, CC BY 4.0), the 1,797 images 8x8 that scikit-learn ships. Speech: eSpeak NG, whose GPL covers the program
and not the sound that it makes; the voices of the validation split and of the test split are heard nowhere else.

Each image stands in one split and is paired with several utterances there, each time with noise of its own. The noise
of both modalities was set on the validation split so that either alone is clearly worse than both together, and so
that the image, noisy but nearly linear, is learned fast, while the speech, which starts anywhere in the second and is
said by unknown voices at unknown speeds, is learned slowly.
"""

from __future__ import annotations

import argparse
import io
import shutil
import subprocess
import wave
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.signal import resample_poly

RATE = 8000
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
ACCENTS = ("en-us", "en-us-nyc", "en-029", "en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbclan", "en-gb-x-gbcwmd")
# The speakers (eSpeak's variants) are disjoint, so that validation judges what the test asks: unknown voices.
SPEAKERS = {
    "train": ("m1", "m2", "m3", "m4", "m5", "f1", "f2", "f3", "croak", "Alex", "Annie", "Andy", "Diogo", "Jacky", "Lee",
              "Mario", "Michael", "adam", "anika", "aunty", "boris", "david", "edward", "klatt", "klatt2"),
    "validation": ("m6", "m8", "f4", "Gene", "Marco", "benjamin", "grandma", "klatt3"),
    "test": ("m7", "f5", "Alicia", "Denis", "Hugo", "caleb", "iven", "linda", "klatt4"),
}  # fmt: skip
BABBLE = (
    "the weather was fine and they walked along the river",
    "put the box under the table before anybody sees it",
    "she sells old maps of cities that nobody visits",
    "a good answer is short and a better one is right",
)


@dataclass(frozen=True)
class Recipe:
    """All that decides the data, besides the seed."""

    validation: int = 300  # images
    test: int = 400
    utterances: int = 3  # of each image
    image_noise: float = 6.5  # standard deviation, in grey levels 0..16
    snr_db: tuple[float, float] = (8.0, 20.0)
    latest_start: float = 0.25  # seconds
    speed: tuple[int, int] = (110, 220)  # words a minute
    pitch: tuple[int, int] = (20, 80)
    window: int = 256
    hop: int = 400
    frames: int = 20
    bins: int = 16
    group: int = 8
    floor_db: float = -70.0  # what the stored bytes span
    ceiling_db: float = 5.0


def speak(text: str, voice: str, speed: int, pitch: int) -> np.ndarray:
    """Say `text`: float64 [T] at 8 kHz, silence cut off at both ends, peak 1."""
    command = ["espeak-ng", "-v", voice, "-s", str(speed), "-p", str(pitch), "--stdout", text]
    sound = subprocess.run(command, check=True, capture_output=True).stdout
    with wave.open(io.BytesIO(sound)) as reader:
        rate = reader.getframerate()
        # eSpeak cannot know the length when it writes the header to a pipe: take what is there
        samples = np.frombuffer(reader.readframes(len(sound) // 2), dtype="<i2").astype(np.float64)
    samples = resample_poly(samples, RATE, rate)
    loud = np.flatnonzero(np.abs(samples) > 0.02 * np.abs(samples).max())
    samples = samples[loud[0] : loud[-1] + 1]
    return samples / np.abs(samples).max()


def split_rows(label: np.ndarray, recipe: Recipe, seed: int) -> dict[str, np.ndarray]:
    """Rows of each split, sorted; every class in the same proportion (to one row) in each."""
    order = np.empty(len(label), dtype=np.int64)
    for digit in range(10):
        rows = np.flatnonzero(label == digit)
        rank = np.random.default_rng([seed, 1, digit]).permutation(len(rows))
        order[rows] = np.argsort(rank) * 1_000_000 // len(rows) * 10 + digit  # quantile in the class, ties by class
    by_quantile = np.argsort(order, kind="stable")
    cuts = [recipe.validation, recipe.validation + recipe.test]
    validation, test, train = np.split(by_quantile, cuts)
    return {"train": np.sort(train), "validation": np.sort(validation), "test": np.sort(test)}


def degrade(image: np.ndarray, recipe: Recipe, rng: np.random.Generator) -> np.ndarray:
    """Noisy image [8, 8] in 0..16 as bytes 0..240."""
    noisy = image + recipe.image_noise * rng.standard_normal(image.shape)
    return np.rint(np.clip(noisy, 0, 16) * 15).astype(np.uint8)


def coloured_noise(length: int, exponent: float, rng: np.random.Generator) -> np.ndarray:
    """Gaussian noise with power falling as frequency ** -exponent, standard deviation 1."""
    spectrum = np.fft.rfft(rng.standard_normal(length))
    frequency = np.maximum(np.fft.rfftfreq(length, 1 / RATE), 50.0)
    noise = np.fft.irfft(spectrum * frequency ** (-exponent / 2), length)
    return noise / noise.std()


def background(babble: Sequence[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """One second of noise, standard deviation 1: coloured, and as much again of four voices at once."""
    voices = np.zeros(RATE)
    for track in rng.choice(len(babble), size=4):
        start = rng.integers(len(babble[track]) - RATE)
        voices += babble[track][start : start + RATE]
    noise = coloured_noise(RATE, rng.uniform(0, 2), rng) + voices / voices.std()
    return noise / noise.std()


def mix(speech: np.ndarray, noise: np.ndarray, recipe: Recipe, rng: np.random.Generator) -> np.ndarray:
    """Speech that starts at a random time, under noise; float64 [8000], standard deviation 0.1."""
    speech = speech[:RATE]
    start = rng.integers(min(RATE - len(speech), round(RATE * recipe.latest_start)) + 1)
    power = np.mean(speech**2)
    sound = np.sqrt(power) * 10 ** (-rng.uniform(*recipe.snr_db) / 20) * noise
    sound[start : start + len(speech)] += speech
    return 0.1 * sound / sound.std()


def features(sound: np.ndarray, recipe: Recipe) -> np.ndarray:
    """Grouped log power spectrogram [frames, bins] as bytes over floor_db..ceiling_db."""
    start = np.arange(recipe.frames)[:, None] * recipe.hop
    frames = sound[start + np.arange(recipe.window)] * np.hanning(recipe.window + 1)[:-1]
    power = np.abs(np.fft.rfft(frames)[:, : recipe.bins * recipe.group]) ** 2
    level = (10 * np.log10(power + 1e-10)).reshape(recipe.frames, recipe.bins, recipe.group).mean(-1)
    share = (level - recipe.floor_db) / (recipe.ceiling_db - recipe.floor_db)
    return np.rint(255 * np.clip(share, 0, 1)).astype(np.uint8)


def script(split: str, label: np.ndarray, recipe: Recipe, seed: int) -> list[tuple[str, str, int, int]]:
    """What to say for each of the labels: (word, voice, speed, pitch)."""
    rng = np.random.default_rng([seed, 2, tuple(SPEAKERS).index(split)])
    lines = []
    for digit in label:
        voice = f"{ACCENTS[rng.integers(len(ACCENTS))]}+{SPEAKERS[split][rng.integers(len(SPEAKERS[split]))]}"
        lines.append((WORDS[digit], voice, int(rng.integers(*recipe.speed)), int(rng.integers(*recipe.pitch))))
    return lines


def say_all(lines: Sequence[tuple[str, str, int, int]]) -> list[np.ndarray]:
    """Speak every line; the order of the result is that of the lines, whichever is ready first."""
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda line: speak(*line), lines))


def make_split(
    split: str, images: np.ndarray, label: np.ndarray, recipe: Recipe, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Bytes (image [N, 8, 8], audio [N, frames, bins]) of one split, from clean images [N, 8, 8] and labels [N]."""
    number = tuple(SPEAKERS).index(split)
    babble = say_all([(text, f"en-us+{speaker}", 160, 50) for speaker in SPEAKERS[split] for text in BABBLE])
    speech = say_all(script(split, label, recipe, seed))
    audio, image = [], []
    for row in range(len(label)):
        rng = np.random.default_rng([seed, 3, number, row])
        image.append(degrade(images[row], recipe, rng))
        audio.append(features(mix(speech[row], background(babble, rng), recipe, rng), recipe))
    return np.stack(image), np.stack(audio)


def make(images: np.ndarray, label: np.ndarray, recipe: Recipe, seed: int) -> dict[str, np.ndarray]:
    """All arrays of the file, from the clean images [N, 8, 8] and their labels [N]."""
    arrays: dict[str, np.ndarray] = {}
    for split, rows in split_rows(label, recipe, seed).items():
        rows = np.repeat(rows, recipe.utterances)
        image, audio = make_split(split, images[rows], label[rows], recipe, seed)
        arrays |= {f"{split}_image": image, f"{split}_audio": audio, f"{split}_label": label[rows].astype(np.uint8)}
    return arrays


def main() -> None:
    """Command line."""
    from sklearn.datasets import load_digits

    parser = argparse.ArgumentParser(description="Make the embedded set avdigits.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "mmjax" / "data" / "avdigits.npz")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if shutil.which("espeak-ng") is None:
        parser.error("espeak-ng is not installed (Debian: apt-get install espeak-ng)")
    digits = load_digits()
    arrays = make(digits.images, digits.target, Recipe(), options.seed)
    np.savez_compressed(options.out, allow_pickle=False, **arrays)
    counts = ", ".join(f"{name[:-6]} {len(a)}" for name, a in arrays.items() if name.endswith("_label"))
    print(f"{options.out}: {options.out.stat().st_size / 2**20:.2f} MiB; examples: {counts}")


if __name__ == "__main__":
    main()
