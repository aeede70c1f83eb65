"""Intra, inter or both: three kinds of products of experts on data whose label needs the one, the other, or both.

    python benchmarks/i2m2.py --out FOLDER [--config CONFIG] [--seeds 5] [--tuning-seeds 2] [--rates A B ...]
                              [--option VALUE ...]

Without CONFIG: three planted worlds, in which the label depends on single modalities only, on their interaction only (an
xor), and on both; each seed draws examples, random maps and initial parameters anew. With CONFIG, of an `ExpertsConfig`
in one stage: its data. Every kind has the same encoders, data and budget: the same learning rates, of which the one with
the best mean validation accuracy over the tuning seeds (the first of the seeds) is kept; only its test figures are shown.
Runs that are in FOLDER already are not taken again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

import numpy as np
from balance import Record, take, text
from rich.console import Console
from rich.table import Table

import mmjax
from mmjax.config import Config, TrainConfig
from mmjax.data import Planted, planted_truth
from mmjax.models import ConcatConfig, ExpertsConfig, MLPConfig
from mmjax.models.experts import ExpertKind
from mmjax.optim import JointConfig
from mmjax.overrides import override
from mmjax.train.journal import open_workdir
from mmjax.train.optimizer import AdamConfig

KINDS: tuple[ExpertKind, ...] = ("intra", "inter", "i2m2")
BOUND = 1.0  # points of accuracy that the product of all may lose to the best kind
SINGLE = {"a": 0.8, "b": 0.8}
TOGETHER = {"a+b": 0.8}
WORLDS = {
    "single modalities": Planted(unique=SINGLE, redundant={}, synergistic={}, test_examples=10_000),
    "interaction": Planted(unique={}, redundant={}, synergistic=TOGETHER, test_examples=10_000),
    "both": Planted(unique=SINGLE, redundant={}, synergistic=TOGETHER, test_examples=10_000),
}


def planted(data: Planted) -> Config:
    """Return the experiment on a planted world."""
    return Config(
        data=data,
        model=ExpertsConfig(encoders={m: MLPConfig(width=32) for m in ("a", "b")}, fusion=ConcatConfig(hidden=(32,))),
        method=JointConfig(),
        optimizer=AdamConfig(),
        train=TrainConfig(epochs=20, batch_size=64),
    )


def of_kind(config: Config, kind: ExpertKind) -> Config:
    """Return the same experiment with experts of this kind. Raises ValueError for another model."""
    if not isinstance(config.model, ExpertsConfig):
        raise ValueError(f"model is a {type(config.model).__name__}; this compares kinds of an ExpertsConfig")
    return dataclasses.replace(config, model=dataclasses.replace(config.model, experts=kind))


def main() -> None:
    """Train what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--tuning-seeds", type=int, default=2, help="how many of the seeds choose the learning rate")
    parser.add_argument("--rates", type=float, nargs="+", default=(1e-3, 3e-3, 1e-2, 3e-2), metavar="RATE")
    options, rest = parser.parse_known_args()
    if options.config is None:
        configs = {world: override(planted(data), rest) for world, data in WORLDS.items()}
    else:
        configs = {options.config.stem: override(mmjax.load_config(options.config), rest)}
    for world, config in configs.items():
        open_workdir(options.out / world.replace(" ", "_"), config)

    log = options.out / "runs.jsonl"
    done: dict[tuple[str, str, float, int], Record] = {}
    for line in log.read_text().splitlines() if log.exists() else []:
        record = json.loads(line)
        done[record["world"], record["kind"], record["rate"], record["seed"]] = record

    def ensure(world: str, kind: ExpertKind, rate: float, seed: int) -> Record:
        if (world, kind, rate, seed) not in done:
            config = configs[world]
            if isinstance(config.data, Planted):
                config = dataclasses.replace(config, data=dataclasses.replace(config.data, seed=seed))
            taken = take(of_kind(config, kind), config.data.load(), rate, seed, None)
            record = {"world": world, "kind": kind, "rate": rate, "seed": seed} | taken
            done[world, kind, rate, seed] = record
            with log.open("a") as stream:
                stream.write(json.dumps(record) + "\n")
        return done[world, kind, rate, seed]

    def chosen(world: str, kind: ExpertKind) -> float:
        def score(rate: float) -> float:
            rows = [ensure(world, kind, rate, seed) for seed in range(min(options.tuning_seeds, options.seeds))]
            return float(np.mean([row["validation"]["score/fusion"] for row in rows]))

        return max(options.rates, key=score)

    table = Table(title=f"Test accuracy, %, mean ± 95 % interval over {options.seeds} seeds; rates in brackets")
    for heading in ("", "best possible", *KINDS, "intra - inter", "i2m2 - best kind"):
        table.add_column(heading, justify="right" if heading else "left")
    met = True
    for world, config in configs.items():
        accuracy, cells = {}, []
        for kind in KINDS:
            rate = chosen(world, kind)
            rows = [ensure(world, kind, rate, seed) for seed in range(options.seeds)]
            accuracy[kind] = np.array([row["test"]["fusion/accuracy"] for row in rows])
            cells.append(f"{text(accuracy[kind])} ({rate:g})")
        best = max(KINDS, key=lambda kind: accuracy[kind].mean())
        difference = accuracy["i2m2"] - accuracy[best]
        met &= bool(100 * difference.mean() >= -BOUND)
        possible = f"{100 * planted_truth(config.data).bayes_accuracy:.1f}" if isinstance(config.data, Planted) else ""
        apart = text(accuracy["intra"] - accuracy["inter"])
        table.add_row(
            world, possible, *cells, apart, "best itself" if best == "i2m2" else f"{text(difference)} ({best})"
        )
    Console(width=140).print(table)
    print(f"mean of i2m2 within {BOUND:g} point of the best kind everywhere: {'met' if met else 'missed'}")


if __name__ == "__main__":
    main()
