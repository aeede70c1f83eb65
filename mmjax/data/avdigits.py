"""The embedded set: noisy handwritten digits with synthesised speech of the same digit. Nothing to download.

Made by `tools/make_avdigits.py`, which tells the origin of both; the package ships the result.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import resources
from typing import ClassVar

import numpy as np

from mmjax.config import DataConfig
from mmjax.data.dataset import Dataset, Splits, Task
from mmjax.data.missing import with_missing
from mmjax.data.validation import check_splits, chosen_modalities

_FILE = "avdigits.npz"
_TASK = Task("classification", 10, tuple(str(digit) for digit in range(10)))


@dataclass(frozen=True, kw_only=True)
class AvDigits(DataConfig):
    """Images 8x8 of digits and spectrograms of the spoken digit: 3,291 / 900 / 1,200 examples, 10 classes.

    Inputs, both standardised by the training split's mean and standard deviation (one number each): image float32
    [N, 8, 8, 1]; audio float32 [N, 20, 16], 20 frames of 50 ms by 16 bands. Each image comes three times in its split,
    each time with another utterance and other noise. The voices of the validation and of the test split are heard in
    no other. The image is learned fast and the speech slowly: trained on the fusion loss alone, the audio encoder stays
    well behind what it reaches on its own.
    Raises ValueError for a modality that the set does not hold, and for a rate of `missing` out of range.

    Example:
    >>> splits = AvDigits().load()
    >>> splits.train.modalities, len(splits.train), splits.train.inputs["audio"].shape
    (('audio', 'image'), 3291, (3291, 20, 16))
    """

    name: str = "avdigits"
    missing: dict[str, float] = field(default_factory=dict)
    """Probability that an example lacks this modality, below 1; 0 where not named. Never are all of them missing."""
    missing_seed: int = 0
    """Seed of what is missing."""

    needs: ClassVar[str] = "nothing: it comes with mmjax"

    def load(self) -> Splits:
        """Load the three splits; only `self.modalities` of them."""
        with resources.files("mmjax.data").joinpath(_FILE).open("rb") as file, np.load(file) as stored:
            arrays = {key: stored[key] for key in stored.files}
        chosen = chosen_modalities(self.modalities, ("audio", "image"))
        moments = {m: (arrays[f"train_{m}"].mean(), arrays[f"train_{m}"].std()) for m in chosen}

        def split(name: str) -> Dataset:
            inputs = {m: _standardise(arrays[f"{name}_{m}"], *moments[m]) for m in chosen}
            if "image" in inputs:
                inputs["image"] = inputs["image"][..., None]
            return Dataset(inputs, arrays[f"{name}_label"].astype(np.int32), _TASK)

        splits = Splits(split("train"), split("validation"), split("test"))
        return check_splits(with_missing(splits, self.missing, self.missing_seed))


def _standardise(values: np.ndarray, mean: float, std: float) -> np.ndarray:
    return ((values - mean) / std).astype(np.float32)
