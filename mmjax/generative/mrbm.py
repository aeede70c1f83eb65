"""The multi-modal restricted Boltzmann machine: one layer of hidden units over the visible units of all modalities.

For modalities x and y, E = -xᵀW_x h - yᵀW_y h - b_xᵀx - b_yᵀy - cᵀh and
F(x, y) = -b_xᵀx - b_yᵀy - Σ softplus(c + W_xᵀx + W_yᵀy); gaussian visibles replace -b_xᵀx by ½‖x - b_x‖².
Source: Sohn, Shang and Lee, "Improved Multimodal Deep Learning with Variation of Information".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import flax.struct
import jax
import jax.numpy as jnp
from jax import Array

from mmjax.generative.inference import Rounds, Visibility
from mmjax.generative.recurrence import check_rounds
from mmjax.generative.unrolled import Clamped, Network, unrolled
from mmjax.generative.visible import VisibleKind, check_kind, sample_bernoulli, sample_visible, visible_energy


class MRBMParams(flax.struct.PyTreeNode):
    """weights: {modality: [D_m, H]}; visible_bias: {modality: [D_m]}; hidden_bias: [H].

    >>> params = MRBM({"image": "gaussian", "tags": "binary"}, num_hidden=4).init(jax.random.key(0), {"image": 3, "tags": 2})
    >>> params.weights["image"].shape, params.visible_bias["tags"].shape, params.hidden_bias.shape
    ((3, 4), (2,), (4,))
    """

    weights: dict[str, Array]
    visible_bias: dict[str, Array]
    hidden_bias: Array


def left_out(modalities: tuple[str, ...], given: Iterable[str]) -> tuple[str, ...]:
    """Return the modalities that `given` leaves out.

    Raises:
      ValueError: none is given, or one that is not among them.

    >>> left_out(("image", "tags"), ("tags",))
    ('image',)
    """
    given = set(given)
    if not given:
        raise ValueError(f"all pathways are missing; at least one of {list(modalities)} must be there")
    unknown = sorted(given - set(modalities))
    if unknown:
        raise ValueError(f"no modality {unknown[0]!r}; the model has {list(modalities)}")
    return tuple(m for m in modalities if m not in given)


@dataclass(frozen=True)
class MRBM:
    """`num_hidden` binary hidden units over the visible units of two modalities or more, {modality: kind}.

    Raises:
      ValueError: fewer than two modalities or one hidden unit, an unknown kind.

    >>> mrbm = MRBM({"image": "gaussian", "tags": "binary"}, num_hidden=4)
    >>> params = mrbm.init(jax.random.key(0), {"image": 3, "tags": 2})
    >>> mrbm.free_energy(params, {"image": jnp.zeros((5, 3)), "tags": jnp.ones((5, 2))}).shape
    (5,)
    """

    visible: Mapping[str, VisibleKind]
    num_hidden: int

    def __post_init__(self) -> None:
        if len(self.visible) < 2:
            raise ValueError(f"an MRBM joins at least two modalities, got {sorted(self.visible)}")
        if self.num_hidden < 1:
            raise ValueError(f"num_hidden must be at least 1, got {self.num_hidden}")
        for name, kind in self.visible.items():
            check_kind(name, kind)

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the modalities, sorted."""
        return tuple(sorted(self.visible))

    def missing(self, given: Iterable[str]) -> tuple[str, ...]:
        """Return the modalities that `given` leaves out, sorted.

        Raises:
          ValueError: none is given, or one that the model does not have.
        """
        return left_out(self.modalities, given)

    def init(self, key: Array, sizes: Mapping[str, int], std: float = 0.01) -> MRBMParams:
        """Return weights drawn from N(0, std²) and biases of 0. sizes: {modality: D_m}.

        Raises:
          ValueError: sizes of other modalities than the model's.
        """
        if set(sizes) != set(self.modalities):
            raise ValueError(f"sizes are of modalities {sorted(sizes)}; the model has {list(self.modalities)}")
        keys = jax.random.split(key, len(self.modalities))
        return MRBMParams(
            weights={
                m: std * jax.random.normal(k, (sizes[m], self.num_hidden))
                for m, k in zip(self.modalities, keys, strict=True)
            },
            visible_bias={m: jnp.zeros(sizes[m]) for m in self.modalities},
            hidden_bias=jnp.zeros(self.num_hidden),
        )

    def drive(self, params: MRBMParams, inputs: Mapping[str, Array]) -> Array:
        """Return Σ_m W_mᵀ x_m over the inputs that are there, [..., H]."""
        terms = [inputs[m] @ params.weights[m] for m in sorted(inputs)]
        return sum(terms[1:], terms[0])

    def hidden_logits(self, params: MRBMParams, inputs: Mapping[str, Array]) -> Array:
        """Return the logits of p(h = 1 | all modalities), [..., H]."""
        return self.drive(params, inputs) + params.hidden_bias

    def activation(self, params: MRBMParams, h: Array, modality: str) -> Array:
        """Return b_m + W_m h, [..., D_m]."""
        return h @ params.weights[modality].T + params.visible_bias[modality]

    def check_complete(self, inputs: Mapping[str, Array]) -> None:
        """Raise ValueError unless the inputs are of all the model's modalities, and of no others."""
        if set(inputs) != set(self.visible):
            raise ValueError(f"inputs are of modalities {sorted(inputs)}; the model has {list(self.modalities)}")

    def visible_energy(self, params: MRBMParams, inputs: Mapping[str, Array]) -> Array:
        """Return the visible units' own energy, summed over the inputs that are there, [...]."""
        terms = [visible_energy(self.visible[m], inputs[m], params.visible_bias[m]) for m in sorted(inputs)]
        return sum(terms[1:], terms[0])

    def free_energy(self, params: MRBMParams, inputs: Mapping[str, Array]) -> Array:
        """Return F, [...]; p(inputs) is proportional to exp(-F). Raises ValueError unless all modalities are there."""
        self.check_complete(inputs)
        hidden = jnp.sum(jax.nn.softplus(self.hidden_logits(params, inputs)), axis=-1)
        return self.visible_energy(params, inputs) - hidden

    def rounds(
        self, params: MRBMParams, given: Mapping[str, Array], visibility: Visibility | None = None
    ) -> MRBMRounds:
        """Return the recurrence from some of the modalities to the others.

        Raises:
          ValueError: nothing given, an unknown modality.
        """
        return MRBMRounds(self, params, given, visibility)

    def gibbs_step(
        self, params: MRBMParams, key: Array, inputs: Mapping[str, Array], given: Iterable[str] = ()
    ) -> dict[str, Array]:
        """Draw h given everything, then every modality that is not in `given` (those stay clamped) given h."""
        given = set(given)
        keys = jax.random.split(key, 1 + len(self.modalities))
        h = sample_bernoulli(keys[0], self.hidden_logits(params, inputs))
        return {
            m: inputs[m] if m in given else sample_visible(self.visible[m], k, self.activation(params, h, m))
            for m, k in zip(self.modalities, keys[1:], strict=True)
        }

    def gibbs(
        self, params: MRBMParams, key: Array, inputs: Mapping[str, Array], steps: int, given: Iterable[str] = ()
    ) -> dict[str, Array]:
        """Return the modalities after `steps` Gibbs steps; those in `given` stay clamped.

        Raises:
          ValueError: steps < 0, an unknown modality in `given`, inputs that lack one (they are where the chain starts).
        """
        if steps < 0:
            raise ValueError(f"steps must be at least 0, got {steps}")
        self.check_complete(inputs)
        given = frozenset(given)
        if given:
            self.missing(given)

        def step(state: dict[str, Array], key: Array) -> tuple[dict[str, Array], None]:
            return self.gibbs_step(params, key, state, given), None

        return jax.lax.scan(step, dict(inputs), jax.random.split(key, steps))[0]


