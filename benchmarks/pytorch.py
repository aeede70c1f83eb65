"""mmjax against PyTorch on CPU: the same model, weights, batches and optimizer, in steps per second.

    pip install "mmjax[bench]"
    python benchmarks/pytorch.py [--rounds 10] [--seconds 1] [--threads 2] [--xla-flags FLAGS] [--compile] [--check]

Two processes take turns, so that neither's threads disturb the other's; both are held to the same CPUs. Before
anything is timed, the same weights are put into both, and the losses of the first steps must agree. PyTorch is written
as its users would: one forward pass, one backward pass of the weighted sum with detached weights, fused Adam, and
channels last for convolutions. Further contestants: mmjax under other XLA flags (--xla-flags=FLAGS), torch.compile
(--compile; it needs a C++ compiler).
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import re
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, NamedTuple, Protocol

import numpy as np
from rich.console import Console
from rich.table import Table

MODALITIES = ("audio", "image")
METHODS = ("uniform", "mimo")
PENALTY, SMOOTHING, LEARNING_RATE = 2.0, 0.1, 1e-3
BATCH = 64
CHECKED_STEPS = 3
FLAGGED = "mmjax, XLA flags"
# Largest relative differences of the losses: at the same weights, and after steps of Adam, which blows rounding up
# wherever a gradient is near 0 (there it takes a whole step either way), behind batch norm above all.
FORWARD_TOLERANCE, TRAINED_TOLERANCE = 1e-5, {"avdigits MLP": 1e-5, "AV-MNIST LeNet": 1e-3}


class HostBatch(NamedTuple):
    """One batch in NumPy: inputs {modality: [B, ...]}, channels last; label int32 [B]."""

    inputs: dict[str, np.ndarray]
    label: np.ndarray


class Contestant(Protocol):
    """One framework's training step on one problem."""

    num_parameters: int

    def losses(self, steps: int) -> list[list[float]]:
        """Return the losses of the first steps: fusion, audio, image."""
        ...

    def rate(self, steps: int) -> float:
        """Return steps per second, from the first weights on, after a few untimed steps."""
        ...


# -- problems ----------------------------------------------------------------------------------------------------------


