"""Do the modalities learn in balance? Each alone, late fusion, joint, uniform, STCH and MIMO on one data set.

    python benchmarks/balance.py CONFIG --out FOLDER [--seeds 5] [--tuning-seeds 5] [--rates A B ...] [--option VALUE ...]

Every row has the same budget: the same learning rates, the one with the best mean validation accuracy of the fusion over
the tuning seeds (the first of the seeds) is kept, and only its test figures are shown; a star says that it is the grid's
smallest or largest. Each modality alone trains twice as long, so that nobody can say it was stopped early, and once more
as long as the others; "best on validation" ends every run. Runs that are in FOLDER already are not taken again; it
belongs to one configuration. Other options are those of `mmjax train`: those of the method go to that method's row (the
others have their defaults), and seed, learning rate, what "best" means, devices and the monitoring are this script's own.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy import stats

import mmjax
from mmjax.config import Config
from mmjax.data import Splits, select
from mmjax.evaluation.metrics import late_fusion, task_metrics
from mmjax.models import ConcatConfig
from mmjax.optim import JointConfig, MimoConfig, StchConfig, UniformConfig
from mmjax.overrides import override
from mmjax.train.journal import open_workdir
from mmjax.train.observer import Observer

METHODS = {"joint": JointConfig(), "uniform": UniformConfig(), "stch": StchConfig(), "mimo": MimoConfig()}

Record = dict[str, Any]


class _Validation(Observer):
    """Keeps the validation rows."""

    def __init__(self) -> None:
        self.rows: list[Mapping[str, Any]] = []

    def row(self, row: Mapping[str, Any]) -> None:
        """Keep `row` if it is of the validation split."""
        if row["kind"] == "validation":
            self.rows.append(row)


def alone(config: Config, modality: str, times: float) -> Config:
    """Return the same experiment with one modality, `times` as long: its encoder, one linear layer, one loss."""
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, modalities=(modality,)),
        model=dataclasses.replace(
            config.model,
            encoders={m: e for m, e in config.model.encoders.items() if m == modality},
            fusion=ConcatConfig(hidden=config.model.head_hidden),
        ),
        method=JointConfig(),
        train=dataclasses.replace(config.train, epochs=times * config.train.epochs),
    )


def take(config: Config, splits: Splits, rate: float, seed: int, logits_file: Path | None) -> Record:
    """Train one run; return its test metrics and the validation metrics of the model chosen."""
    config = dataclasses.replace(
        config,
        optimizer=dataclasses.replace(config.optimizer, learning_rate=rate),
        train=dataclasses.replace(config.train, seed=seed, select="score", monitor_every=0, devices=1),
    )
    watch = _Validation()
    run = mmjax.fit(config, splits=select(splits, config.data.modalities), observer=watch)
    best = max(watch.rows, key=lambda row: row["score/fusion"])  # the first among equals, as the loop chooses
    if logits_file is not None:
        inputs = {m: splits.test.inputs[m][:] for m in run.modalities}
        np.save(logits_file, np.log(np.maximum(run.predict(inputs)["fusion"], 1e-300)))
    return {"test": run.metrics, "validation": {k: v for k, v in best.items() if isinstance(v, float)}}


def interval(values: np.ndarray) -> tuple[float, float]:
    """Return the mean and half the width of its 95 % interval (Student's t)."""
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean()), float(half)


def share(parts: np.ndarray, wholes: np.ndarray) -> str:
    """Return the ratio of two paired means, with Fieller's 95 % interval."""
    n, (a, b) = len(parts), (parts.mean(), wholes.mean())
    (va, c), (_, vb) = np.cov(parts, wholes) / n
    t2 = stats.t.ppf(0.975, n - 1) ** 2
    g = t2 * vb / b**2
    if g >= 1:  # the whole cannot be told from zero: every ratio is possible
        return f"{a / b:.0%} (no interval)"
    ratio = a / b
    half = np.sqrt(t2 * max(va - 2 * ratio * c + ratio**2 * vb - g * (va - c**2 / vb), 0.0)) / abs(b)
    low, high = sorted((ratio - g * c / vb + side * half) / (1 - g) for side in (-1, 1))
    return f"{ratio:.0%} ({low:.0%} to {high:.0%})"


def text(values: np.ndarray, scale: float = 100.0, digits: int = 1) -> str:
    """Return "mean ± half interval"."""
    mean, half = interval(values * scale)
    return f"{mean:.{digits}f} ± {half:.{digits}f}"


