"""AV-MNIST, re-created from the original files: a degraded MNIST image with a noisy spoken digit of the same class.

`prepare` makes a folder of arrays once; `AvMnist` loads it. Waveforms are mixed when a batch asks for them, and their
spectrograms are computed inside the training step.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import re
import wave
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import numpy as np

from mmjax.config import DataConfig
from mmjax.data.audio import Spectrogram
from mmjax.data.dataset import ArrayLike, Dataset, Splits, Task
from mmjax.data.idx import read_idx
from mmjax.data.missing import with_missing
from mmjax.data.validation import check_splits, chosen_modalities

RATE = 8000
"""Samples of a waveform: one second at 8 kHz."""
NOISE_STD = 0.3
TEST_SPEAKER = "yweweler"
TEST_NOISE = 5
"""Every fifth sound is noise of the test split; clips cut from one sound stay together."""
COMPONENTS = 4
SIZES: Mapping[str, Spectrogram] = {
    "small": Spectrogram(window=256, hop=400, frames=20, bins=128, group=8),
    "lenet": Spectrogram(window=256, hop=69, frames=112, bins=112, channel=True),
}

_FORMAT = 1
_ARRAYS = ("images", "labels", "pairs", "speech", "speech_first", "noise", "noise_first")
_PAIR = np.dtype([("recording", "<i4"), ("crop", "<i4"), ("clip", "<i4"), ("start", "<i4"), ("gain", "<f4")])
_COMMAND = "mmjax data prepare avmnist --mnist DIR --speech DIR --noise DIR --out DIR"
_RECORDING = re.compile(r"(\d)_([^_]+)_(\d+)\.wav")
_CLIP = re.compile(r"\d+-(\d+)-[A-Z](?:-\d+)?\.(?:ogg|wav)", re.IGNORECASE)

Progress = Callable[[str, int, int], None]
"""Told (what is being done, how much of it is done, of how much)."""


class Sounds(NamedTuple):
    """Sounds of different lengths, one after the other: samples int16 [T], sound i from first[i] to first[i + 1]."""

    samples: np.ndarray
    first: np.ndarray

    def __getitem__(self, i: Any) -> Any:
        """Samples of sound i, float32 with peak 1."""
        return self.samples[self.first[i] : self.first[i + 1]].astype(np.float32) / 32767

    def lengths(self) -> np.ndarray:
        """Samples in each sound."""
        return np.diff(self.first)


@dataclass(frozen=True)
class Waveforms:
    """Waveforms float32 [N, 8000], each mixed from its recording and its piece of noise when it is asked for.

    pairs: structured array [N] with fields recording, crop, clip, start, gain.
    """

    speech: Sounds
    noise: Sounds
    pairs: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, 8000)."""
        return (len(self.pairs), RATE)

    @property
    def dtype(self) -> np.dtype:
        """float32."""
        return np.dtype(np.float32)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: Any, /) -> np.ndarray:
        """Mix the waveforms of an integer [8000], or of a slice, an integer array or a mask [B, 8000]."""
        chosen = self.pairs[index]
        pairs = np.atleast_1d(chosen)
        speech_first = self.speech.first[pairs["recording"]] + pairs["crop"]
        length = np.minimum(self.speech.first[pairs["recording"] + 1] - speech_first, RATE)
        noise_first = self.noise.first[pairs["clip"]] + pairs["start"]
        mixed = np.empty((len(pairs), RATE), dtype=np.float32)
        # row by row: slices are copied several times faster than gathered by an index of every sample
        for row in range(len(pairs)):
            piece = self.noise.samples[noise_first[row] : noise_first[row] + RATE]
            np.multiply(piece, pairs["gain"][row] / np.float32(32767), out=mixed[row])
            spoken = self.speech.samples[speech_first[row] : speech_first[row] + length[row]]
            mixed[row, : length[row]] += spoken * np.float32(1 / 32767)
        return mixed[0] if np.ndim(chosen) == 0 else mixed


