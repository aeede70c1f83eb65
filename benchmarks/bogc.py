"""Does calibrating gradients help? BOGC by every estimator, level and conservatism against uniform and joint.

    python benchmarks/bogc.py CONFIG --out FOLDER [--seeds 5] [--tuning-seeds 2] [--samples 16] [--only ROW ...]
                              [--optimizers sgd adam] [--sequential] [--report] [--option VALUE ...]

Every row has the same budget for each optimizer: four learning rates (SGD) or five (Adam) times three values of its own
knob (τ for laplace, β for ema, parts for microbatch); for joint and uniform, which have none, three times as many learning
rates, which reach a little beyond the range at both ends (`finer`). The setting with the best mean validation accuracy of
the fusion over the tuning seeds (the first of the seeds) is kept, and only its test figures are shown: the test accuracy at
the epoch that was best on validation. A star marks a rate or a knob at the end of its grid. Runs that are in FOLDER already
are not taken again. --samples: draws a step of Laplace moments; a number of draws needs its own FOLDER.

The seeds and learning rates of one setting run as one program, one run after the other (batched, the Laplace factors of all
runs would fall out of the cache), with the training set on the device. --sequential takes them one by one with `mmjax.fit`
instead. --report only prints the tables. Other options are those of `mmjax train`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from balance import take, text
from jax import Array
from rich.console import Console
from rich.table import Table

import mmjax
from mmjax.config import Config, MethodConfig, OptimizerConfig
from mmjax.data import Batch, Dataset, Splits, batch_indices, gather
from mmjax.losses import example_losses
from mmjax.optim import BogcConfig, JointConfig, UniformConfig
from mmjax.overrides import override
from mmjax.train.experiment import build_classifier
from mmjax.train.nonfinite import unsoundness
from mmjax.train.optimizer import AdamConfig, SGDConfig
from mmjax.train.step import prepare, train_step

Record = dict[str, Any]

OPTIMIZERS: dict[str, tuple[OptimizerConfig, tuple[float, ...]]] = {
    "sgd": (SGDConfig(learning_rate=1.0, momentum=0.9), (0.01, 0.03, 0.1, 0.3)),
    "adam": (AdamConfig(learning_rate=1.0), (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)),
}
KNOBS: dict[str, tuple[str, tuple[Any, ...]]] = {
    "laplace": ("prior_precision", (0.001, 0.01, 0.1)),  # times the number of training examples
    "ema": ("decay", (0.5, 0.9, 0.99)),
    "microbatch": ("parts", (2, 4, 8)),
}


def rows(samples: int) -> dict[str, MethodConfig]:
    """Return every row of the comparison: controls, BOGC as it stands, and remedies. samples: of laplace."""
    made: dict[str, MethodConfig] = {"joint": JointConfig(), "uniform": UniformConfig()}
    for moments, level in (
        ("laplace", "features"),
        ("ema", "features"),
        ("ema", "parameters"),
        ("microbatch", "features"),
        ("microbatch", "parameters"),
    ):
        for conservatism in (True, False):
            method = BogcConfig(moments=moments, level=level, conservatism=conservatism)  # type: ignore[arg-type]
            if moments == "laplace":
                method = dataclasses.replace(method, samples=samples)
            made[f"{moments} {level}{', bold' if conservatism else ''}"] = method
    plain = BogcConfig(conservatism=False, samples=samples)
    made["laplace features, pooled"] = dataclasses.replace(plain, per_example=False)
    made["laplace features, relative"] = dataclasses.replace(plain, relative=True)
    made["laplace features, pooled, relative"] = dataclasses.replace(plain, per_example=False, relative=True)
    made["laplace features, T = 4"] = dataclasses.replace(plain, temperature=4.0)
    made["laplace features, posterior mean"] = dataclasses.replace(plain, mean="posterior")
    made["ema parameters, relative"] = BogcConfig(moments="ema", level="parameters", conservatism=False, relative=True)
    return made


class Setting(NamedTuple):
    """One program: a row's method with its knob set, an optimizer, and the learning rates to try."""

    row: str
    optimizer: str
    knob: float
    method: MethodConfig
    rates: tuple[float, ...]


def finer(optimizer: str) -> tuple[float, ...]:
    """Return three times as many learning rates, for the rows without a knob."""
    return tuple(rate * 3 ** (i / 3) for rate in OPTIMIZERS[optimizer][1] for i in (-1, 0, 1))


