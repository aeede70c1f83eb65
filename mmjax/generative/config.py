"""Generative models in a configuration: kinds of `ModelConfig`, for the methods of `mmjax.generative.methods`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from mmjax.config import ModelConfig
from mmjax.generative.inference import Recurrent
from mmjax.generative.mdrnn import MDRNN
from mmjax.generative.mrbm import MRBM
from mmjax.generative.reader import Reader
from mmjax.generative.visible import VisibleKind, check_kind

Start = Literal["small", "scaled"]


def _require(option: str, value: Any, ok: bool, right: str) -> None:
    if not ok:
        raise ValueError(f"{option} must be {right}, got {value!r}")


@dataclass(frozen=True, kw_only=True)
class GenerativeConfig(ModelConfig):
    """A generative model of all modalities, with a linear classifier on its hidden units.

    It has no encoders, fusion or heads of a `MultiModal`, and refuses options of theirs.

    Example:
    >>> config = MRBMConfig(hidden=4, visible={"image": "gaussian"}, rounds=3)
    >>> config.kinds(("image", "tags"))
    {'image': 'gaussian', 'tags': 'binary'}
    >>> MRBMConfig(rounds=-1).validate()
    Traceback (most recent call last):
        ...
    ValueError: model.rounds must be at least 0, got -1
    >>> MRBMConfig(head_hidden=(8,)).validate()
    Traceback (most recent call last):
        ...
    ValueError: model.head_hidden is no option of MRBMConfig: leave it at ()
    """

    visible: dict[str, VisibleKind] = field(default_factory=dict)
    """Visible units of each modality: binary (inputs in [0, 1], the default) or gaussian (standardised numbers)."""
    rounds: int = 10
    """Rounds of inference of what is missing."""
    tolerance: float | None = None
    """Stop inference before that many rounds once no hidden unit changes by more; None: never."""
    classifier_l2: float = 1e-4
    """Half of this times the squared norm of the linear classifier's weights is added to its loss."""
    init_std: float = 0.01
    """Standard deviation of the initial weights."""

    def core(self, modalities: Iterable[str]) -> Recurrent:
        """Make the generative model of these modalities."""
        raise TypeError(f"{type(self).__name__} is a base: take one of the models of mmjax.generative")

    def build(self, modalities: Iterable[str], num_outputs: int, num_chains: int) -> Reader:
        """Make the module.

        Raises:
          ValueError: visible units of a modality that the data do not have.
        """
        core = self.core(modalities)
        return Reader(core, num_outputs, self.rounds, self.tolerance, num_chains, self.init_std)

    def kinds(self, modalities: Iterable[str]) -> dict[str, VisibleKind]:
        """Return the visible units of every modality of the data.

        Raises:
          ValueError: visible units of a modality that the data do not have.
        """
        modalities = tuple(modalities)
        for m in self.visible:
            _known("visible", m, modalities)
        return {m: self.visible.get(m, "binary") for m in modalities}

    def validate(self) -> None:
        """Raise ValueError naming an option out of range, or one that only a `MultiModal` has."""
        for option, default in (("encoders", {}), ("fusion", None), ("head_hidden", ()), ("dtype", "float32")):
            if getattr(self, option) != default:
                raise ValueError(f"model.{option} is no option of {type(self).__name__}: leave it at {default!r}")
        for m, kind in self.visible.items():
            check_kind(f"model.visible.{m}", kind)
        _require("model.rounds", self.rounds, self.rounds >= 0, "at least 0")
        _require("model.tolerance", self.tolerance, self.tolerance is None or self.tolerance >= 0, "at least 0 or None")
        _require("model.classifier_l2", self.classifier_l2, self.classifier_l2 >= 0, "at least 0")
        _require("model.init_std", self.init_std, self.init_std > 0, "above 0")


def _known(section: str, modality: str, modalities: tuple[str, ...]) -> None:
    if modality not in modalities:
        raise ValueError(f"model.{section}.{modality}: the data have no such modality, only {sorted(modalities)}")


@dataclass(frozen=True, kw_only=True)
class MRBMConfig(GenerativeConfig):
    """A multi-modal restricted Boltzmann machine.

    Example:
    >>> core = MRBMConfig(hidden=4, visible={"image": "gaussian"}).core(("image", "tags"))
    >>> core.num_hidden, core.modalities
    (4, ('image', 'tags'))
    >>> MRBMConfig(visible={"sound": "gaussian"}).core(("image", "tags"))
    Traceback (most recent call last):
        ...
    ValueError: model.visible.sound: the data have no such modality, only ['image', 'tags']
    """

    hidden: int = 1000
    """Number of hidden units."""

    def validate(self) -> None:
        """Raise ValueError naming an option out of range."""
        super().validate()
        _require("model.hidden", self.hidden, self.hidden >= 1, "at least 1")

    def core(self, modalities: Iterable[str]) -> MRBM:
        """Make the model."""
        return MRBM(self.kinds(modalities), self.hidden)


@dataclass(frozen=True, kw_only=True)
class MDRNNConfig(GenerativeConfig):
    """A multi-modal deep recurrent network.

    Example:
    >>> core = MDRNNConfig(hidden=6, stacks={"image": (4,), "tags": (5, 3)}).core(("image", "tags"))
    >>> core.depth, core.modalities
    (2, ('image', 'tags'))
    >>> MDRNNConfig(hidden=0).validate()
    Traceback (most recent call last):
        ...
    ValueError: model.hidden must be at least 1, got 0
    """

    stacks: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Widths of each modality's stack, bottom up; a modality that is not named has (1024, 1024)."""
    hidden: int = 2048
    """Number of joint hidden units."""
    start: Start = "small"
    """Initial weights: small as published (init_std), or scaled to the training inputs, level by level."""

    def validate(self) -> None:
        """Raise ValueError naming an option out of range."""
        super().validate()
        _require("model.hidden", self.hidden, self.hidden >= 1, "at least 1")
        _require("model.start", self.start, self.start in get_args(Start), "small or scaled")
        for m, widths in self.stacks.items():
            _require(f"model.stacks.{m}", widths, all(w >= 1 for w in widths), "widths of at least 1")

    def core(self, modalities: Iterable[str]) -> MDRNN:
        """Make the model."""
        modalities = tuple(modalities)
        for m in self.stacks:
            _known("stacks", m, modalities)
        stacks = {m: tuple(self.stacks.get(m, (1024, 1024))) for m in modalities}
        return MDRNN(self.kinds(modalities), stacks, self.hidden)