def main() -> None:
    """Train what is missing and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--tuning-seeds", type=int, default=5, help="how many of the seeds choose the learning rate")
    parser.add_argument("--rates", type=float, nargs="+", default=(1e-3, 3e-3, 1e-2), metavar="RATE")
    options, rest = parser.parse_known_args()
    console = Console(width=110)
    config = override(mmjax.load_config(options.config), rest)
    open_workdir(options.out, config)
    splits = config.data.load()
    modalities = splits.train.modalities
    rows = {f"{m} alone": alone(config, m, 2.0) for m in modalities}
    rows |= {f"{m} alone, same epochs": alone(config, m, 1.0) for m in modalities}
    methods = METHODS | ({config.method.name: config.method} if config.method.name in METHODS else {})
    rows |= {name: dataclasses.replace(config, method=method) for name, method in methods.items()}

    log = options.out / "runs.jsonl"
    done: dict[tuple[str, float, int], Record] = {}
    for line in log.read_text().splitlines() if log.exists() else []:
        record = json.loads(line)
        done[record["row"], record["rate"], record["seed"]] = record
    seeds, tuning = range(options.seeds), range(min(options.tuning_seeds, options.seeds))

    def ensure(name: str, rate: float, seed: int) -> None:
        if (name, rate, seed) in done:
            return
        file = options.out / f"{name}-{rate}-{seed}.npy" if name.endswith(" alone") else None
        record = {"row": name, "rate": rate, "seed": seed} | take(rows[name], splits, rate, seed, file)
        done[name, rate, seed] = record
        with log.open("a") as stream:
            stream.write(json.dumps(record) + "\n")

    def column(name: str, rate: float, key: str, split: str = "test", over: range = seeds) -> np.ndarray:
        return np.array([done[name, rate, seed][split][key] for seed in over])

    def choose(name: str) -> float:
        for rate in options.rates:
            for seed in tuning:
                ensure(name, rate, seed)
        rate = max(options.rates, key=lambda rate: column(name, rate, "score/fusion", "validation", tuning).mean())
        for seed in seeds:
            ensure(name, rate, seed)
        return rate

    def rate_text(name: str) -> str:
        edge = chosen[name] in (min(options.rates), max(options.rates))
        return f"{chosen[name]:g}{'*' if edge else ''}"

    chosen = {name: choose(name) for name in rows}
    table = Table(title=f"Test accuracy, %, mean ± 95 % interval over {options.seeds} seeds")
    for heading in ("", "learning rate", "fusion", "fusion NLL", *(f"{m} head" for m in modalities), "late fusion"):
        table.add_column(heading, justify="left" if not heading else "right")
    for m in modalities:
        for name in (f"{m} alone", f"{m} alone, same epochs"):
            own = column(name, chosen[name], "fusion/accuracy")
            heads = [text(own) if other == m else "" for other in modalities]
            table.add_row(name, rate_text(name), "", "", *heads, "")
    ensemble = []
    for seed in seeds:
        logits = {m: np.load(options.out / f"{m} alone-{chosen[f'{m} alone']}-{seed}.npy") for m in modalities}
        ensemble.append(task_metrics(splits.test.task, late_fusion(splits.test.task, logits), splits.test.label))
    table.add_row(
        "late fusion of those", "", text(np.array([e["accuracy"] for e in ensemble])),
        text(np.array([e["nll"] for e in ensemble]), 1, 3), *("" for _ in modalities), "",
    )  # fmt: skip
    for name in METHODS:
        rate = chosen[name]
        table.add_row(
            name, rate_text(name), text(column(name, rate, "fusion/accuracy")), text(column(name, rate, "fusion/nll"), 1, 3),
            *(text(column(name, rate, f"{m}/accuracy")) for m in modalities),
            text(column(name, rate, "late_fusion/accuracy")),
        )  # fmt: skip
    console.print(table)

    keys = ["fusion/accuracy", *(f"{m}/accuracy" for m in modalities)]
    pairs = Table(title="Paired differences in points of test accuracy, mean ± 95 % interval")
    for heading in ("", "fusion", *(f"{m} head" for m in modalities)):
        pairs.add_column(heading, justify="left" if not heading else "right")
    for one, other in (
        ("uniform", "joint"),
        ("stch", "joint"),
        ("mimo", "joint"),
        ("stch", "uniform"),
        ("mimo", "uniform"),
    ):
        differences = [column(one, chosen[one], key) - column(other, chosen[other], key) for key in keys]
        pairs.add_row(f"{one} - {other}", *map(text, differences))
    for name in METHODS:
        gaps = [
            column(name, chosen[name], f"{m}/accuracy") - column(f"{m} alone", chosen[f"{m} alone"], "fusion/accuracy")
            for m in modalities
        ]
        pairs.add_row(f"{name} - alone", "", *map(text, gaps))
    console.print(pairs)
    for m in modalities:
        by_itself = column(f"{m} alone", chosen[f"{m} alone"], "fusion/accuracy")
        start = column("joint", chosen["joint"], f"{m}/accuracy")
        parts = [
            f"{name} {share(column(name, chosen[name], f'{m}/accuracy') - start, by_itself - start)}"
            for name in METHODS
            if name != "joint"
        ]
        console.print(f"{m}: {text(by_itself - start)} points lost under joint; recovered: {', '.join(parts)}")


if __name__ == "__main__":
    main()
