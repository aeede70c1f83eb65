"""What a trained model takes and gives, kept in the work folder so that predicting needs no training data."""

from __future__ import annotations

import json
import reprlib
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from mmjax.config_file import from_json, read_json, to_json
from mmjax.data import Splits, Task
from mmjax.train.journal import first_difference, write_whole

FILE = "signature.json"


@dataclass(frozen=True)
class Signature:
    """What a model takes and gives.

    task: what the outputs mean; shapes: {modality: shape of one example}; kinds: {modality: NumPy dtype kind};
    preprocess: {modality: frozen dataclass, called on a batch}.
    """

    task: Task
    shapes: dict[str, tuple[int, ...]]
    kinds: dict[str, str]
    preprocess: Mapping[str, Callable[[Any], Any]]


def write_signature(folder: Path, splits: Splits) -> None:
    """Write the signature of a model trained on `splits`, or check that it is the one that the folder has.

    Raises:
      ValueError: the folder's run was trained on other data, as far as the signature tells (statistics of
        standardisation, sizes and labels of the splits are part of it); the first field that differs is named.
    """
    train, parts = splits.train, {"train": splits.train, "validation": splits.validation, "test": splits.test}
    signature = {
        "task": to_json(train.task),
        "inputs": {
            m: {"shape": list(x.shape[1:]), "kind": x.dtype.kind, "preprocess": _node(train.preprocess.get(m))}
            for m, x in sorted(train.inputs.items())
        },
        "examples": {name: len(part) for name, part in parts.items()},
        "labels": {name: zlib.crc32(np.ascontiguousarray(part.label).tobytes()) for name, part in parts.items()},
    }
    path = folder / FILE
    if path.exists():
        difference = first_difference(read_json(path), json.loads(json.dumps(signature)), "")
        if difference is not None:
            field, there, here = difference
            raise ValueError(
                f"work folder {folder} holds a run on other data: {field} is {reprlib.repr(there)} there and "
                f"{reprlib.repr(here)} here; choose another --workdir, or the same data to resume"
            )
        return
    write_whole(path, json.dumps(signature, indent=2))


def _node(preprocess: Any) -> Any:
    return None if preprocess is None else to_json(preprocess)


def read_signature(folder: Path) -> Signature:
    """Return the signature. Raises FileNotFoundError if the folder has none."""
    path = folder / FILE
    if not path.exists():
        raise FileNotFoundError(f"{folder} is not a work folder of a run: it has no {FILE}")
    raw = read_json(path)
    inputs = raw["inputs"]
    return Signature(
        task=from_json(raw["task"]),
        shapes={m: tuple(spec["shape"]) for m, spec in inputs.items()},
        kinds={m: spec["kind"] for m, spec in inputs.items()},
        preprocess={m: from_json(spec["preprocess"]) for m, spec in inputs.items() if spec["preprocess"] is not None},
    )


def example_inputs(signature: Signature) -> dict[str, Array]:
    """Return zeros of the right shapes, [1, ...], as a step takes them."""
    return {
        m: jnp.zeros((1, *shape), jnp.int32 if signature.kinds[m] == "i" else jnp.float32)
        for m, shape in signature.shapes.items()
    }
