"""The models that the benchmarks measure."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from mmjax.config import Layout, MethodContext
from mmjax.data import Batch, Task
from mmjax.method import Rule, plain_losses
from mmjax.models import ConcatFusion, Head, LeNet, MultiModal
from mmjax.train.state import TrainState, create_state
from mmjax.train.step import Inference, Training

BATCH = 64
SHAPES = {"image": (28, 28, 1), "audio": (112, 112, 1)}


def lenet_training(
    combiner: optax.GradientTransformation,
    optimizer: optax.GradientTransformation,
    *,
    probe_heads: bool = False,
    rule: Rule = plain_losses,
) -> Training:
    """The published two-modality AV-MNIST LeNet (c = 6, batch norm, heads with 100 hidden units)."""
    model = MultiModal(
        encoders={"image": LeNet(6, 3), "audio": LeNet(6, 5)},
        fusion=ConcatFusion(10, (100,)),
        heads={"image": Head(10, (100,)), "audio": Head(10, (100,))},
        probe_heads=probe_heads,
    )
    return Training(Inference(model, Task("classification", 10)), combiner, optimizer, rule)


def lenet_context() -> MethodContext:
    """Return what the trainer would tell a method about it, with 16 batches of training data."""
    names = ("fusion", "audio", "image")
    return MethodContext(
        names=names,
        num_examples=16 * BATCH,
        batch_size=BATCH,
        steps_per_epoch=16,
        total_steps=160,
        task=Task("classification", 10),
        layout=Layout(features={"audio": (192,), "image": (48,)}, last_layer=dict.fromkeys(names, (100, 10))),
    )


def lenet_state(training: Training) -> TrainState:
    """Return its state at step 0."""
    example = {m: jnp.zeros((1, *shape)) for m, shape in SHAPES.items()}
    return create_state(training.inference.model, example, training.tx, 3, seed=0)


def lenet_batch(size: int = BATCH) -> Batch:
    """A random batch of images and spectrograms."""
    keys = jax.random.split(jax.random.key(0), 3)
    inputs = {m: jax.random.normal(k, (size, *SHAPES[m])) for m, k in zip(SHAPES, keys, strict=False)}
    return Batch(inputs, jax.random.randint(keys[2], (size,), 0, 10), jnp.ones(size))


def shared_trunk_losses(params: dict[str, Any], inputs: Array, modalities: int) -> dict[str, Array]:
    """Encoder-head model of any M, dense: what the memory of `.pairs()` is measured on."""
    features = [jnp.tanh(inputs @ params["encoder"][f"m{i}"]) for i in range(modalities)]
    losses = {f"m{i}": jnp.mean((z @ params["head"][f"m{i}"]) ** 2) for i, z in enumerate(features)}
    return losses | {"fusion": jnp.mean((sum(features) @ params["fusion"]) ** 2)}
