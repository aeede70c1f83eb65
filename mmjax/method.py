"""What a method may bring besides its combiner: its own objectives, and a pass over the training split now and then."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from jax import Array

PyTree = Any


@dataclass(frozen=True)
class Forward:
    """One forward pass as an objective rule sees it, inside the function that is differentiated.

    outputs: the model's `Outputs`, with the features among them, and `present`; label: [B] or [B, L].
    decide: {modality: [B, ..., D]} -> `Outputs` of other features by the same parameters and the same dropout masks; batch
      statistics stay what `outputs` made of them.
    loss: (logits [B, C], objective="fusion") -> scalar, the run's loss with its label smoothing and its example and class
      weights, over the examples that have the modality whose objective this is; under `axis_name` this device's share.
    mean_over_devices: scalars or arrays -> their mean over the devices; for what becomes a weight or a statistic.
    state: the combiner's state, before this step. key: for this step's randomness.
    active: bool [K], objectives in their order, False where no example of the (global) batch has the modality; None: no
      modality is missing anywhere.
    """

    outputs: Any
    label: Array
    decide: Callable[[Mapping[str, Array]], Any]
    loss: Callable[..., Array]
    mean_over_devices: Callable[[Any], Any]
    state: Any
    key: Array
    active: Array | None = None


class Objectives(NamedTuple):
    """What an objective rule returns: {objective: scalar}, "fusion" among them, and further arguments of the combiner."""

    losses: dict[str, Array]
    extra: dict[str, Any]


Rule = Callable[[Forward], Objectives]


def plain_losses(forward: Forward) -> Objectives:
    """Return the loss of the fusion and of every uni-modal head: the objectives of most methods."""
    return Objectives({name: forward.loss(logits, name) for name, logits in forward.outputs.by_objective.items()}, {})


@dataclass(frozen=True)
class Refresh:
    """A pass over the whole training split, in evaluation mode, before every `every`-th step, the first included.

    start: combiner state -> carry; add: (carry, `Outputs`, label [B], weight [B]: 0 for padding) -> carry (which examples
    have an objective, `Outputs.weight_of` knows);
    finish: (carry, combiner state) -> combiner state. All pure, on arrays of the whole batch, whatever the devices.
    """

    every: int
    start: Callable[[PyTree], PyTree]
    add: Callable[[PyTree, Any, Array, Array], PyTree]
    finish: Callable[[PyTree, PyTree], PyTree]
