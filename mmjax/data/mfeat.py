"""UCI Multiple Features: 2,000 handwritten digits in six views, each view a modality."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from mmjax.config import DataConfig
from mmjax.data.arrays import from_arrays
from mmjax.data.dataset import Splits
from mmjax.data.validation import chosen_modalities

VIEWS = {"fac": 216, "fou": 76, "kar": 64, "mor": 6, "pix": 240, "zer": 47}
"""Modality (the file is `mfeat-<modality>`) and its number of features: profile correlations, Fourier coefficients,
Karhunen-Loeve coefficients, morphological features, pixel averages, Zernike moments."""

ROWS = 2000
ROWS_A_DIGIT = 200


def read_view(folder: str | Path, view: str) -> np.ndarray:
    """Return one view's file, float32 [2000, features].

    Raises:
      FileNotFoundError: no such file; the message says where the six files come from.
      ValueError: an entry that is no number, or another number of rows or columns than the published file has.
    """
    path = Path(folder) / f"mfeat-{view}"
    if not path.is_file():
        raise FileNotFoundError(
            f"data.path: no file {str(path)!r}; the folder must hold {', '.join(f'mfeat-{name}' for name in VIEWS)} "
            "(UCI Machine Learning Repository, 'Multiple Features')"
        )
    try:
        table = np.loadtxt(path, dtype=np.float64, ndmin=2)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    expected = (ROWS, VIEWS[view])
    if table.shape != expected:
        raise ValueError(f"{path} has {table.shape[0]} rows of {table.shape[1]} numbers; expected {expected}")
    return table.astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class Mfeat(DataConfig):
    """Handwritten digits in six views (Karhunen-Loeve, Fourier, pixels, ...), 10 classes of 200; CC BY 4.0.

    The files are those of the UCI Machine Learning Repository ("Multiple Features", by Robert Duin), in which the
    digit of a row is its number // 200. Splits are drawn by class; features are standardised over training. Six digits
    stand in the published files twice; nothing is removed, so up to 6 test digits may also be in training.

    Example:
    >>> Mfeat(path="no/such/folder", modalities=("fou", "kar")).load()  # doctest: +IGNORE_EXCEPTION_DETAIL
    Traceback (most recent call last):
    FileNotFoundError: ...
    """

    name: str = "mfeat"
    path: str = ""
    """Folder with the files mfeat-fac, mfeat-fou, mfeat-kar, mfeat-mor, mfeat-pix and mfeat-zer."""
    validation_fraction: float = 0.2
    """Share of the 2,000 digits for validation."""
    test_fraction: float = 0.2
    """Share of the 2,000 digits for the test."""
    split_seed: int = 0
    """Seed of the splits."""

    needs: ClassVar[str] = "the six files of UCI 'Multiple Features', 5 MB (--data.path FOLDER)"

    def load(self) -> Splits:
        """Read the chosen views and split them.

        Raises:
          FileNotFoundError: a file that is missing.
          ValueError: an unknown view, a file that is not as published, fractions out of range.
        """
        names = chosen_modalities(self.modalities, VIEWS)
        if not self.path:
            raise ValueError("data.path is empty; name the folder that holds the six mfeat-* files")
        return from_arrays(
            {name: read_view(self.path, name) for name in names},
            np.arange(ROWS) // ROWS_A_DIGIT,
            label_names=tuple(str(digit) for digit in range(ROWS // ROWS_A_DIGIT)),
            validation_fraction=self.validation_fraction,
            test_fraction=self.test_fraction,
            split_seed=self.split_seed,
        )
