"""FLOPs and gradient memory of the contract, by XLA's own analysis: no clock, no noise.

    python benchmarks/flops.py

Whole training steps and bare gradients on the two-modality AV-MNIST LeNet (c = 6, batch 64, batch norm), as ratios to
the uniform step or the plain gradient of the summed losses; memory of `.pairs()` on a dense encoder-head model.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from problems import lenet_batch, lenet_context, lenet_state, lenet_training, shared_trunk_losses

import mmjax
from mmjax.config import MethodConfig
from mmjax.method import Rule, plain_losses
from mmjax.optim import METHODS
from mmjax.train.step import _gradients, train_step


def flops(function: Any, *args: Any) -> float:
    return jax.jit(function).lower(*args).compile().cost_analysis()["flops"]  # type: ignore[index]


BOUNDS = {"value": 1.01, "balance": 1.15, "gradient": 1.75}
"""Bounds of a method's step, by its kind, as ratios to the uniform step."""


def step_flops(
    combiner: optax.GradientTransformation, *, probe_heads: bool = False, rule: Rule = plain_losses
) -> float:
    training = lenet_training(optax.chain(combiner, optax.sgd(0.01)), probe_heads=probe_heads, rule=rule)
    state = jax.eval_shape(lambda: lenet_state(training))
    return flops(partial(train_step, training), state, jax.eval_shape(lenet_batch))


def method_flops(method: type[MethodConfig]) -> float:
    """Return the FLOPs of a step with the method's default options."""
    config = method()  # type: ignore[call-arg]  # every method names itself
    return step_flops(config.build(lenet_context()), probe_heads=config.probe_heads, rule=config.objectives)


def gradient_flops(take: Any) -> float:
    training = lenet_training(optax.chain(mmjax.optim.uniform(num_objectives=3), optax.sgd(0.01)))
    state = jax.eval_shape(lambda: lenet_state(training))
    return flops(lambda s, b: take(_gradients(training, s, b)[1]), state, jax.eval_shape(lenet_batch))


def pairs_summed() -> optax.GradientTransformation:
    """A combiner that takes every gradient apart and sums them: what any method at the parameters costs at least."""

    def update(grads: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        return jax.tree.map(lambda p, leaf: sum(leaf.values()), params, grads.pairs()), state

    inner = mmjax.optim.uniform(num_objectives=3)
    return optax.GradientTransformationExtraArgs(inner.init, update)


def features_combined(grads: Any) -> Any:
    """All K gradients at the features, combined there, one encoder backward."""
    features = grads.features()
    weights = jnp.ones(3)
    cotangents = {m: jnp.tensordot(weights, c, axes=1) for m, c in features.cotangents.items()}
    direct = jax.tree.map(lambda d: jnp.tensordot(weights, d, axes=1), features.direct)
    return features.pull_back(cotangents, direct)


def pairs_memory(modalities: int, width: int = 1024) -> float:
    def shapes() -> Any:
        encoder = {f"m{i}": jnp.zeros((width, width)) for i in range(modalities)}
        head = {f"m{i}": jnp.zeros((width, 10)) for i in range(modalities)}
        return {"encoder": encoder, "head": head, "fusion": jnp.zeros((width, 10))}

    params = jax.eval_shape(shapes)
    inputs = jax.ShapeDtypeStruct((8, width), jnp.float32)
    losses = partial(shared_trunk_losses, modalities=modalities)
    compiled = jax.jit(lambda p, x: mmjax.objective_grads(losses)(p, x)[1].pairs()).lower(params, inputs).compile()
    memory: Any = compiled.memory_analysis()
    one = sum(leaf.size * 4 for leaf in jax.tree.leaves(params))
    return (memory.output_size_in_bytes + memory.temp_size_in_bytes) / one


def main() -> None:
    uniform = step_flops(mmjax.optim.uniform(num_objectives=3))
    plain = gradient_flops(lambda g: g.weighted(jnp.ones(3)))
    print(f"uniform step: {uniform / 1e9:.3f} GFLOP; its gradient alone: {plain / 1e9:.3f} GFLOP\n")
    rows = [
        *((f"{name} step / uniform step", method_flops(m) / uniform, BOUNDS[m.kind]) for name, m in METHODS.items()),
        (".stacked() / weighted gradient", gradient_flops(lambda g: g.stacked()) / plain, 1.70),
        (".pairs() / weighted gradient", gradient_flops(lambda g: g.pairs()) / plain, 1.70),
        ("step that sums .pairs() / uniform step", step_flops(pairs_summed()) / uniform, 1.70),
        (".features() combined / weighted gradient", gradient_flops(features_combined) / plain, 1.05),
        ("memory of .pairs() / one gradient, M = 2", pairs_memory(2), 2.3),
        ("memory of .pairs() / one gradient, M = 5", pairs_memory(5), 2.3),
    ]
    print("| what | ratio | bound | |\n|---|---|---|---|")
    for what, ratio, bound in rows:
        print(f"| {what} | {ratio:.3f} | {bound:.2f} | {'met' if ratio <= bound else 'MISSED'} |")


if __name__ == "__main__":
    main()
