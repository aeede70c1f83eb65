"""FLOPs and gradient memory of the contract, by XLA's own analysis: no clock, no noise.

    python benchmarks/flops.py

Whole training steps and bare gradients on the two-modality AV-MNIST LeNet (c = 6, batch 64, batch norm), as ratios to
the uniform step or the plain gradient of the summed losses; memory of `.pairs()` on a dense encoder-head model.

XLA's count leaves out Cholesky factors and triangular solves. For BOGC with Laplace moments they are added by hand, per
head of side P = C(D'+1): P³/3 + P³ a refresh, for the factor and its inverse; the pass over the 55,000 training examples
of the AV-MNIST LeNet setting (forward and Λ, counted by XLA a batch) is spread over the steps between two refreshes.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from problems import BATCH, lenet_batch, lenet_context, lenet_state, lenet_training, shared_trunk_losses

import mmjax
from mmjax.bayes.moments import ema, laplace, microbatch
from mmjax.config import MethodConfig
from mmjax.method import Rule, plain_losses
from mmjax.optim import METHODS, BogcConfig, bogc
from mmjax.optim.bogc import bogc_survey
from mmjax.train.refresher import _add
from mmjax.train.step import _gradients, train_step

EXAMPLES = 55_000
LENET_LAYOUT = lenet_context().layout
BOUNDS = {"value": 1.01, "balance": 1.15, "gradient": 1.75}
"""Bounds of a method's step, by its kind, as ratios to the uniform step; 1.15 for any at the features."""


def flops(function: Any, *args: Any) -> float:
    return jax.jit(function).lower(*args).compile().cost_analysis()["flops"]  # type: ignore[index]


def step_flops(
    combiner: optax.GradientTransformation, *, probe_heads: bool = False, rule: Rule = plain_losses
) -> float:
    training = lenet_training(combiner, optax.sgd(0.01), probe_heads=probe_heads, rule=rule)
    state = jax.eval_shape(lambda: lenet_state(training))
    return flops(partial(train_step, training), state, jax.eval_shape(lenet_batch))


def method_rows(uniform: float) -> list[tuple[str, float, float]]:
    """Steps of every method with its default options, those that can also at the features."""

    def ratio(config: MethodConfig) -> float:
        combiner = config.build(lenet_context())
        return step_flops(combiner, probe_heads=config.probe_heads, rule=config.objectives) / uniform

    rows = []
    for name, method in METHODS.items():
        if name in ("uniform", "bogc"):
            continue
        config = method()  # type: ignore[call-arg]  # every method names itself
        if hasattr(config, "level"):
            for level, bound in (("parameters", BOUNDS["gradient"]), ("features", BOUNDS["balance"])):
                at_level: Any = replace(config, level=level)  # type: ignore[call-arg]
                rows.append((f"{name} step at the {level} / uniform step", ratio(at_level), bound))
        else:
            rows.append((f"{name} step / uniform step", ratio(config), BOUNDS[method.kind]))
    return rows


def gradient_flops(take: Any) -> float:
    training = lenet_training(mmjax.optim.uniform(num_objectives=3), optax.sgd(0.01))
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


def parts_alone(parts: int) -> float:
    """Losses, statistics and K gradients of the parts of a batch, with no forward pass of the whole."""
    training = lenet_training(mmjax.optim.uniform(num_objectives=3), optax.sgd(0.01))

    def of_parts(state: Any, batch: Any) -> Any:
        cut = [jax.tree.map(lambda x, i=i: jnp.split(x, parts)[i], batch) for i in range(parts)]
        found = [_gradients(training, state, part) for part in cut]
        return [(values, grads.pairs(), statistics) for values, grads, _, statistics in found]

    return flops(of_parts, jax.eval_shape(lambda: lenet_state(training)), jax.eval_shape(lenet_batch))


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


def laplace_by_hand() -> float:
    """Return what XLA does not count: FLOPs of a refresh's Cholesky factors and of their inverses, by solving for I."""
    return sum(p**3 / 3 + p**3 for p in (c * (d + 1) for d, c in LENET_LAYOUT.last_layer.values()))


def refresh_flops(size: int = 512) -> float:
    """Return the FLOPs of one pass over the training set, its Cholesky factors left out."""
    refresh = bogc_survey(laplace(), 1, num_examples=EXAMPLES, layout=LENET_LAYOUT)
    assert refresh is not None
    training = lenet_training(mmjax.optim.uniform(num_objectives=3), optax.sgd(0.01))
    state = jax.eval_shape(lambda: lenet_state(training))
    batch = jax.eval_shape(lambda: lenet_batch(size))
    variables = {"params": state.params, **state.model_state}
    carry = jax.eval_shape(lambda: refresh.start(None))
    add = partial(_add, refresh, training.inference)
    return flops(add, carry, variables, batch) * EXAMPLES / size


def bogc_rows(uniform: float) -> list[tuple[str, float, float]]:
    def ratio(moments: Any, **options: Any) -> float:
        return step_flops(bogc(moments, num_examples=EXAMPLES, layout=LENET_LAYOUT, **options)) / uniform

    samples, epochs = 64, BogcConfig().refresh_epochs
    bare = ratio(laplace(samples=samples))
    steps = epochs * EXAMPLES / BATCH
    amortised = (refresh_flops() + laplace_by_hand()) / steps / uniform
    return [
        ("BOGC step, ema at the features / uniform step", ratio(ema()), 1.15),
        ("BOGC step, microbatch at the features / uniform step", ratio(microbatch()), 1.15),
        ("BOGC step, ema at the parameters / uniform step", ratio(ema(), level="parameters"), 1.75),
        ("BOGC step, microbatch at the parameters / uniform step", ratio(microbatch(2), level="parameters"), 1.75),
        (f"BOGC step, Laplace with S = {samples}, no refresh / uniform step", bare, 1.25),
        (f"the same with a refresh every {epochs:g} epochs, amortised / uniform step", bare + amortised, 1.25),
    ]


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    uniform = step_flops(mmjax.optim.uniform(num_objectives=3))
    plain = gradient_flops(lambda g: g.weighted(jnp.ones(3)))
    print(f"uniform step: {uniform / 1e9:.3f} GFLOP; its gradient alone: {plain / 1e9:.3f} GFLOP\n")
    rows = [
        *method_rows(uniform),
        (".stacked() / weighted gradient", gradient_flops(lambda g: g.stacked()) / plain, 1.70),
        (".pairs() / weighted gradient", gradient_flops(lambda g: g.pairs()) / plain, 1.70),
        ("step that sums .pairs() / uniform step", step_flops(pairs_summed()) / uniform, 1.70),
        (".features() combined / weighted gradient", gradient_flops(features_combined) / plain, 1.05),
        ("memory of .pairs() / one gradient, M = 2", pairs_memory(2), 2.3),
        ("memory of .pairs() / one gradient, M = 5", pairs_memory(5), 2.3),
        *bogc_rows(uniform),
    ]
    for parts in (2, 4):
        print(f"{parts} parts of a batch by themselves / uniform step: {parts_alone(parts) / uniform:.3f}\n")
    print("| what | ratio | bound | |\n|---|---|---|---|")
    for what, ratio, bound in rows:
        print(f"| {what} | {ratio:.3f} | {bound:.2f} | {'met' if ratio <= bound else 'MISSED'} |")


if __name__ == "__main__":
    main()
