"""Configuration: frozen dataclasses, one a section, plain values only.

A section with several kinds (data source, encoder, fusion, method, optimizer, schedule) is a base class here and one
subclass a kind, defined next to the code that it configures. `name` tells the kinds apart; the subclass builds the
thing: `DataConfig.load`, `EncoderConfig.build`, `FusionConfig.build`, `MethodConfig.build`, `OptimizerConfig.build`,
`ScheduleConfig.build`. So a kind of your own is a subclass of your own: nothing has to be registered to be used from
Python; the registry (`mmjax.registry`) only lets the command line find a kind by its name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

if TYPE_CHECKING:  # annotations only: this module imports nothing of the library and none of JAX
    import flax.linen as nn
    import optax

    from mmjax.data.dataset import Splits, Task
    from mmjax.method import Forward, Objectives, Refresh


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the data come from. Subclasses: one a source, in `mmjax.data`.

    Example:
    >>> from mmjax.data import Planted
    >>> splits = Planted(train_examples=100, modalities=("a",)).load()  # a subclass: one a source
    >>> len(splits.train), splits.train.modalities
    (100, ('a',))
    """

    name: str
    """Source of the data (`mmjax data list` names them)."""
    modalities: tuple[str, ...] = ()
    """Modalities to use; empty means every modality that the source holds."""

    needs: ClassVar[str] = ""
    """What a user must have before the source loads, in one line (shown by `mmjax data list`)."""

    def load(self) -> Splits:
        """Load the three splits, all checked; only `self.modalities` of them."""
        raise TypeError(f"{type(self).__name__} is a base: take one of the sources of mmjax.data")


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """One modality's encoder. Subclasses in `mmjax.models.encoders`.

    Example:
    >>> from mmjax.models import MLPConfig
    >>> MLPConfig(width=32).name  # a subclass: one a kind; MLPConfig(...).build(dtype=...) is its linen module
    'mlp'
    """

    name: str
    """Kind of encoder."""

    def build(self, *, dtype: Any, axis_name: str | None = None) -> nn.Module:
        """Make the linen module (inputs [B, ...], train) -> features [B, D]; axis_name: the devices' axis under pmap."""
        raise TypeError(f"{type(self).__name__} is a base: take one of the encoders of mmjax.models")