@dataclass(frozen=True, kw_only=True)
class AvMnist(DataConfig):
    """Degraded MNIST images and noisy spoken digits, from the folder that `mmjax data prepare avmnist` made.

    Inputs: image float32 [N, 28, 28, 1], standardised; audio float32 [N, 8000], waveforms that the step turns into
    standardised log power spectrograms: [B, 20, 16] for size "small", [B, 112, 112, 1] for "lenet". The speaker and
    the noise clips of the test split are in neither of the others. The first `num_...` examples of each split are
    used; the defaults are the fast runs' and 55,000 / 5,000 / 10,000 is everything.
    Raises FileNotFoundError when the folder is not there or not complete, and ValueError when one of its files is not
    what was written, when a count is out of range and for an unknown size or modality, or a rate out of range.

    Example:
    >>> AvMnist(path="no/such/folder").load()  # doctest: +IGNORE_EXCEPTION_DETAIL
    Traceback (most recent call last):
    FileNotFoundError: ...
    """

    name: str = "avmnist"
    path: str = "data/avmnist"
    """Folder made by `mmjax data prepare avmnist`."""
    size: Literal["small", "lenet"] = "small"
    """Spectrogram: small (20 frames x 16 bands) or lenet (112 x 112, the published setting)."""
    num_train: int = 20_000
    """Training examples to use, at most 55,000."""
    num_validation: int = 2_500
    """Validation examples to use, at most 5,000."""
    num_test: int = 5_000
    """Test examples to use, at most 10,000."""
    missing: dict[str, float] = field(default_factory=dict)
    """Probability that an example lacks this modality, below 1; 0 where not named. Never are all of them missing."""
    missing_seed: int = 0
    """Seed of what is missing."""

    needs: ClassVar[str] = f"MNIST, FSDD and ESC-10, prepared once: {_COMMAND}"

    def load(self) -> Splits:
        """Load the three splits; only `self.modalities` of them."""
        if self.size not in SIZES:
            raise ValueError(f"data.size={self.size!r}: take one of {', '.join(SIZES)}")
        chosen = chosen_modalities(self.modalities, ("audio", "image"))
        folder = Path(self.path)
        manifest = _read_manifest(folder)
        arrays = {name: _read_array(folder, name, manifest) for name in _ARRAYS}
        speech, noise = Sounds(arrays["speech"], arrays["speech_first"]), Sounds(arrays["noise"], arrays["noise_first"])
        counts = {"train": self.num_train, "validation": self.num_validation, "test": self.num_test}
        moments = manifest["moments"]
        mean, std = moments[self.size]
        spectrogram = dataclasses.replace(SIZES[self.size], mean=mean, std=std)

        def split(name: str) -> Dataset:
            begin, end = manifest["splits"][name]
            if not 1 <= counts[name] <= end - begin:
                raise ValueError(f"data.num_{name}={counts[name]}: {self.path} has {end - begin}; take 1 to that")
            rows = slice(begin, begin + counts[name])
            inputs: dict[str, ArrayLike] = {}
            if "image" in chosen:
                mean, std = moments["image"]
                inputs["image"] = ((arrays["images"][rows, :, :, None] - np.float32(mean)) / np.float32(std)).astype(
                    np.float32
                )
            if "audio" in chosen:
                inputs["audio"] = Waveforms(speech, noise, arrays["pairs"][rows])
            return Dataset(
                inputs,
                arrays["labels"][rows].astype(np.int32),
                Task("classification", 10, tuple(str(digit) for digit in range(10))),
                {"audio": spectrogram} if "audio" in inputs else {},
            )

        splits = Splits(split("train"), split("validation"), split("test"))
        return check_splits(with_missing(splits, self.missing, self.missing_seed))


