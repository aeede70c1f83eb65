"""MNIST, its left and right halves as two modalities."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from mmjax.config import DataConfig
from mmjax.data.dataset import Dataset, Splits, Task
from mmjax.data.idx import read_idx
from mmjax.data.standardize import Standardize
from mmjax.data.validation import check_splits, chosen_modalities

HALVES = {"left": slice(0, 14), "right": slice(14, 28)}
"""Modality and its columns of the image."""

_TASK = Task("classification", 10, tuple(str(digit) for digit in range(10)))


@dataclass(frozen=True, kw_only=True)
class MnistHalves(DataConfig):
    """Left and right halves of MNIST: images [N, 28, 14] in [0, 1], 10 classes, 50,000 / 10,000 / 10,000 examples.

    Training and validation are the first and the last of the 60,000 training images; a smaller training or validation
    split takes the first of its part, a smaller test split the first test images.

    Example:
    >>> MnistHalves(path="data/mnist", num_train=5_000).needs
    'the four idx files of MNIST, 11 MB (--data.path FOLDER)'
    >>> MnistHalves(path="data/mnist", num_train=60_000).load()
    Traceback (most recent call last):
        ...
    ValueError: data.num_train must be in 1..50000, got 60000
    """

    name: str = "mnist_halves"
    path: str = ""
    """Folder of the four idx files of MNIST, gzipped or not."""
    num_train: int = 50_000
    """Training examples, up to 50,000."""
    num_validation: int = 10_000
    """Validation examples, up to 10,000."""
    num_test: int = 10_000
    """Test examples, up to 10,000."""

    needs: ClassVar[str] = "the four idx files of MNIST, 11 MB (--data.path FOLDER)"

    def load(self) -> Splits:
        """Read the images and cut them in two.

        Raises:
          FileNotFoundError: a file that is missing.
          ValueError: an unknown modality, a split larger than there is, a file that is not MNIST's.
        """
        halves = chosen_modalities(self.modalities, HALVES)
        if not self.path:
            raise ValueError("data.path is empty; name the folder that holds the four idx files of MNIST")
        for name, most in (("num_train", 50_000), ("num_validation", 10_000), ("num_test", 10_000)):
            if not 1 <= getattr(self, name) <= most:
                raise ValueError(f"data.{name} must be in 1..{most}, got {getattr(self, name)}")
        images, labels = _read(Path(self.path), "train")
        test_images, test_labels = _read(Path(self.path), "t10k")
        preprocess = {half: Standardize((0.0,), (255.0,)) for half in halves}

        def part(images: np.ndarray, labels: np.ndarray, start: int, count: int) -> Dataset:
            chosen = slice(start, start + count)
            inputs = {half: np.ascontiguousarray(images[chosen, :, HALVES[half]]) for half in halves}
            return Dataset(inputs, labels[chosen].astype(np.int32), _TASK, preprocess)

        return check_splits(
            Splits(
                part(images, labels, 0, self.num_train),
                part(images, labels, 50_000, self.num_validation),
                part(test_images, test_labels, 0, self.num_test),
            )
        )


def _read(folder: Path, which: str) -> tuple[np.ndarray, np.ndarray]:
    def read(kind: str) -> np.ndarray:
        plain = folder / f"{which}-{kind}-ubyte"
        return read_idx(plain if plain.exists() else plain.with_name(plain.name + ".gz"))

    images, labels = read("images-idx3"), read("labels-idx1")
    count = 60_000 if which == "train" else 10_000
    if images.shape != (count, 28, 28) or labels.shape != (count,):
        raise ValueError(f"{folder}: MNIST has {count} {which} images 28x28; found {images.shape} and {labels.shape}")
    return images, labels