@dataclass(frozen=True, kw_only=True)
class FusionConfig:
    """The fusion head. Subclasses in `mmjax.models.fusion`.

    Example:
    >>> from mmjax.models import ConcatConfig
    >>> import jax.numpy as jnp
    >>> type(ConcatConfig(hidden=(16,)).build(10, dtype=jnp.float32)).__name__
    'ConcatFusion'
    """

    name: str
    """Kind of fusion head."""

    tasks: ClassVar[tuple[str, ...]] = ("classification", "multilabel", "regression")
    """Kinds of task that the head is meant for."""

    def build(self, num_outputs: int, *, dtype: Any, axis_name: str | None = None) -> nn.Module:
        """Make the linen module; it maps ({modality: features}, train, present=None) to `HeadOutput`."""
        raise TypeError(f"{type(self).__name__} is a base: take one of the fusions of mmjax.models")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Encoders, fusion and uni-modal heads.

    Example:
    >>> from mmjax.models import LeNetConfig, SumConfig
    >>> ModelConfig(encoders={"image": LeNetConfig()}, fusion=SumConfig(), dtype="bfloat16").encoders["image"].name
    'lenet'
    """

    encoders: dict[str, EncoderConfig] = field(default_factory=dict)
    """Encoder of each modality, by its name; a modality not named gets an MLP with default options."""
    fusion: FusionConfig | None = None
    """Fusion head; None means `concat` with default options."""
    head_hidden: tuple[int, ...] = ()
    """Widths of the hidden layers of each uni-modal head; empty means one linear layer."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format of the forward and backward pass; parameters and combiners stay in float32."""


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """A factor on a base value, as a function of the step. Subclasses in `mmjax.train.optimizer`."""

    name: str
    """Shape of the schedule."""

    def build(self, base: float, total_steps: int) -> optax.Schedule:
        """Return step -> value."""
        raise TypeError(f"{type(self).__name__} is a base: take one of the schedules of mmjax.train.optimizer")


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Shapes that a method's state may have to be sized by.

    features: {modality: shape of one example's features}; last_layer: {objective: (D', C)}, inputs and outputs of the last
    layer of the fusion and of each uni-modal head.

    Example:
    >>> widths = {"fusion": (128, 10), "audio": (64, 10), "image": (32, 10)}
    >>> Layout(features={"audio": (64,), "image": (32,)}, last_layer=widths).last_layer["fusion"]
    (128, 10)
    """

    features: dict[str, tuple[int, ...]]
    """{modality: shape of one example's features}."""
    last_layer: dict[str, tuple[int, int]]
    """{objective: (D', C)}, inputs and outputs of the last layer."""


@dataclass(frozen=True, kw_only=True)
class MethodContext:
    """What the trainer knows and a method may need when it is built; all of it static."""

    names: tuple[str, ...]
    """Names of the objectives, "fusion" first, the others sorted."""
    num_examples: int
    """Number of training examples."""
    batch_size: int
    """Number of examples in a (global) batch."""
    steps_per_epoch: int
    total_steps: int
    task: Task
    layout: Layout


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """A way of balancing: an objective rule and a combiner. Subclasses: one a method, in `mmjax.optim`.

    Example:
    >>> from mmjax.optim import METHODS
    >>> METHODS["mimo"].kind, METHODS["pcgrad"].kind, METHODS["ogm"].kind
    ('value', 'gradient', 'balance')
    """

    name: str
    """Method that combines the objectives' gradients."""

    probe_heads: ClassVar[bool] = False
    """True: the uni-modal heads see stop_gradient(features), so that they measure without steering."""
    kind: ClassVar[Literal["value", "gradient", "balance"]] = "value"
    """What the weights come from: the losses, the gradients, or how well each modality does."""
    backward_passes: ClassVar[str] = "1"
    """Cost of a step."""
    source: ClassVar[str] = ""
    """Where the method comes from."""
    reading: ClassVar[Literal["paper", "our reading"]] = "paper"
    """Whether the formula is the source's own, or what we make of a source that leaves something open."""
    # of str: annotations are resolved when options are read, and `Promise` cannot be imported here
    promises: ClassVar[frozenset[str]] = frozenset()
    """Properties that it keeps (`mmjax.optim.promises`)."""

    def build(self, context: MethodContext) -> optax.GradientTransformationExtraArgs:
        """Make the combiner; it stands first in the optax chain."""
        raise TypeError(f"{type(self).__name__} is a base: take one of the methods of mmjax.optim")

    def objectives(self, forward: Forward) -> Objectives:
        """Return this method's objectives: the losses of the fusion and the heads, unless it has others."""
        from mmjax.method import plain_losses

        return plain_losses(forward)

    def refresh(self, context: MethodContext) -> Refresh | None:
        """Return what the method needs to learn from the whole training split now and then, if anything."""
        del context
        return None


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """What turns the combined gradient into a step. Subclasses in `mmjax.train.optimizer`.

    Example:
    >>> from mmjax.train.optimizer import AdamConfig, CosineConfig
    >>> tx = AdamConfig(learning_rate=3e-4, clip_norm=1.0, schedule=CosineConfig()).build(total_steps=100)
    >>> callable(tx.init) and callable(tx.update)  # an optax.GradientTransformation
    True
    """

    name: str
    """Kind of optimizer."""
    learning_rate: float = 1e-3
    """Peak learning rate."""
    weight_decay: float = 0.0
    """Decoupled for adamw; added to the gradient (L2) for sgd and adam; kernels only, never biases or norms."""
    clip_norm: float | None = None
    """Largest global norm of the combined gradient; None: no clipping."""
    schedule: ScheduleConfig | None = None
    """Learning-rate schedule; None means constant."""

    def build(self, total_steps: int) -> optax.GradientTransformation:
        """Make the transformation that follows the combiner in the chain."""
        raise TypeError(f"{type(self).__name__} is a base: take one of the optimizers of mmjax.train")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The training run itself.

    Example:
    >>> TrainConfig(epochs=3, batch_size=128, early_stopping=5).monitor_every
    50
    """

    seed: int = 0
    """Seed of initial parameters, batches and everything else that is random; at least 0."""
    epochs: float = 10.0
    """Passes over the training split."""
    batch_size: int = 64
    """Examples a step, over all devices."""
    label_smoothing: float = 0.0
    """Share of each label given to all classes evenly, in [0, 1); classification only."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: each class weighs N / (classes * its count) in the loss; classification only."""
    modality_dropout: float = 0.0
    """Probability, in [0, 1), that an example of a training batch loses a modality, as if it had come without; at least one
    always stays."""
    evaluate_every: int | None = None
    """Steps between evaluations on the validation split; None: once an epoch."""
    checkpoint_every: int | None = None
    """Steps between checkpoints; None: at every evaluation."""
    log_every: int = 10
    """Steps between lines of the training losses."""
    monitor_every: int = 50
    """Steps between measurements of gradient norms and cosines between objectives; 0: never."""
    skip_nonfinite: int = 0
    """Steps that a run, or each of its stages, may skip because a loss or the gradient is not finite: at such a step nothing
    moves. A method's pass over the training split (BOGC's) counts too: what it found is then left out. One more ends the
    run, with the step's number and whose loss or gradient it was."""
    early_stopping: int = 0
    """Stop after so many evaluations without a better one; 0: never."""
    select: Literal["loss", "score"] = "loss"
    """What "best on validation" means: the lowest fusion loss, or the highest score (accuracy, mAP or R2)."""
    parallel: Literal["jit", "pmap"] = "jit"
    """Route over several devices: jit with a sharded batch, or pmap."""
    devices: int = 0
    """Number of devices to use; 0: all."""


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """A stretch of training with an optimizer of its own; it begins with the best weights of the stage before it.

    Parts of a model are named "encoder/audio", "head/audio", "fusion"; "audio" means all that is audio's, "encoder" every
    encoder. In a product of experts an expert's name ("audio", "inter") means its encoder and its head.

    Example:
    >>> StageConfig(title="together", frozen=("encoder",)).frozen
    ('encoder',)
    """

    title: str
    """What the stage is called in notes and rows."""
    epochs: float | None = None
    """Passes over the training split; None: train.epochs."""
    optimizer: OptimizerConfig | None = None
    """None: the configuration's; either way it starts anew, its schedule over this stage's steps."""
    method: MethodConfig | None = None
    """None: the configuration's; either way it starts anew."""
    objectives: tuple[str, ...] = ()
    """Objectives that count ("fusion", "audio"); what none of them reaches stays as it is. Empty: all."""
    frozen: tuple[str, ...] = ()
    """Parts whose parameters and running statistics stay as they are."""

    def validate(self) -> None:
        """Raise ValueError for a number of epochs that is not finite and above 0."""
        if self.epochs is not None and not 0 < self.epochs < float("inf"):
            raise ValueError(f"epochs of stage {self.title!r} must be finite and above 0, or None; got {self.epochs!r}")


@dataclass(frozen=True, kw_only=True)
class Config:
    """A whole experiment.

    Example:
    >>> from mmjax.data import Planted
    >>> from mmjax.optim import MimoConfig
    >>> from mmjax.train.optimizer import AdamConfig
    >>> config = Config(data=Planted(), method=MimoConfig(penalty=2.0), optimizer=AdamConfig(learning_rate=1e-3))
    >>> config.train.epochs, config.model.fusion
    (10.0, None)
    """

    data: DataConfig
    """Where the data come from (`mmjax data list`)."""
    method: MethodConfig
    optimizer: OptimizerConfig
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    stages: tuple[StageConfig, ...] = ()
    """Stages of training, one after the other; empty: one, from scratch, with the method and optimizer above."""


def replace(config: Config, **sections: Any) -> Config:
    """Copy `config` with whole sections replaced (`dataclasses.replace`, under the name users look for)."""
    return dataclasses.replace(config, **sections)


def validate(config: Config) -> None:
    """Check every value that can be checked without data.

    Raises:
      ValueError: a field out of range; it names the field, the value and what would be right.
    """
    train = config.train
    rules = (
        ("seed", 0 <= train.seed < 2**32, "at least 0 and below 2**32"),
        ("epochs", 0 < train.epochs < float("inf"), "finite and above 0"),
        ("batch_size", train.batch_size >= 1, "at least 1"),
        ("label_smoothing", 0 <= train.label_smoothing < 1, "in [0, 1)"),
        ("class_weights", train.class_weights in ("none", "balanced"), "none or balanced"),
        ("modality_dropout", 0 <= train.modality_dropout < 1, "in [0, 1)"),
        ("evaluate_every", train.evaluate_every is None or train.evaluate_every >= 1, "at least 1, or None"),
        ("checkpoint_every", train.checkpoint_every is None or train.checkpoint_every >= 1, "at least 1, or None"),
        ("log_every", train.log_every >= 1, "at least 1"),
        ("monitor_every", train.monitor_every >= 0, "at least 0"),
        ("skip_nonfinite", train.skip_nonfinite >= 0, "at least 0"),
        ("early_stopping", train.early_stopping >= 0, "at least 0"),
        ("select", train.select in ("loss", "score"), "loss or score"),
        ("parallel", train.parallel in ("jit", "pmap"), "jit or pmap"),
        ("devices", train.devices >= 0, "at least 0"),
    )
    for name, ok, right in rules:
        if not ok:
            raise ValueError(f"train.{name} must be {right}, got {getattr(train, name)!r}")
    if config.model.dtype not in ("float32", "bfloat16"):
        raise ValueError(f"model.dtype must be float32 or bfloat16, got {config.model.dtype!r}")
    if any(width < 1 for width in config.model.head_hidden):
        raise ValueError(f"model.head_hidden must hold widths of at least 1, got {config.model.head_hidden}")
    for path, section in _sections(config, ""):
        if hasattr(section, "validate"):
            try:
                section.validate()
            except ValueError as error:  # of several encoders, say, the message cannot know which it is
                raise ValueError(f"{path}: {error}" if path else str(error)) from error


def _sections(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield every dataclass below `value`, itself left out; with its path if it is an entry of a dictionary."""
    if dataclasses.is_dataclass(value):
        for field_ in dataclasses.fields(value):
            yield from _below(getattr(value, field_.name), f"{path}.{field_.name}".strip("."), named=False)
    elif isinstance(value, dict):
        for key, entry in value.items():
            yield from _below(entry, f"{path}.{key}", named=True)
    elif isinstance(value, tuple):
        for i, entry in enumerate(value):
            yield from _below(entry, f"{path}.{i}", named=False)


def _below(value: Any, path: str, named: bool) -> Iterator[tuple[str, Any]]:
    if dataclasses.is_dataclass(value):
        yield path if named else "", value
    yield from _sections(value, path)
