"""Learners by configuration: its encoders, fusion head, method and optimizer, trained for every seed at once."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from mmjax.config import Config
from mmjax.config_file import to_json
from mmjax.data import Batch, Dataset, Splits, Task, as_input, batch_indices, select
from mmjax.evaluation.subsets import Subset, subset_name
from mmjax.losses import example_losses
from mmjax.theory.learner import Predictions, samples
from mmjax.theory.linear import example_risks
from mmjax.train.experiment import build_classifier
from mmjax.train.nonfinite import unsoundness
from mmjax.train.state import TrainState, create_state
from mmjax.train.step import Training, prepare, train_step

PyTree = Any
Part = tuple[dict[str, Array], Array]
"""Inputs {modality: [N, ...]} and label of a split, on the device."""

Varying = tuple[TrainState, PyTree, Array]
"""What differs between seeds: state at step 0, a fresh fusion head, and each step's examples, int32 [steps, B]."""

SeedAxis = Literal["vmap", "map"]

_ROWS = 256  # examples a forward pass
_CHOOSE_EVERY = 10  # steps of refitting between looks at the examples held back
_TRIAL_STEPS = 6
_UNFIT = {"gblend": "learns from losses on the validation split while it trains"}
"""Methods that a study cannot train with, and why."""


@dataclass(frozen=True)
class Trained:
    """Encoders and fusion head of a configuration, trained by its own step; the head refitted by its own optimizer.

    g is the encoders, h the fusion head. A modality that is absent is left out: for a head on joined features that is
    the same class of functions as zeros in its place. With `method=JointConfig()` training minimises the empirical risk
    of the fusion, as in the paper; any other method is studied as it is.

    config: its data section is not read. Every sample size gets `config.train.epochs`, but at least `min_steps` steps,
    without choosing a step on validation. The head is refitted for `refit_steps` on three quarters of the validation
    split, once from the trained head and once from a fresh one; the best of both on the last quarter is kept, the
    trained head itself being the first candidate.
    seed_axis: "vmap" runs all seeds side by side, "map" one after another in the same program: better where vmapped
    kernels are slow, as convolutions are on a CPU. `with_faster_seed_axis` finds out.

    >>> from mmjax import Config, TrainConfig
    >>> from mmjax.optim import GBlendConfig, JointConfig
    >>> from mmjax.theory import StrongWeak
    >>> from mmjax.train.optimizer import AdamConfig
    >>> train = TrainConfig(epochs=10, batch_size=50)
    >>> learner = Trained(Config(data=StrongWeak(), method=JointConfig(), optimizer=AdamConfig(), train=train))
    >>> learner.steps(1000), learner.steps(5000), learner.risk_unit(StrongWeak().load().test.task)
    (200, 1000, 'squared error')
    >>> Trained(Config(data=StrongWeak(), method=GBlendConfig(), optimizer=AdamConfig()))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    ValueError: config.method 'gblend' learns from losses on the validation split while it trains...
    """

    config: Config
    min_steps: int = 200
    refit_steps: int = 300
    seed_axis: SeedAxis = "vmap"

    def __post_init__(self) -> None:
        if self.config.method.name in _UNFIT:
            raise ValueError(
                f"config.method {self.config.method.name!r} {_UNFIT[self.config.method.name]}, which a study does not; "
                "take another method, such as joint"
            )
        if self.config.train.skip_nonfinite:
            raise ValueError(
                "config.train.skip_nonfinite is not for a study, in which every sample must be learned from"
            )
        for name in ("min_steps", "refit_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.seed_axis not in ("vmap", "map"):
            raise ValueError(f"seed_axis must be vmap or map, got {self.seed_axis!r}")

    def predict(self, splits: Splits, subset: Subset, n: int, seeds: Sequence[int]) -> Predictions:
        """See `Learner.predict`. Raises ValueError where training became NaN or infinite, with subset, n and seed."""
        run, varying, parts = self._prepared(splits, subset, n, seeds, self.steps(n))
        trained, refitted, (first_bad, broken) = jax.device_get(_over_seeds(run, self.seed_axis)(varying, *parts))
        for seed, steps, over in zip(seeds, first_bad, broken, strict=True):
            if over or (steps >= 0).any():
                what = "the model, or what it says of the test split, is not finite in the end"
                if (steps >= 0).any():
                    what = f"a loss or the gradient is not finite at step {steps.max()}"
                raise ValueError(
                    f"{subset_name(subset)}, n = {n}, seed {seed}: {what}; lower optimizer.learning_rate, or check the data"
                )
        return Predictions(trained, refitted)

    def with_faster_seed_axis(self, splits: Splits, subset: Subset, n: int, seeds: Sequence[int]) -> Trained:
        """Return this learner with the seed axis that takes less time for a few steps of this cell."""
        few = dataclasses.replace(self, refit_steps=_CHOOSE_EVERY)
        run, varying, parts = few._prepared(splits, subset, n, seeds, _TRIAL_STEPS)
        seconds: dict[SeedAxis, float] = {}
        for axis in get_args(SeedAxis):
            program = _over_seeds(run, axis)
            jax.block_until_ready(program(varying, *parts))
            start = time.perf_counter()
            jax.block_until_ready(program(varying, *parts))
            seconds[axis] = time.perf_counter() - start
        return dataclasses.replace(self, seed_axis=min(seconds, key=lambda axis: seconds[axis]))

    def steps(self, n: int) -> int:
        """Return how many training steps a sample of n examples gets."""
        return max(math.ceil(self.config.train.epochs * n / self._batch_size(n)), self.min_steps)

    def risks(self, task: Task, predictions: Array, label: Array) -> Array:
        """See `Learner.risks`."""
        return example_risks(task, jnp.asarray(predictions), jnp.asarray(label))

    def risk_unit(self, task: Task) -> str:
        """See `Learner.risk_unit`."""
        return "squared error" if task.kind == "regression" else "nats"

    def identity(self) -> dict[str, Any]:
        """See `Learner.identity`; the seed axis changes nothing but rounding."""
        return {key: value for key, value in to_json(self).items() if key != "seed_axis"}

    def _prepared(
        self, splits: Splits, subset: Subset, n: int, seeds: Sequence[int], steps: int
    ) -> tuple[Callable[..., Any], Varying, tuple[Part, ...]]:
        """Return one seed's pure function, what differs between seeds, and the three parts of the data."""
        if len(splits.validation) < 2:
            raise ValueError("the validation split needs at least 2 examples, to refit a head and to choose it")
        splits = select(splits, subset)
        order = samples(seeds, len(splits.train), n)
        used, place = np.unique(order, return_inverse=True)
        parts = (
            _part(splits.train, used),
            _part(splits.validation, _shuffled(splits.validation)),
            _part(splits.test, np.arange(len(splits.test))),
        )
        training, objectives = self._training(splits, order[0])
        rows = self._batches(seeds, place.reshape(order.shape), steps)
        starts = [_start(training, objectives, parts[0], seed) for seed in seeds]
        states, fresh = jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts)
        return self._run(training, len(splits.validation)), (states, fresh, rows), parts

    def _batch_size(self, n: int) -> int:
        return min(self.config.train.batch_size, n)

    def _batches(self, seeds: Sequence[int], order: np.ndarray, steps: int) -> Array:
        """Return the examples of each seed's steps, int32 [S, steps, B]; order: [S, n], each seed's sample."""
        n = order.shape[1]
        batch_size = self._batch_size(n)
        batches = [
            np.stack([rows[batch_indices(seed, step, n, batch_size)] for step in range(steps)])
            for seed, rows in zip(seeds, order, strict=True)
        ]
        return jnp.asarray(np.stack(batches), jnp.int32)

    def _training(self, splits: Splits, sample: np.ndarray) -> tuple[Training, int]:
        """Return the pure functions' closure and the number of objectives, for samples of this size."""
        n = len(sample)
        batch_size = self._batch_size(n)
        config = dataclasses.replace(
            self.config,
            model=dataclasses.replace(
                self.config.model,
                encoders={m: e for m, e in self.config.model.encoders.items() if m in splits.train.modalities},
            ),
            train=dataclasses.replace(
                self.config.train,
                batch_size=batch_size,
                epochs=self.steps(n) * batch_size / n,
                devices=1,
                parallel="jit",
            ),
        )
        # a method may ask how many examples there are: a sample's number, not the pool's
        few = dataclasses.replace(splits, train=_rows(splits.train, sample))
        if config.train.class_weights == "none":
            experiment = build_classifier(config, few)
            training = experiment.training
        else:  # the weights are the pool's, since every seed has other counts
            plain = dataclasses.replace(config, train=dataclasses.replace(config.train, class_weights="none"))
            experiment = build_classifier(plain, few)
            pool = build_classifier(config, splits).training.class_weights
            training = dataclasses.replace(experiment.training, class_weights=pool)
        if experiment.refresh is not None:
            raise ValueError(
                f"config.method {config.method.name!r} passes over the whole training split as it trains, which a study "
                "does not; take another method, or one of its options without such passes"
            )
        return training, len(experiment.names)

    def _run(self, training: Training, to_refit: int) -> Callable[..., tuple[Array, Array, tuple[Array, Array]]]:
        """Return the pure function of one seed: (what varies, the three parts) -> both predictions, first bad step."""
        inference = training.inference
        held_back = max(1, to_refit // 4)
        refit = partial(
            _refit,
            task=inference.task,
            optimizer=self.config.optimizer.build(self.refit_steps),
            batches=_refit_batches(to_refit - held_back, self.refit_steps),
        )

        def encode(variables: PyTree, inputs: dict[str, Array]) -> dict[str, Array]:
            def some(rows: dict[str, Array]) -> Any:
                return inference.model.apply(variables, prepare(inference, rows), method="encode")

            return _in_chunks(some, inputs)

        def one(
            varying: Varying, train: Part, validation: Part, test: Part
        ) -> tuple[Array, Array, tuple[Array, Array]]:
            state, fresh, batches = varying
            at_first = unsoundness(state.variables)

            def step(state: Any, rows: Array) -> tuple[Any, None]:
                inputs = {m: x[rows] for m, x in train[0].items()}
                state, _ = train_step(training, state, Batch(inputs, train[1][rows], jnp.ones(len(rows))))
                return state, None

            state, _ = jax.lax.scan(step, state, batches)
            variables = state.variables
            features, evaluated = encode(variables, validation[0]), encode(variables, test[0])

            def decide(head: PyTree, features: dict[str, Array]) -> Array:
                replaced = {**variables, "params": {**state.params, "fusion": head}}
                outputs: Any = inference.model.apply(replaced, features, method="decide")
                return outputs.logits

            trained = state.params["fusion"]
            head = refit(decide, trained, fresh, features, validation[1], held_back=held_back)
            worse = jax.tree.map(lambda now, then: now > then, unsoundness(state.variables), at_first)
            broken = jnp.any(jnp.stack(jax.tree.leaves(worse)))
            predictions = decide(trained, evaluated), decide(head, evaluated)
            for predicted in predictions:
                broken |= ~jnp.all(jnp.isfinite(predicted))
            return *predictions, (state.first_bad, broken)

        return one


def _start(training: Training, objectives: int, train: Part, seed: int) -> tuple[TrainState, PyTree]:
    """Return a seed's state at step 0, and a fresh fusion head.

    Not compiled with the rest: random initial values take XLA longer than all of the training.
    """
    model = training.inference.model
    example = prepare(training.inference, {m: x[:1] for m, x in train[0].items()})
    state = create_state(model, example, training.tx, objectives, seed)
    fresh = model.init(jax.random.fold_in(jax.random.key(seed), 1), example)["params"]
    if "fusion" not in fresh:
        raise ValueError(
            "model.fusion has no parameters of its own, so there is no head to refit; take one that has, such as concat"
        )
    return state, fresh["fusion"]


def _refit(
    decide: Callable[[PyTree, dict[str, Array]], Array],
    trained: PyTree,
    fresh: PyTree,
    features: dict[str, Array],
    label: Array,
    *,
    held_back: int,
    task: Task,
    optimizer: optax.GradientTransformation,
    batches: Array,
) -> PyTree:
    """Return the head that does best on the last `held_back` examples, among those met while fitting to the others."""

    def loss(head: PyTree, rows: Array | slice) -> Array:
        some = {m: z[rows] for m, z in features.items()}
        return jnp.mean(example_losses(task, decide(head, some), label[rows]))

    last = slice(len(label) - held_back, None)

    def step(carry: tuple[PyTree, PyTree], rows: Array) -> tuple[tuple[PyTree, PyTree], None]:
        head, state = carry
        updates, state = optimizer.update(jax.grad(loss)(head, rows), state, head)
        return (optax.apply_updates(head, updates), state), None

    def several(carry: tuple, rows: Array) -> tuple[tuple, None]:
        moving, best, best_loss = carry
        moving, _ = jax.lax.scan(step, moving, rows)
        now = loss(moving[0], last)
        better = now < best_loss  # also False for NaN
        best = jax.tree.map(lambda new, old: jnp.where(better, new, old), moving[0], best)
        return (moving, best, jnp.where(better, now, best_loss)), None

    def fit(start: PyTree) -> tuple[PyTree, Array]:
        carry = ((start, optimizer.init(start)), start, loss(start, last))
        (_, best, best_loss), _ = jax.lax.scan(several, carry, batches)
        return best, best_loss

    starts = jax.tree.map(lambda a, b: jnp.stack([a, b]), trained, fresh)
    heads, losses = jax.vmap(fit)(starts)
    return jax.tree.map(lambda x: x[jnp.argmin(losses)], heads)


def _refit_batches(n: int, steps: int) -> Array:
    size = min(_ROWS, n)
    rounds = math.ceil(steps / _CHOOSE_EVERY)
    rows = np.stack([batch_indices(0, step, n, size) for step in range(rounds * _CHOOSE_EVERY)])
    return jnp.asarray(rows.reshape(rounds, _CHOOSE_EVERY, size), jnp.int32)


def _over_seeds(run: Callable[..., Any], axis: SeedAxis) -> Callable[..., Any]:
    """Return the compiled program of all seeds."""

    def program(varying: Varying, *parts: Part) -> Any:
        def one(varying: Varying) -> Any:
            return run(varying, *parts)

        return jax.vmap(one)(varying) if axis == "vmap" else jax.lax.map(one, varying)

    return jax.jit(program)


def _in_chunks(apply: Callable[[dict[str, Array]], PyTree], inputs: dict[str, Array]) -> PyTree:
    """Return apply(inputs) [N, ...], a few examples at a time, so that many seeds fit into memory."""
    total = len(next(iter(inputs.values())))
    size = min(_ROWS, total)
    count = math.ceil(total / size)
    padded = {m: jnp.pad(x, [(0, count * size - total)] + [(0, 0)] * (x.ndim - 1)) for m, x in inputs.items()}
    chunks = jax.lax.map(apply, {m: x.reshape(count, size, *x.shape[1:]) for m, x in padded.items()})
    return jax.tree.map(lambda z: z.reshape(count * size, *z.shape[2:])[:total], chunks)


def _shuffled(dataset: Dataset) -> np.ndarray:
    """Return a fixed order of a split, so that what is held back of it is no block of the source's order."""
    return np.random.default_rng(0).permutation(len(dataset))


def _part(dataset: Dataset, rows: np.ndarray) -> Part:
    kind = np.int32 if dataset.task.kind == "classification" else np.float32
    inputs = {m: jnp.asarray(as_input(np.asarray(dataset.inputs[m][rows]))) for m in dataset.modalities}
    return inputs, jnp.asarray(dataset.label[rows].astype(kind))


def _rows(dataset: Dataset, rows: np.ndarray) -> Dataset:
    inputs: dict[str, Any] = {m: dataset.inputs[m][rows] for m in dataset.modalities}
    return dataclasses.replace(dataset, inputs=inputs, label=dataset.label[rows])