def settings(row: str, method: MethodConfig, optimizer: str, num_examples: int) -> Iterator[Setting]:
    """Yield the programs of a row, of the same number of settings in all."""
    if not isinstance(method, BogcConfig):
        yield Setting(row, optimizer, 0.0, method, finer(optimizer))
        return
    rates = OPTIMIZERS[optimizer][1]
    name, values = KNOBS[method.moments]
    for value in values:
        set_to = value * num_examples if name == "prior_precision" else value
        yield Setting(row, optimizer, value, dataclasses.replace(method, **{name: set_to}), rates)


# -- all rates and seeds at once -----------------------------------------------------------------------------------------


class _RateState(NamedTuple):
    rate: Array


def scale_by_own_rate() -> optax.GradientTransformation:
    """Scale updates by the learning rate in the state, so that runs of different rates are one program."""

    def update(updates: Any, state: _RateState, params: Any = None) -> tuple[Any, _RateState]:
        del params
        return jax.tree.map(lambda u: state.rate * u, updates), state

    return optax.GradientTransformation(lambda params: _RateState(jnp.ones(())), update)


@dataclass(frozen=True, kw_only=True)
class RatedConfig(OptimizerConfig):
    """Another optimizer at rate 1, and the learning rate in the state."""

    name: str = "rated"
    inner: OptimizerConfig

    def build(self, total_steps: int) -> optax.GradientTransformation:
        """Make the optimizer, then the rate."""
        return optax.chain(self.inner.build(total_steps), scale_by_own_rate())


def take_together(config: Config, splits: Splits, rates: tuple[float, ...], seeds: range) -> list[Record]:
    """Train every (rate, seed) in one program; return their records."""
    experiment = build_classifier(config, splits)
    training = experiment.training
    inference, size = training.inference, config.train.batch_size
    train = gather(splits.train, np.arange(len(splits.train)))
    per_epoch, epochs = math.ceil(len(splits.train) / size), round(config.train.epochs)
    runs = [(rate, seed) for rate in rates for seed in seeds]

    def start(rate: float, seed: int) -> Any:
        own = dataclasses.replace(config, train=dataclasses.replace(config.train, seed=seed))
        made = dataclasses.replace(experiment, config=own).initial_state()
        watched, (optimizer, _) = made.opt_state
        return made.replace(opt_state=(watched, (optimizer, _RateState(jnp.float32(rate)))))

    state = jax.tree.map(lambda *x: jnp.stack(x), *(start(*run) for run in runs))
    at_first = jax.vmap(unsoundness)(state.variables)

    @partial(jax.jit, donate_argnums=0)
    def epoch(state: Any, indices: Array, data: Batch) -> Any:
        def step(state: Any, chosen: Array) -> tuple[Any, None]:
            batch = jax.tree.map(lambda x: x[chosen], data)
            return train_step(training, state, batch)[0], None

        return jax.lax.map(lambda run: jax.lax.scan(step, *run)[0], (state, indices))

    @jax.jit
    def evaluate(state: Any, data: Batch) -> Any:
        def one(state: Any) -> Any:
            outputs: Any = inference.model.apply(state.variables, prepare(inference, data.inputs))
            told = {}
            for name, logits in outputs.by_objective.items():
                told[f"{name}/accuracy"] = jnp.mean(jnp.argmax(logits, -1) == data.label)
                told[f"{name}/nll"] = jnp.mean(example_losses(inference.task, logits, data.label))
            return told

        return jax.vmap(one)(state)

    refresh, whole = experiment.refresh, [gather(splits.train, part) for part in _parts(splits.train)]

    if refresh is not None and refresh.every % per_epoch:
        raise ValueError("refresh_epochs must be whole: passes are taken between epochs here")

    @jax.jit
    def renewed(state: Any, whole: list[Batch]) -> Any:
        return jax.lax.map(lambda run: renewed_run(run, whole), state)

    def renewed_run(state: Any, whole: list[Batch]) -> Any:
        assert refresh is not None
        carry = refresh.start(state.opt_state[0].inner)
        for part in whole:
            outputs = inference.model.apply(state.variables, prepare(inference, part.inputs))
            carry = refresh.add(carry, outputs, part.label, part.weight)
        watched = state.opt_state[0]._replace(inner=refresh.finish(carry, state.opt_state[0].inner))
        return state.replace(opt_state=(watched, *state.opt_state[1:]))

    history: dict[str, list[Any]] = {"validation": [], "test": []}
    for e in range(epochs):
        if refresh is not None and e * per_epoch % refresh.every == 0:
            state = renewed(state, whole)
        steps = range(e * per_epoch, (e + 1) * per_epoch)
        streams = {seed: [batch_indices(seed, t, len(splits.train), size) for t in steps] for seed in seeds}
        indices = np.stack([streams[seed] for _, seed in runs])
        state = epoch(state, indices, train)
        for split, data in (("validation", splits.validation), ("test", splits.test)):
            history[split].append(jax.device_get(evaluate(state, gather(data, np.arange(len(data))))))
    worse = jax.tree.map(lambda now, then: now > then, jax.vmap(unsoundness)(state.variables), at_first)
    broken = jax.vmap(lambda run: jnp.any(jnp.stack(jax.tree.leaves(run))))(worse)
    told, halted = jax.device_get((state.opt_state[0].diagnostics, broken | jnp.any(state.first_bad >= 0, axis=1)))
    records = []
    for i, (rate, seed) in enumerate(runs):
        scores = [at["fusion/accuracy"][i] for at in history["validation"]]
        best = int(np.argmax(scores))  # the first among equals, as the trainer chooses
        at_best = {split: {k: float(v[i]) for k, v in history[split][best].items()} for split in history}
        at_best["validation"]["score/fusion"] = at_best["validation"]["fusion/accuracy"]
        diagnostics = {k: float(v[i]) for k, v in told.items()}
        # halted: where `mmjax.fit` would have stopped
        record = {"rate": rate, "seed": seed, "epoch": best + 1, "halted": bool(halted[i]), "told": diagnostics}
        records.append(record | at_best)
    return records