class MRBMRounds(Rounds):
    """The recurrence of an MRBM.

    It starts from h⁰ = σ(c + (n / n_seen) Σ W_mᵀ x_m) over what is seen, n all visible units and n_seen the seen ones,
    so that a missing modality does not lower the drive; the rounds go without the factor.
    """

    def __init__(self, model: MRBM, params: MRBMParams, given: Mapping[str, Array], visibility: Visibility | None):
        super().__init__(model.visible, model.missing(given), visibility)
        self.model, self.params = model, params
        drive = model.drive(params, given)
        self.given = drive + params.hidden_bias
        total = sum(bias.shape[0] for bias in params.visible_bias.values())
        seen: int | Array = total - sum(params.visible_bias[m].shape[0] for m in self.missing)
        if visibility is not None:
            drive = drive + model.drive(params, {m: visibility.mask[m] * visibility.values[m] for m in self.missing})
            seen = seen + sum(jnp.sum(visibility.mask[m], axis=-1, keepdims=True) for m in self.missing)
        self.start = jax.nn.sigmoid(params.hidden_bias + (total / seen) * drive)

    def run(self, n_steps: int, *, backprop_steps: int | None = None) -> Array:
        """Return the hidden units' mean after `n_steps` rounds, differentiable in reverse (see `unrolled`)."""
        check_rounds(n_steps, backprop_steps)
        kinds = tuple((m, self.visible[m]) for m in self.missing)
        weights = {m: self.params.weights[m] for m in self.missing}
        bias = {m: self.params.visible_bias[m] for m in self.missing}
        network = Network(weights, bias, self.given)
        clamped = Clamped({}, {}) if self.visibility is None else Clamped(*self.visibility)
        hidden, with_gradient = self.start, n_steps if backprop_steps is None else min(backprop_steps, n_steps)
        if with_gradient < n_steps:
            hidden = jax.lax.stop_gradient(unrolled(kinds, n_steps - with_gradient, network, clamped, hidden))
        return unrolled(kinds, with_gradient, network, clamped, hidden)

    def activation(self, hidden: Array) -> dict[str, Array]:
        """Return b_m + W_m h of every missing modality."""
        return {m: self.model.activation(self.params, hidden, m) for m in self.missing}

    def encode(self, filled: Mapping[str, Array]) -> Array:
        """Return σ(c + Σ W_mᵀ x_m) over the given and the filled modalities."""
        return jax.nn.sigmoid(self.model.drive(self.params, filled) + self.given)
