"""Parameters, FLOPs and speed of every fusion head and encoder, as a Markdown table.

    python benchmarks/models.py

Fusion heads: batch 64, 10 classes, vectors of 48 (image) and 192 (audio) features as in the published AV-MNIST setting,
the attention heads also with 16 tokens of 64 each; late heads are given the uni-modal decisions. Encoders: batch 16, the
input named in the table. Float32. "backward" is the gradient for parameters and input of a sum over the outputs,
forward included. FLOPs are XLA's own count of the optimised program; a recurrent net's is that of one step times the
number of steps, because the count takes the body of a loop once. Times are the best of several runs of the compiled
program: on a machine with other work they are an upper bound.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mmjax.config import EncoderConfig
from mmjax.models import (
    ENCODERS,
    FUSIONS,
    Conv1DConfig,
    CustomConfig,
    GRUConfig,
    HeadOutput,
    LastLayer,
    LeNetConfig,
    LowRankTensorConfig,
    MLPConfig,
    ResNet18Config,
    TransformerConfig,
    ViTConfig,
)
from mmjax.models.fusion.late import DecisionFusion

BATCH, ENCODER_BATCH, CLASSES = 64, 16, 10
VECTORS: dict[str, tuple[int, ...]] = {"image": (BATCH, 48), "audio": (BATCH, 192)}
TOKENS: dict[str, tuple[int, ...]] = {"image": (BATCH, 16, 64), "audio": (BATCH, 16, 64)}
ATTENTION = ("cross_attention", "bottleneck")
BOUND = 1.3

ENCODER_ROWS: tuple[tuple[str, EncoderConfig, tuple[int, ...]], ...] = (
    ("mlp", MLPConfig(), (28, 28, 1)),
    ("lenet", LeNetConfig(channels=6, layers=3), (28, 28, 1)),
    ("resnet18", ResNet18Config(), (32, 32, 3)),
    ("resnet18, group norm, remat", ResNet18Config(norm="group", remat=True), (32, 32, 3)),
    ("vit", ViTConfig(), (32, 32, 3)),
    ("gru", GRUConfig(), (24, 12)),
    ("conv1d", Conv1DConfig(), (8000,)),
    ("transformer", TransformerConfig(), (24, 12)),
    ("transformer, tokens", TransformerConfig(vocabulary=1000), (24,)),
)


@dataclass(frozen=True)
class Row:
    """One line of the table; FLOPs of the whole batch."""

    name: str
    given: str
    parameters: int
    forward_flops: float
    backward_flops: float
    forward_seconds: float
    backward_seconds: float

    def markdown(self) -> str:
        """One line of a Markdown table."""
        return (
            f"| {self.name} | {self.given} | {self.parameters:,} | {self.forward_flops / 1e6:,.2f} | "
            f"{self.backward_flops / 1e6:,.2f} | {rate(self.forward_seconds)} | {rate(self.backward_seconds)} |"
        )


def rate(seconds: float) -> str:
    """Runs a second, three digits."""
    return f"{float(f'{1 / seconds:.3g}'):,g}"


def fill(shapes: Any) -> Any:
    """Random arrays of these shapes; integers are token ids."""
    rng = np.random.default_rng(0)

    def one(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        if jnp.issubdtype(leaf.dtype, jnp.integer):
            return rng.integers(1, 100, leaf.shape).astype(leaf.dtype)
        return (0.1 * rng.normal(size=leaf.shape)).astype(leaf.dtype)

    return jax.tree.map(one, shapes)


def programs(module: nn.Module, given: Any) -> tuple[Any, Any, Any]:
    """Return (variables, forward, backward), the two as functions of (variables, input)."""
    variables = jax.eval_shape(partial(module.init, train=False), jax.random.key(0), given)

    def forward(variables: Any, given: Any) -> jax.Array:
        out = module.apply(variables, given, train=True, mutable=["batch_stats"])[0]
        return out.logits if isinstance(out, HeadOutput) else out

    def backward(variables: Any, given: Any) -> Any:
        floating = all(jnp.issubdtype(x.dtype, jnp.floating) for x in jax.tree.leaves(given))
        return jax.grad(lambda v, x: jnp.sum(forward(v, x)), argnums=(0, 1) if floating else (0,))(variables, given)

    return variables, forward, backward


def compiled(function: Callable[..., Any], *args: Any) -> Any:
    return jax.jit(function).lower(*args).compile()


def best_seconds(program: Callable[..., Any], *args: Any, budget: float) -> float:
    """Least time of a run, of those that fit in `budget` seconds; at least one."""
    jax.block_until_ready(program(*args))
    best, end = float("inf"), time.perf_counter() + budget
    while time.perf_counter() < end or best == float("inf"):
        start = time.perf_counter()
        jax.block_until_ready(program(*args))
        best = min(best, time.perf_counter() - start)
    return best


def measure(name: str, said: str, module: nn.Module, given: Any, budget: float, steps: int = 1) -> Row:
    """Measure a module; steps: length of its loop, whose body XLA counts once."""
    shapes, *functions = programs(module, given)
    whole = [compiled(f, shapes, given) for f in functions]
    flops = [steps * float(program.cost_analysis()["flops"]) for program in whole]
    variables, inputs = fill(shapes), fill(given)
    seconds = [best_seconds(program, variables, inputs, budget=budget) for program in whole]
    parameters = sum(p.size for p in jax.tree.leaves(shapes.get("params", {})))
    return Row(name, said, parameters, *flops, *seconds)


def decisions() -> dict[str, HeadOutput]:
    """Shapes of what two uni-modal heads say."""
    made = {}
    for m, (batch, width) in VECTORS.items():
        shapes = [(batch, CLASSES), (batch, width), (width, CLASSES), (CLASSES,)]
        logits, *last = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)
        made[m] = HeadOutput(logits, LastLayer(*last))  # type: ignore[arg-type]
    return made


def of(shapes: dict[str, tuple[int, ...]]) -> dict[str, jax.ShapeDtypeStruct]:
    return {m: jax.ShapeDtypeStruct(shape, jnp.float32) for m, shape in shapes.items()}


def fusion_rows(budget: float) -> Iterator[Row]:
    for kind, config in FUSIONS.items():
        module = config().build(CLASSES, dtype=jnp.float32)  # type: ignore[call-arg]
        if isinstance(module, DecisionFusion):
            yield measure(kind, "two decisions", module, decisions(), budget)
            continue
        yield measure(kind, "48 + 192", module, of(VECTORS), budget)
        if kind in ATTENTION:
            yield measure(kind, "2 x 16 tokens of 64", module, of(TOKENS), budget)


def encoder_rows(budget: float) -> Iterator[Row]:
    measured = {config.name for _, config, _ in ENCODER_ROWS} | {"identity", CustomConfig().name}
    assert measured == set(ENCODERS), "an encoder is missing from the table"
    for name, config, shape in ENCODER_ROWS:
        dtype = jnp.int32 if "tokens" in name else jnp.float32
        given = jax.ShapeDtypeStruct((ENCODER_BATCH, *shape), dtype)
        steps = shape[0] if isinstance(config, GRUConfig) else 1
        yield measure(name, " x ".join(map(str, shape)), config.build(dtype=jnp.float32), given, budget, steps)


def low_rank_formula(config: LowRankTensorConfig) -> float:
    """FLOPs of the low-rank formula: factors, their products, the sum over ranks, the head's linear layer."""
    terms = BATCH * config.rank * config.width
    factors = sum(2 * terms * (shape[-1] + 1) for shape in VECTORS.values())
    return factors + (len(VECTORS) - 1) * terms + 2 * terms + 2 * BATCH * config.width * CLASSES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1.0, help="time spent on each program")
    budget = parser.parse_args().seconds
    for title, rows in (("fusion head", fusion_rows(budget)), ("encoder", encoder_rows(budget))):
        print(f"| {title} | input | parameters | forward, MFLOP | backward, MFLOP | forwards/s | backwards/s |")
        print("|---|---|---:|---:|---:|---:|---:|")
        for row in rows:
            print(row.markdown(), flush=True)
            if row.name == "low_rank_tensor":
                ratio = row.forward_flops / low_rank_formula(LowRankTensorConfig())
        print()
    verdict = "met" if ratio <= BOUND else "MISSED"
    print(f"Low-rank tensor fusion: {ratio:.3f} times the FLOPs of its formula (bound {BOUND}: {verdict}).")


if __name__ == "__main__":
    main()
