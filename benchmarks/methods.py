"""What the methods cost beside the backward passes: as modalities are added, on large gradients, under a monitor, in time.

python benchmarks/methods.py flatness   # FLOPs of a step per modality, M = 2 to 8
python benchmarks/methods.py combining  # bytes of the combining step alone on 10 M parameters, K = 3 and 5
python benchmarks/methods.py monitor    # FLOPs of a step with mmjax.optim.monitor around the combiner
python benchmarks/methods.py times      # extra time of a step over uniform's, all methods in turns in one process

The first three are XLA's counts, without a clock, but a while loop's body counts once: the solvers of some methods on the
K x K Gramian iterate, and those iterations are left out (K is the number of objectives, so they are small).
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flops import flops
from problems import lenet_batch, lenet_state, lenet_training
from rich.console import Console
from rich.table import Table

import mmjax
from mmjax.config import Layout, MethodConfig, MethodContext
from mmjax.data import Batch, Task
from mmjax.models import MLP, ConcatFusion, Head, MultiModal
from mmjax.objectives import FUSION
from mmjax.optim import METHODS
from mmjax.train.state import create_state
from mmjax.train.step import Inference, Training, _gradients, train_step

INPUTS, WIDTH, BATCH, CLASSES = 320, 512, 256, 10
PARAMETERS, LEAVES = 10_000_000, 10
"""Of the combining step: gradients of ten leaves that every objective reaches."""
NULL = "uniform once more"
LAPLACE = "bogc (laplace), features"


def variants() -> dict[str, MethodConfig]:
    """Every method with its default options, at each level that it has; BOGC by moving moments (Laplace: flops.py)."""
    made: dict[str, MethodConfig] = {}
    for name, method in METHODS.items():
        options = {"moments": "ema"} if name == "bogc" else {}
        config: Any = method(**options)  # every method names itself
        if not hasattr(config, "level"):
            made[name] = config
            continue
        for level in ("parameters", "features"):
            made[f"{name}, {level}"] = replace(config, level=level)
    return made


def context(names: tuple[str, ...], width: int = WIDTH) -> MethodContext:
    """Return what the trainer would tell a method about a model with an encoder of `width` features a modality."""
    modalities = names[1:]
    widths = dict.fromkeys(modalities, (width, CLASSES)) | {FUSION: (width * len(modalities), CLASSES)}
    return MethodContext(
        names=names,
        num_examples=16 * BATCH,
        batch_size=BATCH,
        steps_per_epoch=16,
        total_steps=160,
        task=Task("classification", CLASSES),
        layout=Layout(features=dict.fromkeys(modalities, (width,)), last_layer={n: widths[n] for n in names}),
    )


def mlp_step(config: MethodConfig, num_modalities: int) -> tuple[Callable[..., Any], Any, Batch]:
    """Return the training step of perceptrons on `num_modalities` modalities, its state and a batch."""
    names = tuple(f"m{i}" for i in range(num_modalities))
    model = MultiModal(
        encoders={m: MLP(WIDTH, depth=2) for m in names},
        fusion=ConcatFusion(CLASSES, ()),
        heads={m: Head(CLASSES, ()) for m in names},
        probe_heads=config.probe_heads,
    )
    inference, combiner = Inference(model, Task("classification", CLASSES)), config.build(context((FUSION, *names)))
    training = Training(inference, combiner, optax.sgd(0.01), config.objectives)
    example = {m: jnp.zeros((1, INPUTS)) for m in names}
    state = create_state(model, example, training.tx, num_modalities + 1, seed=0)
    keys = jax.random.split(jax.random.key(0), num_modalities + 1)
    inputs = {m: jax.random.normal(k, (BATCH, INPUTS)) for m, k in zip(names, keys, strict=False)}
    label = jax.random.randint(keys[-1], (BATCH,), 0, CLASSES)
    return partial(train_step, training), state, Batch(inputs, label, jnp.ones(BATCH))


def table(title: str, *columns: str) -> Table:
    made = Table(title=title)
    for k, column in enumerate(columns):
        made.add_column(column, justify="left" if k == 0 else "right")
    return made


def flatness(console: Console) -> None:
    """FLOPs of a whole step over M times the uniform step's share of a modality at M = 2."""
    sizes = (2, 4, 6, 8)
    made = table("FLOPs a modality, uniform at M = 2 being 1", "method", *(f"M = {m}" for m in sizes), "M = 8 / M = 2")
    step, state, batch = mlp_step(mmjax.optim.UniformConfig(), 2)
    unit = flops(step, state, batch) / 2
    for name, config in variants().items():
        found = []
        for m in sizes:
            step, state, batch = mlp_step(config, m)
            found.append(flops(step, state, batch) / m / unit)
        made.add_row(name, *(f"{x:.3f}" for x in found), f"{found[-1] / found[0]:.3f}")
    console.print(made)


