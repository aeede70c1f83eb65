"""The multi-modal deep recurrent network: a stack a modality below joint hidden units, unrolled to fill in what is missing.

Source: Sohn, Shang and Lee, "Improved Multimodal Deep Learning with Variation of Information": layer-wise pretraining
by contrastive divergence, then the whole network unrolled and fine-tuned. The published one for image features and
tags has stacks 3857-1024-1024 and 2000-1024-1024 below 2048 joint units and takes 10 rounds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax import Array

from mmjax.generative.inference import Rounds, Visibility
from mmjax.generative.losses import persistent_contrastive_divergence
from mmjax.generative.mrbm import MRBM, MRBMParams, left_out
from mmjax.generative.rbm import RBM, RBMParams
from mmjax.generative.visible import VisibleKind, check_kind, reconstruction_loss, visible_start

PyTree = Any


class MDRNNParams(flax.struct.PyTreeNode):
    """stacks: {modality: RBMParams of each layer, bottom up}; joint: over the stacks' tops.

    >>> mdrnn = MDRNN({"image": "gaussian", "tags": "binary"}, {"image": (4,), "tags": (5, 3)}, num_hidden=6)
    >>> params = mdrnn.init(jax.random.key(0), {"image": 7, "tags": 8})
    >>> [layer.weights.shape for layer in params.stacks["tags"]], params.joint.weights["tags"].shape
    ([(8, 5), (5, 3)], (3, 6))
    """

    stacks: dict[str, tuple[RBMParams, ...]]
    joint: MRBMParams


@dataclass(frozen=True)
class MDRNN:
    """Stacks of RBMs {modality: widths, bottom up} below `num_hidden` joint units; visible: {modality: kind of input}.

    A stack may be empty; with all of them empty this is an MRBM. Encoding and decoding are mean-field: every layer
    passes on the mean of its units.

    Raises:
      ValueError: stacks of other modalities than `visible`, fewer than two, a width below 1, an unknown kind.

    >>> mdrnn = MDRNN({"image": "gaussian", "tags": "binary"}, {"image": (4,), "tags": (5, 3)}, num_hidden=6)
    >>> params = mdrnn.init(jax.random.key(0), {"image": 7, "tags": 8})
    >>> mdrnn.input_activation(params, "tags", jnp.zeros((2, 6))).shape
    (2, 8)
    """

    visible: Mapping[str, VisibleKind]
    stacks: Mapping[str, tuple[int, ...]]
    num_hidden: int

    def __post_init__(self) -> None:
        if set(self.stacks) != set(self.visible):
            raise ValueError(f"stacks are of {sorted(self.stacks)}; visible units of {sorted(self.visible)}")
        for name, kind in self.visible.items():
            check_kind(name, kind)
        if any(width < 1 for stack in self.stacks.values() for width in stack):
            raise ValueError(f"stacks must hold widths of at least 1, got {dict(self.stacks)}")
        _ = self.joint  # checks the rest

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the modalities, sorted."""
        return tuple(sorted(self.visible))

    @property
    def depth(self) -> int:
        """Layers of the deepest stack."""
        return max(len(stack) for stack in self.stacks.values())

    @property
    def joint(self) -> MRBM:
        """The model of the joint units over the stacks' tops."""
        return MRBM({m: "binary" if self.stacks[m] else kind for m, kind in self.visible.items()}, self.num_hidden)

    def layers(self, modality: str) -> list[RBM]:
        """Return the RBMs of a modality's stack, bottom up."""
        return [
            RBM(width, "binary" if level else self.visible[modality])
            for level, width in enumerate(self.stacks[modality])
        ]

    def missing(self, given: Iterable[str]) -> tuple[str, ...]:
        """Return the modalities that `given` leaves out; ValueError if none is given or one is unknown."""
        return left_out(self.modalities, given)

    def init(self, key: Array, sizes: Mapping[str, int], std: float = 0.01) -> MDRNNParams:
        """Return weights drawn from N(0, std²) and biases of 0. sizes: {modality: D_m}.

        Raises:
          ValueError: sizes of other modalities than the model's.
        """
        if set(sizes) != set(self.modalities):
            raise ValueError(f"sizes are of modalities {sorted(sizes)}; the model has {list(self.modalities)}")
        stacks, tops = {}, {}
        for place, m in enumerate(self.modalities):
            below = (sizes[m], *self.stacks[m])
            keys = jax.random.split(jax.random.fold_in(key, place), len(below))
            stacks[m] = tuple(
                rbm.init(k, n, std) for rbm, k, n in zip(self.layers(m), keys[:-1], below[:-1], strict=True)
            )
            tops[m] = below[-1]
        return MDRNNParams(stacks, self.joint.init(jax.random.fold_in(key, len(self.modalities)), tops, std))

    def scaled_to(self, params: MDRNNParams, inputs: Mapping[str, Array]) -> MDRNNParams:
        """Return the weights' directions at a scale that suits these inputs, {modality: [N, D_m]}; our own start.

        Level by level, bottom up: every hidden unit's logit has mean 0 and standard deviation 1 on the means of the units
        below (of the joint units each modality's part has 1/√M), and the visible biases are such that the units are
        as frequent as on these inputs (gaussian: have their mean) while the hidden ones are at ½. A small start without
        it leaves units of which few are ever on, such as tags, to learn their frequencies in place of their structure, and
        passes hardly anything of an example's own on to the levels above.

        Raises:
          ValueError: inputs of other modalities than the model's.

        >>> mdrnn = MDRNN({"image": "gaussian", "tags": "binary"}, {"image": (4,), "tags": (5, 3)}, num_hidden=6)
        >>> inputs = {"image": jax.random.normal(jax.random.key(1), (50, 7)), "tags": jnp.eye(50)[:, :8]}
        >>> params = mdrnn.scaled_to(mdrnn.init(jax.random.key(0), {"image": 7, "tags": 8}), inputs)
        >>> logits = inputs["image"] @ params.stacks["image"][0].weights + params.stacks["image"][0].hidden_bias
        >>> logits.std(axis=0).round(3).tolist()
        [1.0, 1.0, 1.0, 1.0]
        """
        if set(inputs) != set(self.modalities):
            raise ValueError(f"inputs are of modalities {sorted(inputs)}; the model has {list(self.modalities)}")
        stacks, tops = {}, {}
        for m in self.modalities:
            x, layers = inputs[m], []
            for rbm, layer in zip(self.layers(m), params.stacks[m], strict=True):
                weights, offset = _of_unit_spread(layer.weights, x, 1.0)
                layers.append(RBMParams(weights, visible_start(rbm.visible, x) - weights.sum(axis=1) / 2, offset))
                x = rbm.encode(layers[-1], x)
            stacks[m], tops[m] = tuple(layers), x
        spread = len(tops) ** -0.5
        scaled = {m: _of_unit_spread(params.joint.weights[m], x, spread) for m, x in tops.items()}
        joint = params.joint.replace(
            weights={m: weights for m, (weights, _) in scaled.items()},
            visible_bias={
                m: visible_start(self.joint.visible[m], x) - scaled[m][0].sum(axis=1) / 2 for m, x in tops.items()
            },
            hidden_bias=sum(offset for _, offset in scaled.values()),
        )
        return MDRNNParams(stacks, joint)

    def encode(self, params: MDRNNParams, modality: str, x: Array, depth: int | None = None) -> Array:
        """Return the mean of a stack's top, [B, D]; depth: of this layer, counted from the input (0), instead."""
        for rbm, layer in list(zip(self.layers(modality), params.stacks[modality], strict=True))[:depth]:
            x = rbm.encode(layer, x)
        return x

    def input_activation(self, params: MDRNNParams, modality: str, hidden: Array) -> Array:
        """Return the activation of a modality's inputs, [B, D_m], decoded from the joint units' mean."""
        activation = self.joint.activation(params.joint, hidden, modality)
        layers = list(zip(self.layers(modality), params.stacks[modality], strict=True))
        for rbm, layer in reversed(layers):
            activation = rbm.activation(layer, jax.nn.sigmoid(activation))
        return activation

    def hidden_logits(self, params: MDRNNParams, inputs: Mapping[str, Array]) -> Array:
        """Return the joint units' logits given all modalities, [B, H]."""
        return self.joint.hidden_logits(params.joint, {m: self.encode(params, m, x) for m, x in inputs.items()})

    def rounds(
        self, params: MDRNNParams, given: Mapping[str, Array], visibility: Visibility | None = None
    ) -> MDRNNRounds:
        """Return the recurrence from some of the modalities to the others.

        Raises:
          ValueError: nothing given, an unknown modality, or `visibility`: a deep network predicts whole modalities.
        """
        if visibility is not None:
            raise ValueError("an MDRNN predicts whole modalities: keep_max must be 0")
        return MDRNNRounds(self, params, given)

    def layerwise_divergence(
        self, params: MDRNNParams, inputs: Mapping[str, Array], key: Array, level: int, *, steps: int = 1
    ) -> tuple[Array, dict[str, Array]]:
        """Return the loss that trains one level alone, and how well its layers reconstruct what they see.

        Level l < depth: the sum over modalities of CD-k of the l-th layer on (constant) draws of the one below; level
        depth: CD-k of the joint units. Draws, not means: a layer's model of the units below is of zeros and ones, and
        means, which vary less than those, would shrink its weights towards 0. Reconstruction errors in nats,
        {modality: scalar}, or {"fusion": scalar} of the joint units.

        Raises:
          ValueError: a level outside 0..depth, steps < 1.
        """
        if not 0 <= level <= self.depth:
            raise ValueError(f"level must be in 0..{self.depth}, got {level}")
        draw_key, key = jax.random.split(key)
        seen = {}
        for place, m in enumerate(self.modalities):
            below = jax.lax.stop_gradient(self.encode(params, m, inputs[m], level))
            drawn = level and self.stacks[m]  # else they are the inputs themselves
            chance_key = jax.random.fold_in(draw_key, place)
            seen[m] = jax.random.bernoulli(chance_key, below).astype(below.dtype) if drawn else below
        if level == self.depth:
            loss, _ = persistent_contrastive_divergence(self.joint, params.joint, seen, seen, key, steps=steps)
            hidden = jax.nn.sigmoid(self.joint.hidden_logits(params.joint, seen))
            errors = [
                jnp.sum(reconstruction_loss(kind, self.joint.activation(params.joint, hidden, m), seen[m]), axis=-1)
                for m, kind in self.joint.visible.items()
            ]
            return loss, {"fusion": jnp.mean(sum(errors[1:], errors[0]))}
        loss, error = jnp.zeros(()), {}
        for place, m in enumerate(self.modalities):
            if level >= len(self.stacks[m]):
                continue
            rbm, layer = self.layers(m)[level], params.stacks[m][level]
            loss += rbm.contrastive_divergence(layer, jax.random.fold_in(key, place), seen[m], steps)
            error[m] = rbm.reconstruction_error(layer, seen[m])
        return loss, error

    def levels(self, params: MDRNNParams) -> MDRNNParams:
        """Return a tree like params that says at which level each parameter is pretrained (the joint ones: depth)."""
        stacks = {
            m: tuple(jax.tree.map(lambda _, level=level: level, layer) for level, layer in enumerate(stack))
            for m, stack in params.stacks.items()
        }
        return MDRNNParams(stacks, jax.tree.map(lambda _: self.depth, params.joint))