def prepare(
    mnist: str | Path,
    speech: str | Path,
    noise: str | Path,
    out: str | Path,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Make the folder `out` that `AvMnist` loads; returns its manifest (counts, seed, sha256 of every file).

    mnist: folder of the four original idx files, gzipped or not. speech: folder of the Free Spoken Digit Dataset's
    `{digit}_{speaker}_{index}.wav`, searched with its sub-folders. noise: folder of ESC-10's `fold-clip-take.ogg` (or
    .wav), searched likewise. The result is a function of the files and the seed, not of the order in which a file
    system lists them.

    Images: projection on the first 4 principal components of the training images, and back. Each is paired with a
    random recording of its digit, by speaker "yweweler" in the test split and by the others elsewhere, peak-normalised,
    cropped at random or zero-padded to 1 s, and with a random audible second of noise, scaled to standard deviation
    0.3; clips of every fifth original sound (the second number of their names) are kept for the test split.
    Raises FileNotFoundError or ValueError, naming the file or folder, when something is missing, truncated or not in
    its format; ImportError when an .ogg is to be read and the extra [audio] is not installed.
    """
    if seed < 0:
        raise ValueError(f"seed={seed} must be at least 0")
    tell: Progress = progress or (lambda what, done, total: None)
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "manifest.json").unlink(missing_ok=True)  # written last: a folder without it is not complete

    clean, labels, splits = _read_mnist(Path(mnist))
    recordings = _find(Path(speech), _RECORDING, "recordings named digit_speaker_index.wav")
    clips = _find(Path(noise), _CLIP, "noise clips named fold-clip-take.ogg or .wav")
    speech_sounds = _read_sounds(recordings, _read_recording, "recordings", tell)
    noise_sounds = _read_sounds(clips, _read_clip, "noise clips", tell)
    tell("images", 0, 1)
    images = degrade(clean, slice(*splits["train"]))
    tell("images", 1, 1)
    pairs = _pair_all(labels, splits, recordings, speech_sounds, clips, noise_sounds, seed, tell)

    begin, end = splits["train"]
    waveforms = Waveforms(speech_sounds, noise_sounds, pairs[begin : min(end, begin + 2000)])
    moments = {name: _spectrogram_moments(spectrogram, waveforms) for name, spectrogram in SIZES.items()}
    train_images = images[begin:end]
    moments["image"] = [round(float(train_images.mean()), 4), round(float(train_images.std()), 4)]
    arrays = {
        "images": images,
        "labels": labels,
        "pairs": pairs,
        "speech": speech_sounds.samples,
        "speech_first": speech_sounds.first,
        "noise": noise_sounds.samples,
        "noise_first": noise_sounds.first,
    }
    for name in _ARRAYS:
        np.save(_file(out, name), arrays[name])
    manifest = {
        "format": _FORMAT,
        "seed": seed,
        "splits": splits,
        "moments": moments,
        "recordings": [path.name for path in recordings],
        "clips": [path.name for path in clips],
        "sha256": {name: hashlib.sha256(_file(out, name).read_bytes()).hexdigest() for name in _ARRAYS},
    }
    (out / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    return manifest


def degrade(images: np.ndarray, train: slice) -> np.ndarray:
    """Project images uint8 [N, H, W] on the first 4 principal components of the rows `train`, and back; uint8."""
    pixels = images.reshape(len(images), -1)
    known = pixels[train]
    mean = known.mean(0, dtype=np.float64)
    # in pieces: 55,000 images in float64 are 350 MB
    covariance = np.zeros((pixels.shape[1], pixels.shape[1]))
    for i in range(0, len(known), 5000):
        centred = known[i : i + 5000] - mean
        covariance += centred.T @ centred
    basis = np.linalg.eigh(covariance)[1][:, -COMPONENTS:]
    reconstructed = np.empty_like(pixels)
    for i in range(0, len(pixels), 5000):
        projected = (pixels[i : i + 5000] - mean) @ basis @ basis.T + mean
        reconstructed[i : i + 5000] = np.rint(np.clip(projected, 0, 255))
    return reconstructed.reshape(images.shape)


def draw_pair(
    seed: int,
    index: int,
    recordings: np.ndarray,
    lengths: np.ndarray,
    clips: Sequence[int],
    levels: Mapping[int, tuple[np.ndarray, np.ndarray]],
) -> tuple[int, int, int, int, float]:
    """Draw (recording, crop, clip, start, gain) of one example: a function of its arguments alone.

    recordings, clips: numbers to choose from; lengths: samples of each recording; levels: of each clip, the starts of
    its audible seconds and their standard deviations.
    """
    rng = np.random.Generator(np.random.Philox(key=np.array([seed, index], dtype=np.uint64)))
    recording = int(recordings[rng.integers(len(recordings))])
    crop = int(rng.integers(max(0, int(lengths[recording]) - RATE) + 1))
    clip = int(clips[int(rng.integers(len(clips)))])
    starts, deviations = levels[clip]
    choice = rng.integers(len(starts))
    return recording, crop, clip, int(starts[choice]), NOISE_STD / float(deviations[choice])


def audible_seconds(samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Starts int32 [S] of a clip's audible seconds and their standard deviations [S].

    Audible: at least a tenth of the clip's loudest second; clips are padded with digital silence, which no factor
    brings to a given standard deviation. Raises ValueError for a clip shorter than a second or silent throughout.
    """
    if len(samples) < RATE:
        raise ValueError(f"it has {len(samples)} samples at 8 kHz; a second, {RATE}, is needed")
    sums = [np.concatenate([[0.0], np.cumsum(samples.astype(np.float64) ** power)]) for power in (1, 2)]
    mean, square = ((total[RATE:] - total[:-RATE]) / RATE for total in sums)
    deviation = np.sqrt(np.maximum(square - mean**2, 0))
    if deviation.max() < 1e-4:
        raise ValueError("it is silent")
    starts = np.flatnonzero(deviation >= 0.1 * deviation.max())
    return starts.astype(np.int32), deviation[starts]