def mlp_batches() -> list[HostBatch]:
    """One epoch of the embedded set."""
    from mmjax.data import AvDigits, batch_indices, gather

    train = AvDigits().load().train
    found = [gather(train, batch_indices(0, step, len(train), BATCH)) for step in range(len(train) // BATCH)]
    return [HostBatch(batch.inputs, batch.label) for batch in found]


def lenet_batches() -> list[HostBatch]:
    """Noise in the shape of AV-MNIST."""
    rng = np.random.default_rng(0)
    shapes = {"audio": (112, 112, 1), "image": (28, 28, 1)}
    return [
        HostBatch(
            {m: rng.normal(size=(BATCH, *shape)).astype(np.float32) for m, shape in shapes.items()},
            rng.integers(0, 10, BATCH).astype(np.int32),
        )
        for _ in range(4)
    ]


PROBLEMS = {"avdigits MLP": mlp_batches, "AV-MNIST LeNet": lenet_batches}


# -- mmjax -------------------------------------------------------------------------------------------------------------


class Mmjax:
    """The library's own training step, jitted with donated state, on one device."""

    def __init__(self, problem: str, method: str, batches: list[HostBatch]):
        import jax
        import optax
        from problems import lenet_training

        from mmjax import ModelConfig, optim
        from mmjax.data import Batch, Task
        from mmjax.models import build_model
        from mmjax.train.state import create_state
        from mmjax.train.step import Inference, Training, train_step

        combiner = {
            "uniform": partial(optim.uniform, num_objectives=3),
            "mimo": partial(optim.mimo, PENALTY, SMOOTHING, num_objectives=3),
        }[method]()
        optimizer = optax.adam(LEARNING_RATE)
        if problem == "avdigits MLP":
            inference = Inference(build_model(ModelConfig(), MODALITIES, 10), Task("classification", 10))
            training = Training(inference, combiner, optimizer)
        else:
            training = lenet_training(combiner, optimizer)
        example = {m: x[:1] for m, x in batches[0].inputs.items()}
        state = create_state(training.inference.model, example, training.tx, 3, seed=0)
        self._jax = jax
        self._first = state
        self._batches = [jax.device_put(Batch(b.inputs, b.label, np.ones(BATCH, np.float32))) for b in batches]
        self._step = jax.jit(partial(train_step, training), donate_argnums=0)
        self.num_parameters = sum(p.size for p in jax.tree.leaves(state.params))

    def layers(self) -> list[dict[str, np.ndarray]]:
        """Return the first weights of every layer, in order: encoders, fusion, heads; modalities sorted."""
        return list(_layers(self._jax.tree.map(np.asarray, self._first.params)))

    def _begin(self) -> Any:
        return self._jax.tree.map(self._jax.numpy.copy, self._first)

    def losses(self, steps: int) -> list[list[float]]:
        """Return the losses of the first steps: fusion, audio, image."""
        state, found = self._begin(), []
        for batch in itertools.islice(itertools.cycle(self._batches), steps):
            state, metrics = self._step(state, batch)
            found.append(metrics.values.tolist())
        return found

    def rate(self, steps: int) -> float:
        """Return steps per second."""

        def run(state: Any, steps: int) -> Any:
            for batch in itertools.islice(itertools.cycle(self._batches), steps):
                state, _ = self._step(state, batch)
            return self._jax.block_until_ready(state)

        state = run(self._begin(), 3)
        started = time.perf_counter()
        run(state, steps)
        return steps / (time.perf_counter() - started)


def _layers(tree: dict[str, Any]) -> Iterator[dict[str, np.ndarray]]:
    def place(name: str) -> tuple[float, str]:
        number = re.search(r"_(\d+)$", name)
        return (float(number[1]), name) if number else (float("inf"), name)

    if not any(isinstance(child, dict) for child in tree.values()):
        yield tree
        return
    for name in sorted(tree, key=place):
        yield from _layers(tree[name])


# -- PyTorch -----------------------------------------------------------------------------------------------------------


class Torch:
    """The same in PyTorch. layers: the first weights, as mmjax has them."""

    def __init__(
        self,
        problem: str,
        method: str,
        batches: list[HostBatch],
        layers: list[dict[str, np.ndarray]],
        *,
        threads: int,
        compiled: bool,
    ):
        import torch

        torch.set_num_threads(threads)
        torch.set_flush_denormal(True)  # as XLA does; else tiny moments of Adam would slow PyTorch down
        convolutional = problem != "avdigits MLP"
        self._torch = torch
        self._mimo = method == "mimo"
        self._model = _lenet_model() if convolutional else _mlp_model()
        self._batches = []
        for inputs, label in batches:
            tensors = {m: torch.from_numpy(x) for m, x in inputs.items()}
            if convolutional:  # [B, H, W, 1] and [B, 1, H, W] channels last are the same memory
                tensors = {m: x.permute(0, 3, 1, 2) for m, x in tensors.items()}
            self._batches.append((tensors, torch.from_numpy(label).long()))
        if convolutional:
            self._model = self._model.to(memory_format=torch.channels_last)
        own = [module for module in self._model.modules() if list(module.parameters(recurse=False))]
        for module, layer in zip(own, layers, strict=True):
            _put(module, layer)
        self._first = {name: value.clone() for name, value in self._model.state_dict().items()}
        self._objective = torch.compile(self._losses) if compiled else self._losses
        self.num_parameters = sum(p.numel() for p in self._model.parameters())

    def _losses(self, inputs: dict[str, Any], label: Any) -> tuple[Any, Any]:
        cross_entropy = self._torch.nn.functional.cross_entropy
        model = self._model
        features = [model["encoders"][m](inputs[m]) for m in MODALITIES]
        fused = cross_entropy(model["fusion"](self._torch.cat(features, dim=1)), label)
        heads = [model["heads"][m](z) for m, z in zip(MODALITIES, features, strict=True)]
        alone = self._torch.stack([cross_entropy(logits, label) for logits in heads])
        if self._mimo:
            weights = PENALTY * self._torch.softmax(alone.detach() / SMOOTHING, dim=0)
            return fused + (weights * alone).sum(), self._torch.cat([fused[None], alone]).detach()
        return fused + alone.sum(), self._torch.cat([fused[None], alone]).detach()

    def _begin(self) -> Callable[[int], list[Any]]:
        """Go back to the first weights; return a function that takes so many steps and returns their losses."""
        self._model.load_state_dict(self._first)
        self._model.train()
        optimizer = self._torch.optim.Adam(self._model.parameters(), lr=LEARNING_RATE, fused=True)

        def run(steps: int) -> list[Any]:
            found = []
            for inputs, label in itertools.islice(itertools.cycle(self._batches), steps):
                optimizer.zero_grad(set_to_none=True)
                total, losses = self._objective(inputs, label)
                total.backward()
                optimizer.step()
                found.append(losses)
            return found

        return run

    def losses(self, steps: int) -> list[list[float]]:
        """Return the losses of the first steps: fusion, audio, image."""
        return [losses.tolist() for losses in self._begin()(steps)]

    def rate(self, steps: int) -> float:
        """Return steps per second."""
        run = self._begin()
        run(3)
        started = time.perf_counter()
        run(steps)
        return steps / (time.perf_counter() - started)


def _mlp_model() -> Any:
    from torch import nn

    def encoder(inputs: int) -> Any:
        return nn.Sequential(nn.Flatten(), nn.Linear(inputs, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU())

    return nn.ModuleDict(
        {
            "encoders": nn.ModuleDict({"audio": encoder(20 * 16), "image": encoder(8 * 8)}),
            "fusion": nn.Sequential(nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10)),
            "heads": nn.ModuleDict({m: nn.Linear(128, 10) for m in MODALITIES}),
        }
    )


def _lenet_model() -> Any:
    from torch import nn

    def encoder(layers: int) -> Any:
        modules: list[Any] = []
        for i in range(layers + 1):
            size, before, after = 5 if i == 0 else 3, 6 * 2 ** (i - 1) if i else 1, 6 * 2**i
            modules += [nn.Conv2d(before, after, size, padding=size // 2, bias=False), nn.BatchNorm2d(after)]
            modules += [nn.ReLU(inplace=True), nn.MaxPool2d(2)]
        return nn.Sequential(*modules, nn.Flatten())

    def head(inputs: int) -> Any:
        return nn.Sequential(nn.Linear(inputs, 100), nn.ReLU(inplace=True), nn.Linear(100, 10))

    return nn.ModuleDict(
        {
            "encoders": nn.ModuleDict({"audio": encoder(5), "image": encoder(3)}),
            "fusion": head(240),
            "heads": nn.ModuleDict({"audio": head(192), "image": head(48)}),
        }
    )


def _put(module: Any, layer: dict[str, np.ndarray]) -> None:
    import torch

    kernel = layer.get("kernel", layer.get("scale"))
    assert kernel is not None
    order = {1: (0,), 2: (1, 0), 4: (3, 2, 0, 1)}[kernel.ndim]
    with torch.no_grad():
        module.weight.copy_(torch.from_numpy(kernel.transpose(order).copy()))
        if "bias" in layer:
            module.bias.copy_(torch.from_numpy(layer["bias"].copy()))


# -- processes ---------------------------------------------------------------------------------------------------------


def serve(connection: Connection, cpus: set[int], environment: dict[str, str]) -> None:
    """Live in a process of its own: build what is asked for, answer calls of its methods, one at a time."""
    os.environ.update(environment)  # before either framework is imported, and with it the size of its thread pool
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cpus)
    contestant: Any = None
    while True:
        try:
            call, arguments, options = connection.recv()
        except EOFError:
            return
        try:
            if call == "build":
                contestant = options.pop("kind")(*arguments, **options)
                connection.send(contestant.num_parameters)
            else:
                connection.send(getattr(contestant, call)(*arguments))
        except Exception as error:
            connection.send(error)


class Worker:
    """The near end of such a process."""

    def __init__(self, threads: int, environment: dict[str, str]):
        context = multiprocessing.get_context("spawn")
        self._connection, far = context.Pipe()
        available = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0] * threads
        environment = {"OMP_NUM_THREADS": str(threads), **environment}
        target = partial(serve, cpus=set(available[:threads]), environment=environment)
        self._process = context.Process(target=target, args=(far,), daemon=True)
        self._process.start()
        far.close()

    def call(self, name: str, *arguments: Any, **options: Any) -> Any:
        """Call there and wait for the answer."""
        self._connection.send((name, arguments, options))
        answer = self._connection.recv()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self) -> None:
        """End the process."""
        self._connection.close()
        self._process.join()


# -- measurement -------------------------------------------------------------------------------------------------------


def check(workers: dict[str, Worker], problem: str) -> tuple[float, float]:
    """Return the largest relative difference of the losses to mmjax's: at the first step, and at those after it."""
    found = {label: np.array(worker.call("losses", CHECKED_STEPS)) for label, worker in workers.items()}
    apart = {label: np.abs(losses / found["mmjax"] - 1) for label, losses in found.items()}
    forward = float(max(a[0].max() for a in apart.values()))
    # Flags change the rounding of convolutions, and Adam behind batch norm makes of rounding what it likes.
    trained = float(max(a[1:].max() for label, a in apart.items() if label != FLAGGED))
    if forward > FORWARD_TOLERANCE or trained > TRAINED_TOLERANCE[problem]:
        raise RuntimeError(f"{problem}: the losses differ by {forward:.1e}, then {trained:.1e}: {found}")
    return forward, trained


def measure(workers: dict[str, Worker], rounds: int, seconds: float) -> dict[str, list[float]]:
    """Return steps per second of every contestant, one a round; the order turns with the rounds."""
    steps = {label: max(5, round(worker.call("rate", 10) * seconds)) for label, worker in workers.items()}
    labels = list(workers)
    rates: dict[str, list[float]] = {label: [] for label in labels}
    for turn in range(rounds):
        first = turn % len(labels)
        for label in labels[first:] + labels[:first]:
            rates[label].append(workers[label].call("rate", steps[label]))
    return rates


def main() -> None:
    """Check, measure, print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10, help="measurements of each contestant")
    parser.add_argument("--seconds", type=float, default=1.0, help="seconds a measurement, about")
    parser.add_argument("--threads", type=int, default=2, help="CPUs, and threads of each framework")
    parser.add_argument("--xla-flags", default="", help="a further contestant: mmjax with these XLA_FLAGS")
    parser.add_argument("--compile", action="store_true", help="a further contestant: torch.compile of the losses")
    parser.add_argument("--check", action="store_true", help="only compare parameter counts and first losses")
    options = parser.parse_args()

    jax_environment = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    workers = {"PyTorch": Worker(options.threads, {}), "mmjax": Worker(options.threads, jax_environment)}
    if options.xla_flags:
        workers[FLAGGED] = Worker(options.threads, jax_environment | {"XLA_FLAGS": options.xla_flags})
    if options.compile:
        workers["torch.compile"] = Worker(options.threads, {})
    table = Table(
        title=f"Training steps on {options.threads} CPU threads, batch {BATCH}, Adam, {options.rounds} rounds"
    )
    table.add_column("problem")
    table.add_column("parameters", justify="right")
    table.add_column("contestant")
    for column in ("steps/s: median", "min-max", "to PyTorch: median", "min-max"):
        table.add_column(column, justify="right")
    console = Console(width=140)  # prints as it goes, and the table at the end
    for (problem, make_batches), method in itertools.product(PROBLEMS.items(), METHODS):
        name, batches = f"{problem}, {method}", make_batches()
        sizes = {}
        for label in sorted(workers, key=lambda label: "mmjax" not in label):  # PyTorch takes mmjax's first weights
            if "mmjax" in label:
                sizes[label] = workers[label].call("build", problem, method, batches, kind=Mmjax)
                layers = workers["mmjax"].call("layers")
            else:
                how = {"threads": options.threads, "compiled": label == "torch.compile"}
                sizes[label] = workers[label].call("build", problem, method, batches, layers, kind=Torch, **how)
        if len(set(sizes.values())) > 1:
            raise RuntimeError(f"{name}: the numbers of parameters differ: {sizes}")
        forward, trained = check(workers, problem)
        console.print(
            f"{name}: {sizes['mmjax']:,} parameters; losses agree to {forward:.1e} at the first weights, "
            f"to {trained:.1e} over {CHECKED_STEPS} steps"
        )
        if options.check:
            continue
        rates = measure(workers, options.rounds, options.seconds)
        for label, found in rates.items():
            ratios = [rate / other for rate, other in zip(found, rates["PyTorch"], strict=True)]
            other = label != "PyTorch"
            table.add_row(
                name,
                f"{sizes[label]:,}",
                label,
                f"{statistics.median(found):.1f}",
                f"{min(found):.1f}-{max(found):.1f}",
                f"{statistics.median(ratios):.3f}" if other else "",
                f"{min(ratios):.3f}-{max(ratios):.3f}" if other else "",
            )
            console.print(
                f"  {label}: {statistics.median(found):.1f} steps/s, {statistics.median(ratios):.3f} of PyTorch's"
            )
        table.add_section()
    for worker in workers.values():
        worker.close()
    if not options.check:
        console.print(table)


if __name__ == "__main__":
    main()
