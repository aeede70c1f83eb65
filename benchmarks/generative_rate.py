"""The multi-prediction training step against the same step in PyTorch on CPU, in steps per second.

    pip install "mmjax[bench]"
    python benchmarks/generative_rate.py [--rounds 10] [--seconds 2] [--threads 2] [--hidden 200 1000]

Halves of MNIST (noise in their shape), batch 100, five rounds in both directions, sparsity, SGD with momentum and L2:
the step of configs/mnist_halves_mp.py. Two processes take turns, so that neither's threads disturb the other's; both
are held to the same CPUs. Before anything is timed, the losses of the first steps without random masks must agree.
PyTorch is written as its users would: what stays the same over the rounds is computed once, one backward pass, fused
SGD.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from typing import Any

import numpy as np
from pytorch import Worker, measure
from rich.console import Console
from rich.table import Table

HALVES, UNITS, BATCH = ("left", "right"), 392, 100
ROUNDS, KEEP_MAX, SPARSITY, TARGET = 5, 0.25, 0.1, 0.1
RATE, MOMENTUM, L2, STD = 0.01, 0.9, 1e-4, 0.01
CHECKED_STEPS, TOLERANCE = 3, 1e-4

HostBatches = list[dict[str, np.ndarray]]


def make_batches(count: int = 8) -> HostBatches:
    """Images of noise with a fifth of the pixels set, as ink has."""
    rng = np.random.default_rng(0)
    return [{m: (rng.random((BATCH, UNITS)) < 0.2).astype(np.float32) for m in HALVES} for _ in range(count)]


class Mmjax:
    """The library's own training step, jitted with donated state, on one device."""

    def __init__(self, hidden: int, keep_max: float, batches: HostBatches):
        import jax

        from mmjax import Config, Dataset, Splits, TrainConfig
        from mmjax.data import Batch, Planted, Task
        from mmjax.generative import MRBMConfig, MultiPredictionConfig
        from mmjax.train.experiment import build_experiment
        from mmjax.train.optimizer import SGDConfig

        label = np.zeros(BATCH, np.int32)
        data = Dataset(batches[0], label, Task("classification", 10))
        config = Config(
            data=Planted(),  # a stand-in: the splits are given
            model=MRBMConfig(hidden=hidden, init_std=STD),
            method=MultiPredictionConfig(n_steps=ROUNDS, keep_max=keep_max, sparsity=SPARSITY, sparsity_target=TARGET),
            optimizer=SGDConfig(learning_rate=RATE, momentum=MOMENTUM, weight_decay=L2),
            train=TrainConfig(batch_size=BATCH, devices=1),
        )
        experiment = build_experiment(config, Splits(data, data, data))
        self._jax = jax
        self._first = experiment.initial_state()
        weight = np.ones(BATCH, np.float32)
        self._batches = [jax.device_put(Batch(b, label, weight)) for b in batches]
        self._step = jax.jit(experiment.step, donate_argnums=0)
        self.num_parameters = sum(p.size for p in jax.tree.leaves(self._first.params))

    def weights(self) -> dict[str, np.ndarray]:
        """Return the first weights of each half; biases start at 0."""
        return {m: np.asarray(w) for m, w in self._first.params["core"].weights.items()}

    def _begin(self) -> Any:
        return self._jax.tree.map(self._jax.numpy.copy, self._first)

    def losses(self, steps: int) -> list[list[float]]:
        """Return the losses of the first steps, by direction."""
        state, found = self._begin(), []
        for batch in itertools.islice(itertools.cycle(self._batches), steps):
            state, told = self._step(state, batch)
            found.append(told.values.tolist())
        return found

    def rate(self, steps: int) -> float:
        """Return steps per second."""
        state = self._begin()
        batches = itertools.cycle(self._batches)
        for _ in range(2):
            state, _ = self._step(state, next(batches))
        self._jax.block_until_ready(state)
        started = time.perf_counter()
        for _ in range(steps):
            state, _ = self._step(state, next(batches))
        self._jax.block_until_ready(state)
        return steps / (time.perf_counter() - started)