def _pair_all(
    labels: np.ndarray,
    splits: Mapping[str, Sequence[int]],
    recordings: Sequence[Path],
    speech: Sounds,
    clips: Sequence[Path],
    noise: Sounds,
    seed: int,
    tell: Progress,
) -> np.ndarray:
    """Pairing table of all examples."""
    named = [_RECORDING.fullmatch(path.name) for path in recordings]
    digit_of = np.array([int(m[1]) for m in named if m])
    held_out = np.array([m[2] == TEST_SPEAKER for m in named if m])
    sources = [int(m[1]) for m in map(_CLIP.fullmatch, (path.name for path in clips)) if m]
    test_sources = sorted(set(sources))[TEST_NOISE - 1 :: TEST_NOISE]
    if not test_sources:
        raise ValueError(
            f"noise: the clips stem from {len(set(sources))} sounds (the second number in their names); at least "
            f"{TEST_NOISE} are needed, of which every {TEST_NOISE}th is kept for the test split"
        )
    levels = {}
    for i, path in enumerate(clips):
        try:
            levels[i] = audible_seconds(noise[i])
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    lengths = speech.lengths()
    pairs = np.zeros(len(labels), dtype=_PAIR)
    for split, (begin, end) in splits.items():
        is_test = split == "test"
        choices = [np.flatnonzero((digit_of == digit) & (held_out == is_test)) for digit in range(10)]
        for digit in np.unique(labels[begin:end]):
            if not len(choices[digit]):
                who = f"speaker {TEST_SPEAKER}" if is_test else f"a speaker other than {TEST_SPEAKER}"
                raise ValueError(f"speech: no recording of digit {digit} by {who}, which the {split} split needs")
        split_clips = [i for i, source in enumerate(sources) if (source in test_sources) == is_test]
        for index in range(begin, end):
            pairs[index] = draw_pair(seed, index, choices[labels[index]], lengths, split_clips, levels)
            if index % 1000 == 0 or index + 1 == len(labels):
                tell("pairs", index + 1, len(labels))
    return pairs


def _read_mnist(folder: Path) -> tuple[np.ndarray, np.ndarray, dict[str, list[int]]]:
    """Images uint8 [N, 28, 28] and labels uint8 [N], test after training, and where each split begins and ends."""
    images, labels = [], []
    for part in ("train", "t10k"):
        image_file = _mnist_file(folder, f"{part}-images-idx3-ubyte")
        label_file = _mnist_file(folder, f"{part}-labels-idx1-ubyte")
        image, label = read_idx(image_file), read_idx(label_file)
        if image.ndim != 3 or image.shape[1:] != (28, 28):
            raise ValueError(f"{image_file}: images of shape {image.shape}; they must be [N, 28, 28]")
        if label.shape != (len(image),):
            raise ValueError(f"{label_file}: labels of shape {label.shape} for {len(image)} images")
        if label.max(initial=0) > 9:
            raise ValueError(f"{label_file}: label {label.max()}; a digit is 0 to 9")
        images.append(image)
        labels.append(label)
    known, total = len(images[0]), len(images[0]) + len(images[1])
    train = known - known // 12  # 55,000 of 60,000
    splits = {"train": [0, train], "validation": [train, known], "test": [known, total]}
    return np.concatenate(images), np.concatenate(labels), splits


def _mnist_file(folder: Path, name: str) -> Path:
    for path in (folder / f"{name}.gz", folder / name):
        if path.is_file():
            return path
    raise FileNotFoundError(f"mnist: neither {name}.gz nor {name} is in {folder}")


