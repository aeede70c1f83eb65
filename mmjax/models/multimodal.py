"""The multi-modal model: an encoder and a head a modality, and a fusion head over all features."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from flax.errors import FlaxError
from jax import Array

from mmjax.config import ModelConfig
from mmjax.models.batch_norm import statistics_over
from mmjax.models.encoders import MLPConfig
from mmjax.models.fusion import ConcatConfig, DecisionFusion
from mmjax.models.fusion.inputs import check_present
from mmjax.models.heads import Head, HeadOutput, LastLayer
from mmjax.objectives import FUSION, modality_of, objective_names


@flax.struct.dataclass
class Outputs:
    """What the model says of a batch.

    features: {modality: [B, D_m] or tokens [B, T_m, D_m]}; unimodal_logits: {modality: [B, C]}; logits: [B, C], the
    fused ones; last_layer: {objective: LastLayer(inputs, kernel, bias)} of the fusion ("fusion") and each uni-modal
    head, without those that have none (evidential fusion). present: bool [B, M], columns by sorted modality, what was
    there; None: everything. What is said of an absent modality, features and uni-modal logits, means nothing.

    >>> import jax.numpy as jnp
    >>> outputs = Outputs({"a": jnp.ones((2, 3))}, {"a": jnp.ones((2, 5))}, jnp.zeros((2, 5)), {})
    >>> sorted(outputs.by_objective)
    ['a', 'fusion']
    """

    features: dict[str, Array]
    unimodal_logits: dict[str, Array]
    logits: Array
    last_layer: dict[str, LastLayer]
    present: Array | None = None

    @property
    def by_objective(self) -> dict[str, Array]:
        """Logits of every expert: {"fusion": ..., modality: ...}."""
        return {FUSION: self.logits, **self.unimodal_logits}

    def here(self, objective: str) -> Array | None:
        """Return bool [B], the examples that have the modality whose objective this is; None: all of them.

        >>> import jax.numpy as jnp
        >>> z, present = jnp.ones((2, 1)), jnp.array([[True, True], [False, True]])
        >>> outputs = Outputs({"a": z, "b": z}, {"a": z, "b": z}, z, {}, present)
        >>> outputs.here("a").tolist(), outputs.here("fusion")
        ([True, False], None)
        """
        modalities = self.modalities
        if self.present is None or objective not in modalities:
            return None
        return self.present[:, modalities.index(objective)]

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the modalities, sorted: the columns of `present`."""
        return tuple(sorted({modality_of(name) for name in self.features}))

    @property
    def present_by_objective(self) -> Array | None:
        """Bool [B, K - 1]: for each objective but the fusion, the examples it is about; None: all of them."""
        if self.present is None:
            return None
        everywhere = jnp.ones_like(self.present[:, 0])
        rows = [self.here(name) for name in sorted(self.unimodal_logits)]
        columns = [everywhere if row is None else row for row in rows]
        return jnp.stack(columns, axis=1) if columns else self.present[:, :0]

    def weight_of(self, objective: str, weight: Array) -> Array:
        """Return the examples' weights [B] for an objective: 0 where its modality is absent."""
        here = self.here(objective)
        return weight if here is None else jnp.where(here, weight, 0)


def check_modalities(modalities: Iterable[str]) -> None:
    """Raise ValueError for no modality at all, or one called "fusion"."""
    names = tuple(modalities)
    if not names:
        raise ValueError("a model needs at least one modality; there is none")
    if FUSION in names:
        raise ValueError(f"no modality may be called {FUSION!r}: that is the name of objective 0")


def objective_names_of(experts: Iterable[str]) -> tuple[str, ...]:
    """Return the objectives of a model with these experts, in order.

    >>> objective_names_of({"image": 1, "audio": 2})
    ('fusion', 'audio', 'image')
    """
    return objective_names((FUSION, *experts))


