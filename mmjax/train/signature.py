"""What a trained model takes and gives, kept in the work folder so that predicting needs no training data."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from jax import Array

from mmjax.config_file import from_json, to_json
from mmjax.data import Dataset, Task

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


def write_signature(folder: Path, train: Dataset) -> None:
    """Write the signature of a model trained on `train`."""
    signature = {
        "task": to_json(train.task),
        "inputs": {
            m: {"shape": list(x.shape[1:]), "kind": x.dtype.kind, "preprocess": _node(train.preprocess.get(m))}
            for m, x in train.inputs.items()
        },
    }
    path = folder / FILE
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(signature, indent=2))
    temporary.replace(path)


def _node(preprocess: Any) -> Any:
    return None if preprocess is None else to_json(preprocess)


def read_signature(folder: Path) -> Signature:
    """Return the signature. Raises FileNotFoundError if the folder has none."""
    path = folder / FILE
    if not path.exists():
        raise FileNotFoundError(f"{folder} is not a work folder of a run: it has no {FILE}")
    raw = json.loads(path.read_text())
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