def _find(folder: Path, pattern: re.Pattern[str], what: str) -> list[Path]:
    """Files under `folder` whose name fits, sorted by name, so that the listing's order does not matter."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; one with {what} was expected")
    found = sorted((path for path in folder.rglob("*") if pattern.fullmatch(path.name)), key=lambda path: path.name)
    if not found:
        raise FileNotFoundError(f"{folder}: no {what} in it")
    for path, following in itertools.pairwise(found):
        if path.name == following.name:
            raise ValueError(f"{path} and {following} have the same name; keep one of them")
    return found


def _read_sounds(paths: Sequence[Path], read: Callable[[Path], np.ndarray], what: str, tell: Progress) -> Sounds:
    """Read sounds and store them peak-normalised, as int16."""
    pieces = []
    for done, path in enumerate(paths, 1):
        sound = read(path)
        peak = np.abs(sound).max(initial=0.0)
        if not peak > 0:
            raise ValueError(f"{path}: it is empty or silent throughout")
        pieces.append(np.rint(sound * (32767 / peak)).astype(np.int16))
        tell(what, done, len(paths))
    first = np.concatenate([[0], np.cumsum([len(piece) for piece in pieces])])
    return Sounds(np.concatenate(pieces), first.astype(np.int64))


def _read_recording(path: Path) -> np.ndarray:
    sound, rate = _read_wav(path)
    if rate != RATE:
        raise ValueError(f"{path}: {rate} samples a second; recordings must have {RATE}")
    return sound


def _read_clip(path: Path) -> np.ndarray:
    from scipy.signal import resample_poly

    sound, rate = _read_wav(path) if path.suffix.lower() == ".wav" else _read_ogg(path)
    return resample_poly(sound, RATE, rate)  # takes out the common divisor itself


def _read_wav(path: Path) -> tuple[np.ndarray, int]:
    """Samples float64 [T] (channels averaged) and rate of a 16-bit wav file."""
    try:
        with wave.open(str(path), "rb") as reader:
            channels, width, rate, length = reader.getparams()[:4]
            raw = reader.readframes(length)
    except (wave.Error, EOFError) as error:
        raise ValueError(f"{path}: not a readable wav file ({error or 'it ends too early'})") from error
    if width != 2:
        raise ValueError(f"{path}: {8 * width} bits a sample; 16 are needed")
    if len(raw) != length * channels * width:
        raise ValueError(f"{path}: truncated, {len(raw)} bytes of sound where its header says {length * channels * 2}")
    return np.frombuffer(raw, dtype="<i2").reshape(-1, channels).mean(1), rate


def _read_ogg(path: Path) -> tuple[np.ndarray, int]:
    try:
        import soundfile
    except ImportError as error:
        raise ImportError(f"{path}: reading .ogg needs soundfile; install mmjax[audio]") from error
    try:
        sound, rate = soundfile.read(path, dtype="float64", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise ValueError(f"{path}: not a readable ogg file ({error})") from error
    return sound.mean(1), rate


def _spectrogram_moments(spectrogram: Spectrogram, waveforms: Waveforms) -> list[float]:
    """Mean and standard deviation of the spectrograms; rounded, so that they are the same on every machine."""
    compiled = jax.jit(spectrogram)
    rows = [np.asarray(compiled(waveforms[i : i + 100]), np.float64) for i in range(0, len(waveforms), 100)]
    values = np.concatenate(rows)
    return [round(float(values.mean()), 4), round(float(values.std()), 4)]


def _file(folder: Path, name: str) -> Path:
    return folder / f"{name}.npy"


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.json"
    if not path.is_file():
        raise FileNotFoundError(f"data.path={str(folder)!r} holds no prepared AV-MNIST; make it with\n  {_COMMAND}")
    manifest: dict[str, Any] = json.loads(path.read_text())
    if manifest.get("format") != _FORMAT:
        raise ValueError(f"{path}: format {manifest.get('format')}, not {_FORMAT}; prepare the folder again")
    return manifest


def _read_array(folder: Path, name: str, manifest: Mapping[str, Any]) -> np.ndarray:
    path = _file(folder, name)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: missing; prepare the folder again with\n  {_COMMAND}")
    if hashlib.sha256(path.read_bytes()).hexdigest() != manifest["sha256"][name]:
        raise ValueError(f"{path}: not the file that was written (its sha256 differs); prepare the folder again")
    array: np.ndarray = np.load(path)
    return array