def encode_one(encoder: nn.Module, what: str, x: Array, train: bool, here: Array | None = None) -> Array:
    """Return an encoder's features [B, D] or tokens [B, T, D] of x [B, ...].

    here: bool [B], the examples that have the modality: the others are given to the encoder as zeros, and batch
    statistics are taken without them; None: all.

    Raises:
      ValueError: an input that it does not take, features of another form; `what` says whose encoder it is.
    """
    if here is not None:
        with statistics_over(here):
            return encode_one(encoder, what, jnp.where(here.reshape(-1, *[1] * (x.ndim - 1)), x, 0), train)
    try:
        features: Any = encoder(x, train)
    except ValueError as error:
        raise ValueError(f"encoder of {what!r}: {error}") from error
    except (TypeError, FlaxError) as error:  # of an encoder of one's own, which does not say what it was given
        raise ValueError(f"encoder of {what!r}, given inputs {x.shape}: {error}") from error
    shape = getattr(features, "shape", None)
    if shape is None or len(shape) not in (2, 3) or shape[0] != x.shape[0]:
        raise ValueError(
            f"the encoder of {what!r} must give features [{x.shape[0]}, D] or tokens [{x.shape[0]}, T, D] for "
            f"inputs {x.shape}, got {shape or type(features).__name__}"
        )
    return jnp.asarray(features)


class MultiModal(nn.Module):
    """Encoders {modality: module}, a fusion head, and one uni-modal head a modality.

    encoders: modules (x [B, ...], train) -> [B, D_m] or tokens [B, T_m, D_m]; fusion: module ({modality: features},
    train, present) -> HeadOutput, or a `DecisionFusion`, which is given the heads' outputs instead; heads: modules
    (features, train) -> HeadOutput, the same modalities. probe_heads: the heads see stop_gradient(features), so that
    they measure each modality without steering its encoder. The heads of a `DecisionFusion` are parts of it and no
    probes: then their own logits carry a stop_gradient, and the fusion loss alone trains them.

    `present`, bool [B, M] with columns by sorted modality, says which examples have which modality (None: all). What an
    absent one holds changes nothing: its encoder is given zeros, batch statistics are taken without it, the fusion
    ignores it, and `Outputs.here` says where uni-modal logits mean something.

    Raises:
      ValueError: no modality, one called "fusion", heads or inputs of other modalities than the encoders; `present` of
        another shape or type, or, where its values are known, with a row in which nothing is there.

    >>> import jax, jax.numpy as jnp
    >>> from mmjax.models import MLP, ConcatFusion, Head
    >>> model = MultiModal(
    ...     encoders={"image": MLP(8), "audio": MLP(8)},
    ...     fusion=ConcatFusion(num_outputs=3),
    ...     heads={"image": Head(3), "audio": Head(3)},
    ... )
    >>> batch = {"image": jnp.ones((2, 4, 4, 1)), "audio": jnp.ones((2, 5, 3))}
    >>> variables = model.init(jax.random.key(0), batch)
    >>> outputs = model.apply(variables, batch)
    >>> outputs.logits.shape, sorted(outputs.unimodal_logits), outputs.features["audio"].shape
    ((2, 3), ['audio', 'image'], (2, 8))
    """

    encoders: Mapping[str, nn.Module]
    fusion: nn.Module
    heads: Mapping[str, nn.Module]
    probe_heads: bool = False

    @property
    def objectives(self) -> tuple[str, ...]:
        """Names of the objectives: "fusion", then the modalities sorted."""
        return objective_names_of(self.encoders)

    def _check(self, given: Mapping[str, Any], what: str) -> None:
        check_modalities(self.encoders)
        if set(given) != set(self.encoders):
            raise ValueError(f"{what} are of modalities {sorted(given)}; the encoders of {sorted(self.encoders)}")

    def encode(
        self, inputs: Mapping[str, Array], train: bool = False, present: Array | None = None
    ) -> dict[str, Array]:
        """Return the features {modality: [B, D_m] or [B, T_m, D_m]} of inputs {modality: [B, ...]}."""
        self._check(inputs, "inputs")
        if present is None:
            return {m: encode_one(self.encoders[m], m, inputs[m], train) for m in sorted(inputs)}
        return {
            m: encode_one(self.encoders[m], m, x, train, check_present(present, x.shape[0], len(inputs))[:, i])
            for i, (m, x) in enumerate(sorted(inputs.items()))
        }

    def decide(self, features: Mapping[str, Array], train: bool = False, present: Array | None = None) -> Outputs:
        """Return the outputs that follow from the features alone.

        present: bool [B, M], columns by sorted modality, which features the fusion may use; None: all.
        """
        self._check(features, "features")
        self._check(self.heads, "heads")
        late = isinstance(self.fusion, DecisionFusion)
        probes = self.probe_heads and not late
        seen = jax.lax.stop_gradient(dict(features)) if probes else features
        alone: dict[str, HeadOutput] = {m: self.heads[m](seen[m], train) for m in sorted(features)}
        fused: HeadOutput = self.fusion(alone if late else features, train, present)
        if late and self.probe_heads:
            alone = jax.lax.stop_gradient(alone)
        decisions = {FUSION: fused, **alone}
        return Outputs(
            features=dict(features),
            unimodal_logits={m: out.logits for m, out in alone.items()},
            logits=fused.logits,
            last_layer={name: out.last_layer for name, out in decisions.items() if out.last_layer is not None},
            present=present,
        )

    def __call__(self, inputs: Mapping[str, Array], train: bool = False, present: Array | None = None) -> Outputs:
        """Encode and decide."""
        return self.decide(self.encode(inputs, train, present), train, present)