class Torch:
    """The same in PyTorch. weights: the first ones, as mmjax has them."""

    def __init__(
        self, hidden: int, keep_max: float, batches: HostBatches, weights: dict[str, np.ndarray], *, threads: int
    ):
        import torch

        torch.set_num_threads(threads)
        torch.set_flush_denormal(True)  # as XLA does
        self._torch, self._keep_max = torch, keep_max
        self._first = {m: torch.from_numpy(w.copy()) for m, w in weights.items()}
        self._hidden = hidden
        self._batches = [{m: torch.from_numpy(x) for m, x in batch.items()} for batch in batches]
        self.num_parameters = sum(w.size for w in weights.values()) + 2 * UNITS + hidden

    def _begin(self) -> tuple[dict[str, Any], dict[str, Any], Any, Any]:
        torch = self._torch
        w = {m: value.clone().requires_grad_() for m, value in self._first.items()}
        b = {m: torch.zeros(UNITS, requires_grad=True) for m in HALVES}
        c = torch.zeros(self._hidden, requires_grad=True)
        groups = [{"params": list(w.values()), "weight_decay": L2}, {"params": [*b.values(), c], "weight_decay": 0.0}]
        return w, b, c, torch.optim.SGD(groups, lr=RATE, momentum=MOMENTUM, fused=True)

    def _loss(self, w: dict[str, Any], b: dict[str, Any], c: Any, x: dict[str, Any]) -> tuple[Any, list[Any]]:
        torch, functional = self._torch, self._torch.nn.functional
        drive = {m: x[m] @ w[m] for m in HALVES}
        losses = []
        for given, other in (HALVES, HALVES[::-1]):
            known = drive[given] + c
            if self._keep_max:
                mask = torch.rand(BATCH, UNITS) < self._keep_max * torch.rand(())
                seen = UNITS + mask.sum(1, keepdim=True)
                h = torch.sigmoid(c + (2 * UNITS / seen) * (drive[given] + (mask * x[other]) @ w[other]))
            else:
                mask = None
                h = torch.sigmoid(c + 2 * drive[given])
            for _ in range(ROUNDS):
                y = torch.sigmoid(torch.addmm(b[other], h, w[other].T))
                y = y if mask is None else torch.where(mask, x[other], y)
                h = torch.sigmoid(torch.addmm(known, y, w[other]))
            logits = torch.addmm(b[other], h, w[other].T)
            loss = functional.binary_cross_entropy_with_logits(logits, x[other], reduction="none")
            losses.append((loss if mask is None else loss.masked_fill(mask, 0.0)).sum() / BATCH)
        both = drive["left"] + drive["right"] + c
        log_on = torch.logsumexp(functional.logsigmoid(both), 0) - np.log(BATCH)
        log_off = torch.logsumexp(functional.logsigmoid(-both), 0) - np.log(BATCH)
        divergence = TARGET * (np.log(TARGET) - log_on) + (1 - TARGET) * (np.log(1 - TARGET) - log_off)
        return losses[0] + losses[1] + SPARSITY * divergence.sum(), losses

    def _run(self, steps: int, told: list[list[float]] | None, state: tuple[Any, ...]) -> None:
        w, b, c, optimizer = state
        for x in itertools.islice(itertools.cycle(self._batches), steps):
            optimizer.zero_grad(set_to_none=True)
            total, losses = self._loss(w, b, c, x)
            total.backward()
            optimizer.step()
            if told is not None:
                told.append([float(loss.detach()) for loss in losses])

    def losses(self, steps: int) -> list[list[float]]:
        """Return the losses of the first steps, by direction."""
        told: list[list[float]] = []
        self._run(steps, told, self._begin())
        return told

    def rate(self, steps: int) -> float:
        """Return steps per second."""
        state = self._begin()
        self._run(2, None, state)
        started = time.perf_counter()
        self._run(steps, None, state)
        return steps / (time.perf_counter() - started)


def main() -> None:
    """Check, measure, print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10, help="measurements of each contestant")
    parser.add_argument("--seconds", type=float, default=2.0, help="seconds a measurement, about")
    parser.add_argument("--threads", type=int, default=2, help="CPUs, and threads of each framework")
    parser.add_argument("--hidden", type=int, nargs="+", default=(200, 1000), help="hidden units")
    options = parser.parse_args()

    workers = {
        "PyTorch": Worker(options.threads, {}),
        "mmjax": Worker(options.threads, {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}),
    }
    table = Table(
        title=f"Multi-prediction steps, {options.threads} CPU threads, batch {BATCH}, {options.rounds} rounds"
    )
    for column in ("hidden", "parameters", "contestant", "steps/s: median", "min-max", "to PyTorch: median", "min-max"):
        table.add_column(column, justify="left" if column == "contestant" else "right")
    console = Console(width=120)
    batches = make_batches()
    for hidden in options.hidden:
        for keep_max in (0.0, KEEP_MAX):  # without masks to compare the losses, then as it is trained
            size = workers["mmjax"].call("build", hidden, keep_max, batches, kind=Mmjax)
            weights = workers["mmjax"].call("weights")
            other = workers["PyTorch"].call(
                "build", hidden, keep_max, batches, weights, kind=Torch, threads=options.threads
            )
            if size != other:
                raise RuntimeError(f"the numbers of parameters differ: {size}, {other}")
            if keep_max == 0.0:
                found = {label: np.array(worker.call("losses", CHECKED_STEPS)) for label, worker in workers.items()}
                apart = float(np.abs(found["mmjax"] / found["PyTorch"] - 1).max())
                if apart > TOLERANCE:
                    raise RuntimeError(f"hidden {hidden}: the losses differ by {apart:.1e}: {found}")
                console.print(f"hidden {hidden}: losses agree to {apart:.1e} over {CHECKED_STEPS} steps")
        rates = measure(workers, options.rounds, options.seconds)
        for label, rate in rates.items():
            ratios = [a / b for a, b in zip(rate, rates["PyTorch"], strict=True)]
            cells = [f"{statistics.median(ratios):.3f}", f"{min(ratios):.3f}-{max(ratios):.3f}"]
            table.add_row(
                str(hidden), f"{size:,}", label, f"{statistics.median(rate):.1f}", f"{min(rate):.1f}-{max(rate):.1f}",
                *(cells if label == "mmjax" else ("", "")),
            )  # fmt: skip
    for worker in workers.values():
        worker.close()
    console.print(table)


if __name__ == "__main__":
    main()