def combining_step(config: MethodConfig, k: int) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Return (gradients, state, values, key) -> (update, state) and its arguments."""
    names = (FUSION, *(f"m{i}" for i in range(k - 1)))
    tx = optax.with_extra_args_support(config.build(context(names)))
    side = PARAMETERS // LEAVES // 1000
    params = {f"w{i}": jnp.zeros((side, 1000)) for i in range(LEAVES)}
    grads = {n: jax.random.normal(jax.random.key(i), (k, *p.shape)) for i, (n, p) in enumerate(params.items())}
    groups = {n: f"encoder/{names[1 + i % (k - 1)]}" for i, n in enumerate(params)}

    def combine(grads: Any, state: Any, values: Any, key: Any) -> Any:
        return tx.update(grads, state, params_like, values=values, key=key, groups=groups)

    params_like = jax.eval_shape(lambda: params)
    return combine, (grads, tx.init(params), jnp.arange(1.0, k + 1), jax.random.key(0))


def combining(console: Console) -> None:
    """Bytes accessed and time, of the methods that need nothing but gradients, losses and a key."""
    counts = (3, 5)
    columns = [f"K = {k}: {what}" for k in counts for what in ("bytes", "ms", "ms / (2K+1) copies")]
    made = table(f"Combining {PARAMETERS / 1e6:.0f} M parameters; bytes over (2K+1) passes", "method", *columns)
    source = jnp.ones(PARAMETERS)
    copy = jax.jit(lambda x: x + 1)
    for name, config in variants().items():
        if config.kind == "balance" or name.endswith("features") or name == "gblend":
            continue
        row = []
        for k in counts:
            combine, arguments = combining_step(config, k)
            compiled = jax.jit(combine).lower(*arguments).compile()
            cost: Any = compiled.cost_analysis()
            one_pass = 4 * PARAMETERS
            spent, reference = clock(partial(compiled, *arguments)), clock(partial(copy, source)) / 2
            row += [
                f"{cost['bytes accessed'] / ((2 * k + 1) * one_pass):.2f}",
                f"{1e3 * spent:.0f}",
                f"{spent / ((2 * k + 1) * reference):.2f}",
            ]
        made.add_row(name, *row)
    console.print(made)


def clock(run: Callable[[], Any], repeats: int = 5) -> float:
    """Return the least seconds of a few runs, after one more."""
    jax.block_until_ready(run())
    spent = []
    for _ in range(repeats):
        started = time.perf_counter()
        jax.block_until_ready(run())
        spent.append(time.perf_counter() - started)
    return min(spent)


def loop_flops(combiner: optax.GradientTransformation) -> float:
    """FLOPs of a LeNet step as in a loop of one's own: the trainer's has a monitor of its own."""
    training = lenet_training(combiner, optax.sgd(0.01))
    tx = optax.chain(combiner, training.optimizer)

    def step(state: Any, opt_state: Any, batch: Batch) -> Any:
        values, grads, _, statistics = _gradients(training, state, batch)
        updates, opt_state = tx.update(grads, opt_state, state.params, values=values)
        return optax.apply_updates(state.params, updates), opt_state, values, statistics

    state = jax.eval_shape(lambda: lenet_state(training))
    return flops(step, state, jax.eval_shape(tx.init, state.params), jax.eval_shape(lenet_batch))


def monitored(console: Console) -> None:
    """The LeNet step with a monitor around mimo, over the same without."""
    mimo = mmjax.optim.mimo(num_objectives=3)
    plain = loop_flops(mimo)
    made = table("LeNet step with monitor(mimo()) / without", "what", "ratio", "wanted")
    for every in (0, 50):
        ratio = loop_flops(mmjax.optim.monitor(mimo, every, num_objectives=3)) / plain
        if every:
            # both branches of the conditional count: the share of the step that measures is one in `every`
            made.add_row(f"geometry, in the step that measures (every {every})", f"{ratio:.3f}", "")
            made.add_row(f"geometry, amortised over {every} steps", f"{1 + (ratio - 1) / every:.3f}", "")
        else:
            made.add_row("losses and weights", f"{ratio:.4f}", "1.02")
    console.print(made)


def times(console: Console, rounds: int = 25, steps: int = 5) -> None:
    """Milliseconds a step beyond uniform's: in every round all methods in a new order, and the differences within it.

    Uniform runs twice a round: what its second run takes beyond its first is what this clock cannot tell apart.
    """
    programs = {}
    others = {LAPLACE: mmjax.optim.BogcConfig(), NULL: mmjax.optim.UniformConfig()}
    for name, config in (variants() | others).items():
        step, state, batch = mlp_step(config, 2)
        programs[name] = (jax.jit(step, donate_argnums=0).lower(state, batch).compile(), state, batch)
    spent: dict[str, list[float]] = {name: [] for name in programs}
    shuffle = random.Random(0).sample
    for turn in range(rounds + 1):
        for name in shuffle(list(programs), len(programs)):
            program, state, batch = programs[name]
            started = time.perf_counter()
            for _ in range(steps):
                state, _ = program(state, batch)
            jax.block_until_ready(state)
            programs[name] = (program, state, batch)
            if turn:  # the first round warms up
                spent[name].append((time.perf_counter() - started) / steps)
    differences = {
        name: [1e3 * (a - b) for a, b in zip(each, spent["uniform"], strict=True)]
        for name, each in spent.items()
        if name != "uniform"
    }
    base = 1e3 * statistics.median(spent["uniform"])
    made = table(
        f"Perceptrons of width {WIDTH}, batch {BATCH}, M = 2; uniform: {base:.2f} ms a step, {rounds} rounds",
        "method", "extra, ms a step: median", "quartiles", "of uniform's, %",
    )  # fmt: skip
    for name, found in sorted(differences.items(), key=lambda item: statistics.median(item[1])):
        low, middle, high = statistics.quantiles(found, n=4)
        made.add_row(name, f"{middle:+.2f}", f"{low:+.2f} to {high:+.2f}", f"{100 * middle / base:+.0f}")
    console.print(made)


def main() -> None:
    parts = {"flatness": flatness, "combining": combining, "monitor": monitored, "times": times}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="*", choices=[*parts, []], default=[], help="default: all of them")
    for name in parser.parse_args().part or parts:
        parts[name](Console(width=150))


if __name__ == "__main__":
    main()