def parameter_groups(params: Mapping[str, Any]) -> Any:
    """Label every parameter of a `MultiModal`: "encoder/m", "head/m" or "fusion"; a tree like params of str.

    >>> parameter_groups({"encoders_image": {"kernel": 1}, "fusion": {"bias": 2}, "heads_image": {"bias": 3}})
    {'encoders_image': {'kernel': 'encoder/image'}, 'fusion': {'bias': 'fusion'}, 'heads_image': {'bias': 'head/image'}}
    """

    def label(name: str) -> str:
        for prefix, group in (("encoders_", "encoder/"), ("heads_", "head/")):
            if name.startswith(prefix):
                return group + name.removeprefix(prefix)
        return name

    return {name: jax.tree.map(lambda _, name=name: label(name), tree) for name, tree in params.items()}


def build_model(
    config: ModelConfig,
    modalities: tuple[str, ...],
    num_outputs: int,
    *,
    probe_heads: bool = False,
    axis_name: str | None = None,
) -> MultiModal:
    """Make the model that `config` describes, for these modalities and this number of outputs.

    Raises:
      ValueError: an encoder is configured for a modality that the data do not have.

    >>> from mmjax.config import ModelConfig
    >>> from mmjax.models import LateConfig, LeNetConfig
    >>> config = ModelConfig(encoders={"image": LeNetConfig()}, fusion=LateConfig())
    >>> model = build_model(config, ("audio", "image"), num_outputs=10)
    >>> {m: type(encoder).__name__ for m, encoder in model.encoders.items()}
    {'audio': 'MLP', 'image': 'LeNet'}
    >>> build_model(config, ("audio", "text"), num_outputs=10)
    Traceback (most recent call last):
        ...
    ValueError: model.encoders.image: the data have no such modality, only ['audio', 'text']
    """
    unknown = sorted(set(config.encoders) - set(modalities))
    if unknown:
        raise ValueError(f"model.encoders.{unknown[0]}: the data have no such modality, only {sorted(modalities)}")
    dtype = jnp.dtype(config.dtype)
    fusion = config.fusion or ConcatConfig()
    encoders = {m: config.encoders.get(m) or MLPConfig() for m in modalities}
    return MultiModal(
        encoders={m: e.build(dtype=dtype, axis_name=axis_name) for m, e in encoders.items()},
        fusion=fusion.build(num_outputs, dtype=dtype, axis_name=axis_name),
        heads={m: Head(num_outputs, config.head_hidden, dtype) for m in modalities},
        probe_heads=probe_heads,
    )
