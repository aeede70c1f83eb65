"""Halves of MNIST with one half missing: maximum likelihood, CD-PercLoss, multi-prediction and the hybrid.

    python benchmarks/generative.py --mnist FOLDER --out FOLDER [--methods ml mp] [--seeds 3] [--full] [--option VALUE ...]

The configurations are configs/mnist_halves_*.py at their quick size (--full: as published); other options are those of
`mmjax train`. A linear classifier is fitted on features of complete training digits and scored on the test digits: with
both halves, and with each alone, the other inferred in 0, 1, 2, 5 and 10 rounds. Runs that are in --out already are not
taken again. Pictures of the first seed's runs go there too: scores by rounds, and what is filled in.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import runpy
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

import mmjax
from mmjax.config import Config
from mmjax.overrides import override
from mmjax.report import filled_grid, rounds_plot
from mmjax.train.missing import ROUNDS, scores_by_rounds

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
METHODS = ("ml", "cdpl", "mp", "hybrid")
PATTERNS = {"both": "fusion", "left": "left", "right": "right"}

Record = dict[str, Any]


def experiment(method: str, full: bool) -> Config:
    """Return a method's configuration."""
    module = runpy.run_path(str(CONFIGS / f"mnist_halves_{method}.py"))
    config: Config = module["get_config" if full else "get_quick_config"]()
    return config


def take(config: Config, splits: mmjax.Splits, pictures: Path | None) -> Record:
    """Train one run; return its test errors by rounds and pattern, in percent, and what it took."""
    started = time.perf_counter()
    run = mmjax.fit(config, splits=splits)
    scores = scores_by_rounds(run, splits.test)
    if pictures is not None:
        names = ("fusion", *sorted(run.modalities))
        rounds_plot(scores, names, splits.test.task).savefig(pictures.with_suffix(".rounds.png"), dpi=100)
        filled_grid(run, splits.test).savefig(pictures.with_suffix(".filled_in.png"), dpi=100)
    errors = {
        str(rounds): {name: 100 * (1 - metrics[f"{key}/accuracy"]) for name, key in PATTERNS.items()}
        for rounds, metrics in scores.items()
    }
    return {
        "errors": errors,
        "seconds": time.perf_counter() - started,
        "steps_per_second": run.metrics["steps_per_second"],
    }


def text(values: np.ndarray) -> str:
    """Return "mean ± standard deviation" over the seeds."""
    return f"{values.mean():.2f} ± {values.std(ddof=1):.2f}" if len(values) > 1 else f"{values.mean():.2f}"


def main() -> None:
    """Train what is missing and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", type=Path, required=True, help="folder of the four idx files")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=("ml", "mp"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--full", action="store_true", help="the published size; for an accelerator")
    options, rest = parser.parse_known_args()
    options.out.mkdir(parents=True, exist_ok=True)

    log = options.out / "runs.jsonl"
    done: dict[tuple[str, int], Record] = {}
    for line in log.read_text().splitlines() if log.exists() else []:
        record = json.loads(line)
        done[record["method"], record["seed"]] = record
    splits = None
    for seed in range(options.seeds):
        for method in options.methods:
            if (method, seed) in done:
                continue
            config = override(experiment(method, options.full), [*rest, "--data.path", str(options.mnist)])
            config = dataclasses.replace(config, train=dataclasses.replace(config.train, seed=seed))
            splits = splits or config.data.load()
            record = {"method": method, "seed": seed} | take(config, splits, options.out / method if not seed else None)
            done[method, seed] = record
            with log.open("a") as stream:
                stream.write(json.dumps(record) + "\n")

    def errors(method: str, rounds: int, pattern: str) -> np.ndarray:
        return np.array([done[method, seed]["errors"][str(rounds)][pattern] for seed in range(options.seeds)])

    console = Console(width=120)
    last = ROUNDS[-1]
    table = Table(
        title=f"Test error, %, mean ± standard deviation over {options.seeds} seeds, {last} rounds of inference"
    )
    for heading in ("method", *PATTERNS, "seconds a run", "steps/s"):
        table.add_column(heading, justify="left" if heading == "method" else "right")
    for method in options.methods:
        cells = [text(errors(method, last, pattern)) for pattern in PATTERNS]
        runs = [done[method, seed] for seed in range(options.seeds)]
        cost = (f"{np.mean([run[key] for run in runs]):.0f}" for key in ("seconds", "steps_per_second"))
        table.add_row(method, *cells, *cost)
    console.print(table)
    table = Table(title="The same by the number of rounds")
    for heading in ("method", "alone", *map(str, ROUNDS)):
        table.add_column(heading, justify="left" if heading in ("method", "alone") else "right")
    for method in options.methods:
        for pattern in ("left", "right"):
            table.add_row(method, pattern, *(text(errors(method, rounds, pattern)) for rounds in ROUNDS))
    console.print(table)
    if {"ml", "mp"} <= set(options.methods):
        for pattern in PATTERNS:
            console.print(
                f"ml - mp, {pattern}: {text(errors('ml', last, pattern) - errors('mp', last, pattern))} points"
            )


if __name__ == "__main__":
    main()
