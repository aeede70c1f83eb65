"""Data: where they come from, how they are checked, and how they become batches."""

from __future__ import annotations

from mmjax.config import DataConfig
from mmjax.data.arrays import Npz, from_arrays, read_inputs
from mmjax.data.avdigits import AvDigits
from mmjax.data.avmnist import AvMnist
from mmjax.data.batches import Batch, as_input, batch_indices, evaluation_batches, gather
from mmjax.data.check import Report, describe
from mmjax.data.dataset import Dataset, Splits, Task
from mmjax.data.health import health_arrays
from mmjax.data.image_tags import ImageTags
from mmjax.data.mfeat import Mfeat
from mmjax.data.missing import with_missing
from mmjax.data.mnist_halves import MnistHalves
from mmjax.data.planted import Planted, PlantedTruth, planted_posterior, planted_truth
from mmjax.data.questions import question_arrays
from mmjax.data.standardize import Standardize
from mmjax.data.tokens import TokenNumbers
from mmjax.data.validation import check_splits, require_complete, select, validate

SOURCES: dict[str, type[DataConfig]] = {
    "avdigits": AvDigits,
    "avmnist": AvMnist,
    "image_tags": ImageTags,
    "mfeat": Mfeat,
    "mnist_halves": MnistHalves,
    "npz": Npz,
    "planted": Planted,
}
"""The sources by their names; each class says in `needs` what it takes to load it."""

__all__ = [
    "SOURCES",
    "AvDigits",
    "AvMnist",
    "Batch",
    "Dataset",
    "ImageTags",
    "Mfeat",
    "MnistHalves",
    "Npz",
    "Planted",
    "PlantedTruth",
    "Report",
    "Splits",
    "Standardize",
    "Task",
    "TokenNumbers",
    "as_input",
    "batch_indices",
    "check_splits",
    "describe",
    "evaluation_batches",
    "from_arrays",
    "gather",
    "health_arrays",
    "planted_posterior",
    "planted_truth",
    "question_arrays",
    "read_inputs",
    "require_complete",
    "select",
    "validate",
    "with_missing",
]