def _of_unit_spread(weights: Array, x: Array, spread: float) -> tuple[Array, Array]:
    """Return weights [D, H] scaled, and the offset [H], so that x @ weights + offset has mean 0 and this spread over x."""
    logits = x @ weights
    std = logits.std(axis=0)
    weights = weights * jnp.where(std > 0, spread / jnp.where(std > 0, std, 1.0), 1.0)
    return weights, -(x.mean(axis=0) @ weights)


class MDRNNRounds(Rounds):
    """The recurrence of an MDRNN: the given pathways are encoded once; each round decodes the missing ones to their
    inputs and encodes them again. The start is scaled as an MRBM's, by the units at the stacks' tops.
    """  # noqa: D205

    def __init__(self, model: MDRNN, params: MDRNNParams, given: Mapping[str, Array]):
        super().__init__(model.visible, model.missing(given))
        self.model, self.params = model, params
        joint = model.joint.rounds(params.joint, {m: model.encode(params, m, x) for m, x in given.items()})
        self.start, self._joint = joint.start, joint

    def activation(self, hidden: Array) -> dict[str, Array]:
        """Return the input activation of every missing modality."""
        return {m: self.model.input_activation(self.params, m, hidden) for m in self.missing}

    def encode(self, filled: Mapping[str, Array]) -> Array:
        """Return the joint units' mean given the given pathways and the filled ones."""
        return self._joint.encode({m: self.model.encode(self.params, m, x) for m, x in filled.items()})