def _parts(data: Dataset, size: int = 512) -> list[np.ndarray]:
    return np.array_split(np.arange(len(data)), math.ceil(len(data) / size))


# -- tables ----------------------------------------------------------------------------------------------------------------


class Results:
    """What was run, by row and optimizer."""

    def __init__(self, log: Path):
        self._log = log
        self._done: dict[tuple[str, str, float, float, int], Record] = {}
        for line in log.read_text().splitlines() if log.exists() else []:
            self._keep(json.loads(line))

    def _keep(self, record: Record) -> None:
        key = (record["row"], record["optimizer"], record["knob"], round(record["rate"], 9), record["seed"])
        self._done[key] = record

    def has(self, setting: Setting, rate: float, seed: int) -> bool:
        """Return whether this run was taken."""
        return (setting.row, setting.optimizer, setting.knob, round(rate, 9), seed) in self._done

    def add(self, setting: Setting, records: list[Record]) -> None:
        """Keep records and write them down."""
        with self._log.open("a") as stream:
            for record in records:
                whole = {"row": setting.row, "optimizer": setting.optimizer, "knob": setting.knob} | record
                self._keep(whole)
                stream.write(json.dumps(whole) + "\n")

    def best(self, row: str, optimizer: str, seeds: int) -> tuple[float, float] | None:
        """Return (knob, rate) of the setting with the best mean validation score over these seeds; None if none has all."""
        scores = {
            setting: np.mean([found[seed]["validation"]["score/fusion"] for seed in range(seeds)])
            for setting, found in self._by_setting(row, optimizer).items()
            if all(seed in found and not found[seed].get("halted") for seed in range(seeds))
        }
        return max(scores, key=lambda setting: scores[setting]) if scores else None

    def chosen(self, row: str, optimizer: str, tuning: int, seeds: int) -> list[Record] | None:
        """Return the records, by seed, of the setting that is best over the tuning seeds; None where seeds are missing."""
        best = self.best(row, optimizer, tuning)
        found = {} if best is None else self._by_setting(row, optimizer)[best]
        return [found[seed] for seed in range(seeds)] if all(seed in found for seed in range(seeds)) else None

    def _by_setting(self, row: str, optimizer: str) -> dict[tuple[float, float], dict[int, Record]]:
        made: dict[tuple[float, float], dict[int, Record]] = {}
        for (r, o, knob, rate, seed), record in self._done.items():
            if (r, o) == (row, optimizer):
                made.setdefault((knob, rate), {})[seed] = record
        return made


def chosen_text(row: str, optimizer: str, rate: float, knob: float) -> tuple[str, str]:
    """Return rate and knob as text, with a star at the end of a grid."""
    method = rows(16)[row]

    def starred(value: float, grid: tuple[float, ...]) -> str:
        at_end = math.isclose(value, min(grid)) or math.isclose(value, max(grid))
        return f"{value:.3g}{'*' if at_end else ''}"

    if not isinstance(method, BogcConfig):
        return starred(rate, finer(optimizer)), ""
    return starred(rate, OPTIMIZERS[optimizer][1]), starred(knob, KNOBS[method.moments][1])


