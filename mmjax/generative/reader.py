"""A generative model as a classifier: features by recurrent inference, a linear classifier fitted on complete ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from mmjax.generative.inference import Inferred, infer
from mmjax.models.multimodal import Outputs


def flat(inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Return inputs {modality: [B, ...]} as visible units, {modality: [B, D_m]}."""
    return {m: x.reshape(x.shape[0], -1) for m, x in inputs.items()}


class Reader(nn.Module):
    """Reads off a label from a model's hidden units: with every modality there ("fusion"), and with each one alone.

    Variables: params {"core": the model's}; classifier {kernel [H, C], bias [C]}, which training leaves at 0 and
    `mmjax.evaluation.linear` fits; chains {modality: [chains, D_m]} if there are any, of persistent contrastive
    divergence. What is missing is inferred in `rounds` rounds, or fewer where `tolerance` says that it has converged.

    >>> from mmjax.generative import MRBM
    >>> reader = Reader(MRBM({"x": "binary", "y": "binary"}, num_hidden=4), num_outputs=3)
    >>> batch = {"x": jnp.ones((2, 5)), "y": jnp.ones((2, 3, 2))}
    >>> outputs = reader.apply(reader.init(jax.random.key(0), batch), batch)
    >>> outputs.logits.shape, sorted(outputs.unimodal_logits)
    ((2, 3), ['x', 'y'])
    """

    core: Any
    num_outputs: int
    rounds: int = 10
    tolerance: float | None = None
    num_chains: int = 0
    init_std: float = 0.01

    @nn.compact
    def __call__(self, inputs: Mapping[str, Array], train: bool = False) -> Outputs:
        """Return the logits of inputs {modality: [B, ...]}, all modalities. train changes nothing."""
        del train
        x = flat(inputs)
        sizes = {m: v.shape[-1] for m, v in x.items()}
        params = self.param("core", lambda key: self.core.init(key, sizes, self.init_std))
        kernel = self.variable("classifier", "kernel", jnp.zeros, (self.core.num_hidden, self.num_outputs))
        bias = self.variable("classifier", "bias", jnp.zeros, self.num_outputs)
        if self.num_chains and self.is_initializing():
            for m in self.core.modalities:
                # coins, whatever the units: chains forget where they began
                self.variable("chains", m, self._coins, (self.num_chains, sizes[m]))
        features = {m: self._infer(params, {m: x[m]}).hidden for m in self.core.modalities}
        logits = {m: h @ kernel.value + bias.value for m, h in features.items()}
        fused = self._infer(params, x).hidden @ kernel.value + bias.value
        return Outputs(features=features, unimodal_logits=logits, logits=fused, last_layer={})

    def _coins(self, shape: tuple[int, int]) -> Array:
        return jax.random.bernoulli(self.make_rng("params"), 0.5, shape).astype(jnp.float32)

    def _infer(self, params: Any, given: Mapping[str, Array]) -> Inferred:
        return infer(self.core, params, given, self.rounds, tolerance=self.tolerance)

    def infer(self, variables: Mapping[str, Any], given: Mapping[str, Array]) -> Inferred:
        """Return features and filled-in inputs of some of the modalities, {modality: [B, ...]}; see `infer`."""
        return self._infer(variables["params"]["core"], flat(given))
