"""What the training loop costs: the rate of `mmjax.fit`'s steps against that of the bare jitted step.

    python benchmarks/loop_rate.py [--rounds 7] [--seconds 2]

The bare step runs on one batch that is already on the device. The loop gathers and transfers a batch a step, fetches
and writes the losses every 10 steps, and, where it says so, measures the gradients' norms and cosines every 50. They
are timed in turns in one process, on one device; a loop's ratio is to the bare step right before and right after it.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

import mmjax
from mmjax.config import Config, ModelConfig, TrainConfig
from mmjax.data import AvDigits, Npz, Splits, batch_indices, from_arrays, gather
from mmjax.models import ConcatConfig, LeNetConfig, MLPConfig
from mmjax.optim import MimoConfig
from mmjax.train.experiment import build_experiment
from mmjax.train.optimizer import AdamConfig

TARGET = 0.90
SLOW_STEP = 0.005  # seconds; the target is for steps at least as long as this


@dataclass(frozen=True)
class Case:
    """A configuration and its data; train's lengths are set by the measurement."""

    name: str
    config: Config
    splits: Splits


def lenet_case() -> Case:
    """AV-MNIST in shape and model: uint8 images, float32 spectrograms, c = 6, batch norm, batch 64."""
    rng = np.random.default_rng(0)
    n = 1024
    image = rng.integers(0, 256, (n, 28, 28, 1), dtype=np.uint8)
    audio = rng.normal(size=(n, 112, 112, 1)).astype(np.float32)
    model = ModelConfig(
        encoders={"image": LeNetConfig(channels=6, layers=3), "audio": LeNetConfig(channels=6, layers=5)},
        fusion=ConcatConfig(hidden=(100,)),
        head_hidden=(100,),
    )
    splits = from_arrays({"image": image, "audio": audio}, np.arange(n) % 10)
    data = Npz(path="in memory")  # only named: the splits are given
    return Case("AV-MNIST LeNet, batch 64", _config(data, model, batch_size=64), splits)


def mlp_case(width: int, batch_size: int) -> Case:
    """The embedded set with multi-layer perceptrons."""
    model = ModelConfig(encoders={m: MLPConfig(width=width) for m in ("image", "audio")})
    config = _config(AvDigits(), model, batch_size=batch_size)
    return Case(f"avdigits MLP of width {width}, batch {batch_size}", config, config.data.load())


def _config(data: mmjax.DataConfig, model: ModelConfig, batch_size: int) -> Config:
    train = TrainConfig(batch_size=batch_size, log_every=10, devices=1)
    return Config(data=data, model=model, method=MimoConfig(), optimizer=AdamConfig(learning_rate=1e-4), train=train)


def bare(case: Case) -> Callable[[int], float]:
    """Compile the step as the loop does; return steps -> steps per second, on a fixed device batch."""
    experiment = build_experiment(case.config, case.splits)
    train, data, route = case.config.train, case.splits.train, experiment.route
    batch = jax.device_put(gather(data, batch_indices(train.seed, 0, len(data), train.batch_size)), route.sharded)
    state = route.place_state(experiment.initial_state())
    step = route.compile(experiment.step, state, batch, donate=True)

    def rate(steps: int) -> float:
        state = route.place_state(experiment.initial_state())  # afresh: one batch over and over is soon learned
        state, _ = jax.block_until_ready(step(state, batch))
        started = time.perf_counter()
        for _ in range(steps):
            state, _ = step(state, batch)
        jax.block_until_ready(state)
        return steps / (time.perf_counter() - started)

    return rate


def loop(case: Case, monitor_every: int) -> Callable[[int], float]:
    """Return steps -> steps per second, as `fit` reports them of a run into a work folder."""

    def rate(steps: int) -> float:
        train = case.config.train
        # one evaluation and one checkpoint, at the end: they are no part of the rate
        train = replace(
            train,
            epochs=steps * train.batch_size / len(case.splits.train),
            monitor_every=monitor_every,
            evaluate_every=10 * steps,
            checkpoint_every=10 * steps,
        )
        with tempfile.TemporaryDirectory() as folder:
            run = mmjax.fit(replace(case.config, train=train), folder, splits=case.splits)
        return run.metrics["steps_per_second"]

    return rate


def measure(case: Case, rounds: int, seconds: float) -> tuple[list[float], dict[str, list[tuple[float, float]]]]:
    """Return the bare step's rates, and (rate, ratio to the bare steps around it) of every loop, one a round."""
    step, loops = bare(case), {"plain": loop(case, 0), "monitor_every=50": loop(case, 50)}
    steps = max(50, round(step(20) * seconds / 50) * 50)
    bares = [step(steps)]
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in loops}
    for _ in range(rounds):
        for name, run in loops.items():
            rate = run(steps)
            bares.append(step(steps))
            found[name].append((rate, rate / statistics.mean(bares[-2:])))
    return bares, found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="measurements of each loop")
    parser.add_argument("--seconds", type=float, default=2.0, help="seconds a measurement, about")
    arguments = parser.parse_args()

    table = Table(title=f"Training loop against the bare step, {arguments.rounds} rounds, jax {jax.__version__}")
    table.add_column("case")
    table.add_column("loop")
    for column in ("bare, ms a step", "bare, steps/s", "loop, steps/s", "ratio: median", "min-max", f"{TARGET:.0%}"):
        table.add_column(column, justify="right")
    with tempfile.TemporaryDirectory() as cache:  # every run of the loop compiles the same programs
        jax.config.update("jax_compilation_cache_dir", cache)
        for case in (lenet_case(), mlp_case(512, 256), mlp_case(128, 64)):
            bares, loops = measure(case, arguments.rounds, arguments.seconds)
            rate = statistics.median(bares)
            for name, found in loops.items():
                ratios = [ratio for _, ratio in found]
                middle = statistics.median(ratios)
                table.add_row(
                    case.name,
                    name,
                    f"{1000 / rate:.2f}",
                    f"{rate:.1f}",
                    f"{statistics.median(found_rate for found_rate, _ in found):.1f}",
                    f"{middle:.3f}",
                    f"{min(ratios):.3f}-{max(ratios):.3f}",
                    "short step" if 1 / rate < SLOW_STEP else "met" if middle >= TARGET else "MISSED",
                )
            table.add_section()
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