def report(
    results: Results, names: list[str], optimizers: list[str], modalities: tuple[str, ...], tuning: int, seeds: int
) -> None:
    """Print the tables."""
    console = Console(width=150)

    def column(records: list[Record], key: str) -> np.ndarray:
        return np.array([record["test"][key] for record in records])

    for optimizer in optimizers:
        found = {name: results.chosen(name, optimizer, tuning, seeds) for name in names}
        table = Table(
            title=f"{optimizer}: test accuracy, %, mean ± 95 % interval over {seeds} seeds; paired differences in points"
        )
        headings = (
            "",
            "rate",
            "knob",
            "fusion",
            "fusion NLL",
            *(f"{m} head" for m in modalities),
            "- uniform",
            "- joint",
        )
        for heading in headings:
            table.add_column(heading, justify="left" if not heading else "right")
        for name, records in found.items():
            if records is None:
                continue
            settings_text = chosen_text(name, optimizer, records[0]["rate"], records[0]["knob"])
            halted = [record["seed"] for record in records if record.get("halted")]
            if halted:
                table.add_row(name, *settings_text, f"not finite, seeds {halted}")
                continue
            accuracy = column(records, "fusion/accuracy")
            differences = []
            for control in ("uniform", "joint"):
                other = found.get(control)
                unknown = other is None or name == control or any(record.get("halted") for record in other)
                differences.append(
                    "" if unknown or other is None else text(accuracy - column(other, "fusion/accuracy"), digits=2)
                )
            table.add_row(
                name, *settings_text,
                text(accuracy, digits=2), text(column(records, "fusion/nll"), 1, 3),
                *(text(column(records, f"{m}/accuracy"), digits=1) for m in modalities), *differences,
            )  # fmt: skip
        console.print(table)


def main() -> None:
    """Train what is missing and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--tuning-seeds", type=int, default=2, help="how many of the seeds choose the setting")
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--only", nargs="+", choices=sorted(rows(16)), default=list(rows(16)))
    parser.add_argument("--optimizers", nargs="+", choices=sorted(OPTIMIZERS), default=list(OPTIMIZERS))
    parser.add_argument("--sequential", action="store_true")
    parser.add_argument("--report", action="store_true")
    options, rest = parser.parse_known_args()
    options.out.mkdir(parents=True, exist_ok=True)
    config = override(mmjax.load_config(options.config), rest)
    splits = config.data.load()
    results = Results(options.out / "runs.jsonl")
    tuning = min(options.tuning_seeds, options.seeds)

    def ensure(setting: Setting, rates: tuple[float, ...], seeds: range) -> None:
        missing = [(rate, s) for rate in rates for s in seeds if not results.has(setting, rate, s)]
        rates = tuple(rate for rate in rates if any(rate == lacking for lacking, _ in missing))
        if not missing:
            return
        inner = dataclasses.replace(OPTIMIZERS[setting.optimizer][0], schedule=config.optimizer.schedule)
        made = dataclasses.replace(
            config,
            method=setting.method,
            optimizer=inner if options.sequential else RatedConfig(inner=inner),
            train=dataclasses.replace(config.train, select="score", monitor_every=0, devices=1),
        )
        if options.sequential:
            for rate, seed in missing:
                try:
                    taken = take(made, splits, rate, seed, None) | {"halted": False}
                except mmjax.NonFiniteError:
                    taken = {"halted": True}
                results.add(setting, [{"rate": rate, "seed": seed} | taken])
        else:
            results.add(setting, take_together(made, splits, rates, seeds))

    for optimizer in options.optimizers if not options.report else ():
        for row in options.only:
            tried = list(settings(row, rows(options.samples)[row], optimizer, len(splits.train)))
            for setting in tried:
                ensure(setting, setting.rates, range(tuning))
            best = results.best(row, optimizer, tuning)
            if best is None:
                print(f"{optimizer}: {row}: no setting stays finite", flush=True)
                continue
            knob, rate = best
            ensure(next(s for s in tried if s.knob == knob), (rate,), range(tuning, options.seeds))
            print(f"{optimizer}: {row} done, knob {knob:g}, rate {rate:.3g}", flush=True)
    report(results, list(options.only), list(options.optimizers), splits.train.modalities, tuning, options.seeds)


if __name__ == "__main__":
    main()
