"""Recurrent mean-field inference: fill in what is missing, round by round."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import Array

from mmjax.generative.recurrence import check_rounds, iterate, until_converged
from mmjax.generative.visible import VisibleKind, visible_mean


class Visibility(NamedTuple):
    """Which entries of the missing modalities are visible all the same: {modality: bool [B, D_m]}, and their values.

    >>> given = Visibility(mask={"tags": jnp.array([[True, False]])}, values={"tags": jnp.array([[1.0, 0.0]])})
    >>> jnp.where(given.mask["tags"], given.values["tags"], 0.5).tolist()  # the first tag is known, the second is not
    [[1.0, 0.5]]
    """

    mask: dict[str, Array]
    values: dict[str, Array]


class Rounds(ABC):
    """The recurrence from the given modalities to the `missing` ones; its state is the hidden units' mean, [B, H].

    `start` is the feed-forward pass. Each round decodes the missing modalities, puts the entries that are visible back,
    and encodes everything again.

    >>> class Half(Rounds):  # one hidden unit that follows what it predicts, half the way
    ...     start = jnp.array([[1.0]])
    ...     def activation(self, hidden):
    ...         return {"y": hidden}
    ...     def encode(self, filled):
    ...         return filled["y"] / 2
    >>> Half({"y": "gaussian"}, missing=("y",)).run(3).tolist()
    [[0.125]]
    """

    start: Array

    def __init__(
        self, visible: Mapping[str, VisibleKind], missing: tuple[str, ...], visibility: Visibility | None = None
    ):
        self.visible, self.missing, self.visibility = visible, missing, visibility

    @abstractmethod
    def activation(self, hidden: Array) -> dict[str, Array]:
        """Return the input activation of every missing modality, {modality: [B, D_m]}."""

    @abstractmethod
    def encode(self, filled: Mapping[str, Array]) -> Array:
        """Return the hidden units' mean given the given modalities and the missing ones as filled in."""

    def decode(self, hidden: Array) -> dict[str, Array]:
        """Return the mean of every missing modality, visible entries as they are."""
        means = {m: visible_mean(self.visible[m], a) for m, a in self.activation(hidden).items()}
        if self.visibility is None:
            return means
        mask, values = self.visibility
        return {m: jnp.where(mask[m], values[m], mean) for m, mean in means.items()}

    def step(self, hidden: Array) -> Array:
        """Take one round."""
        return self.encode(self.decode(hidden))

    def run(self, n_steps: int, *, backprop_steps: int | None = None) -> Array:
        """Return the hidden units' mean after `n_steps` rounds, for training; see `iterate`."""
        return iterate(self.step, self.start, n_steps, backprop_steps=backprop_steps)


class Recurrent(Protocol):
    """A model with hidden units over the inputs of all modalities: `MRBM`, `MDRNN`.

    >>> from mmjax.generative import MRBM
    >>> model: Recurrent = MRBM({"x": "binary", "y": "binary"}, num_hidden=2)
    >>> model.modalities, model.missing(("x",))
    (('x', 'y'), ('y',))
    >>> params = model.init(jax.random.key(0), {"x": 3, "y": 1})
    >>> rounds = model.rounds(params, {"x": jnp.ones((5, 3))})
    >>> rounds.start.shape, rounds.decode(rounds.start)["y"].shape
    ((5, 2), (5, 1))
    """

    @property
    def visible(self) -> Mapping[str, VisibleKind]:
        """Kind of each modality's visible units."""

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the modalities, sorted."""

    def missing(self, given: Iterable[str]) -> tuple[str, ...]:
        """Return the modalities that `given` leaves out; ValueError if none is given."""

    def hidden_logits(self, params: Any, inputs: Mapping[str, Array]) -> Array:
        """Return the hidden units' logits given all modalities, [B, H]."""

    def rounds(self, params: Any, given: Mapping[str, Array], visibility: Visibility | None = None) -> Rounds:
        """Return the recurrence from some of the modalities to the others."""


class Inferred(NamedTuple):
    """hidden: [B, H], the features; inputs: {modality: [B, D_m]}, those given and the filled ones; rounds: int32 taken.

    >>> from mmjax.generative import MRBM
    >>> model = MRBM({"x": "binary", "y": "binary"}, num_hidden=2)
    >>> found = infer(model, model.init(jax.random.key(0), {"x": 3, "y": 1}), {"x": jnp.ones((5, 3))}, n_steps=4)
    >>> found.hidden.shape, {m: x.shape for m, x in found.inputs.items()}, int(found.rounds)
    ((5, 2), {'x': (5, 3), 'y': (5, 1)}, 4)
    """

    hidden: Array
    inputs: dict[str, Array]
    rounds: Array


def infer(
    model: Recurrent,
    params: Any,
    given: Mapping[str, Array],
    n_steps: int,
    *,
    tolerance: float | None = None,
) -> Inferred:
    """Return features and filled-in inputs of examples whose other modalities are missing.

    given: {modality: [B, D_m]}, at least one; with all of them there is nothing to fill in, and the features are
    E[h | everything]. n_steps: rounds; 0 gives the feed-forward pass. tolerance: an example stops before that many rounds
    once none of its hidden units changes by more (not differentiable).

    Raises:
      ValueError: nothing given, an unknown modality, n_steps < 0, tolerance < 0.

    >>> from mmjax.generative import MRBM
    >>> mrbm = MRBM({"x": "binary", "y": "binary"}, num_hidden=4)
    >>> params = mrbm.init(jax.random.key(0), {"x": 3, "y": 2})
    >>> infer(mrbm, params, {"x": jnp.ones((5, 3))}, n_steps=10).inputs["y"].shape
    (5, 2)
    """
    check_rounds(n_steps)
    if not model.missing(given):
        return Inferred(jax.nn.sigmoid(model.hidden_logits(params, given)), dict(given), jnp.zeros((), jnp.int32))
    rounds = model.rounds(params, given)
    if tolerance is None:
        hidden, count = iterate(rounds.step, rounds.start, n_steps), jnp.asarray(n_steps, jnp.int32)
    else:
        hidden, count = until_converged(rounds.step, rounds.start, tolerance, n_steps)
    return Inferred(hidden, dict(given) | rounds.decode(hidden), count)
