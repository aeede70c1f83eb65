"""The command line: `mmjax train`, `evaluate`, `predict`, `theory`, `data`, `methods`, `devices`.

Here are the effects and the words; the work is in the library. Exit status: 0; 1 when a run broke off on numbers that
are not finite; 2 for anything that the caller can put right, told in one line; 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import shlex
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from mmjax.commands import theory
from mmjax.config import Config
from mmjax.config_file import load_config
from mmjax.data import SOURCES, avmnist, describe, health_arrays, question_arrays, read_inputs
from mmjax.data.questions import Answers
from mmjax.generative.reader import Reader
from mmjax.optim import METHODS
from mmjax.overrides import HELP, override
from mmjax.train import journal
from mmjax.train.interruption import Interruption
from mmjax.train.loop import fit
from mmjax.train.nonfinite import NonFiniteError
from mmjax.train.run import Run, evaluate, load

Command = Callable[[argparse.Namespace, Console], int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit status. arguments: those of the process if None."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and options.command not in (_train, theory.run):
        parser.error(f"unknown arguments: {' '.join(rest)}")
    options.rest = rest
    _check_order(parser, options, arguments)
    console = Console(highlight=False)
    command: Command = options.command
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            return command(options, console)
    except KeyboardInterrupt:
        print("\nmmjax: interrupted", file=sys.stderr)
        return 130
    except NonFiniteError as error:
        print(f"mmjax: error: {error}", file=sys.stderr)
        return 1
    except (ValueError, OSError, ImportError) as error:
        if options.traceback:
            raise
        print(f"mmjax: error: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mmjax", description="Multi-modal models whose modalities learn in balance.", allow_abbrev=False
    )
    parser.add_argument("--traceback", action="store_true", help="show where an error came from")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command: Command, text: str, **options: Any) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=text, description=text, allow_abbrev=False, **options)
        made.set_defaults(command=command)
        return made

    # its own --help: what fields there are is known only once CONFIG has been read
    train = add("train", _train, "train as CONFIG says, or go on with the run of a work folder", add_help=False)
    train.add_argument("config", metavar="CONFIG", nargs="?", type=Path)
    train.add_argument(
        "--workdir", type=Path, help="work folder; default: runs/, the configuration's name and the time"
    )
    train.add_argument("-h", "--help", action="store_true", help="with CONFIG: every field, its type and default")
    train.usage = "mmjax train CONFIG [--workdir DIR] [--section.field VALUE ...] [--help]"
    train.set_defaults(usage=train.format_help())

    of_run = add("evaluate", _evaluate, "evaluate the best model of a work folder on its data")
    of_run.add_argument("workdir", metavar="WORKDIR", type=Path)
    of_run.add_argument("--split", choices=("test", "validation", "train"), default="test")
    of_run.add_argument(
        "--laplace", action="store_true", help="also by samples of the last layers' Laplace posteriors (calibration)"
    )
    of_run.add_argument(
        "--prior-precision", type=float, help="of --laplace; default: a tenth of the number of training examples"
    )
    of_run.add_argument(
        "--missing",
        metavar="PATTERN",
        nargs="*",
        help="also with only some modalities given: each PATTERN (audio, audio+image, leave-one-out); none named: all",
    )

    of_run.add_argument(
        "--noise",
        metavar="LEVEL",
        nargs="+",
        type=float,
        help="also with noise in one modality at a time, in units of each feature's own spread: --noise 0 0.5 1 2",
    )

    new = add("predict", _predict, "write what every expert says of the examples in an npz file")
    new.add_argument("workdir", metavar="WORKDIR", type=Path)
    new.add_argument("file", metavar="FILE.npz", type=Path)
    new.add_argument("--out", type=Path, help="file to write; default: predictions_FILE.npz in the work folder")

    theory.add_theory(add)
    add("methods", _methods, "list the methods")
    add("devices", _devices, "list the devices that JAX sees")

    data = commands.add_parser("data", help="list, prepare and check data", allow_abbrev=False)
    actions = data.add_subparsers(required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="list the sources and what each needs")
    listing.set_defaults(command=_data_list)
    check = actions.add_parser("check", help="say what an npz file holds and what is wrong with it")
    check.add_argument("file", metavar="FILE.npz", type=Path)
    check.set_defaults(command=_data_check)
    prepare = actions.add_parser("prepare", help="make a data set from its original files, or make one up")
    sources = prepare.add_subparsers(required=True, metavar="SOURCE")
    make = sources.add_parser("avmnist", help="degraded MNIST images with noisy spoken digits", allow_abbrev=False)
    make.add_argument("--mnist", type=Path, required=True, help="folder of the four idx files of MNIST")
    make.add_argument("--speech", type=Path, required=True, help="folder of the Free Spoken Digit Dataset's recordings")
    make.add_argument("--noise", type=Path, required=True, help="folder of ESC-10's clips")
    make.add_argument("--out", type=Path, required=True, help="folder to make")
    make.add_argument("--seed", type=int, default=0, help="seed of pairing, crops and noise")
    make.set_defaults(command=_prepare_avmnist)
    patients = sources.add_parser(
        "health", help="made-up health records, for configs/health_i2m2.py", allow_abbrev=False
    )
    patients.add_argument("--examples", type=int, default=6000, help="number of patients")
    asked = sources.add_parser(
        "questions", help="made-up questions on pictures, for configs/questions_i2m2.py", allow_abbrev=False
    )
    asked.add_argument("--examples", type=int, default=8000, help="number of questions")
    asked.add_argument("--answers", choices=get_args(Answers), default="two-class", help="one answer, or several")
    for made in (patients, asked):
        made.add_argument("--out", type=Path, required=True, help="npz file to write")
        made.add_argument("--seed", type=int, default=0, help="seed of the examples")
    patients.set_defaults(command=_prepare_health)
    asked.set_defaults(command=_prepare_questions)
    return parser


def _check_order(parser: argparse.ArgumentParser, options: argparse.Namespace, arguments: Sequence[str]) -> None:
    """Stop if a field comes before CONFIG: the field's value would have been taken for CONFIG."""
    config = getattr(options, "config", None)
    if config is None:
        return
    before = itertools.takewhile(lambda argument: argument.startswith("-") or Path(argument) != config, arguments)
    for field in (argument for argument in before if argument in options.rest and argument.startswith("--")):
        parser.error(f"CONFIG comes first, then its fields: mmjax ... CONFIG {field.partition('=')[0]} ...")


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    if issubclass(category, UserWarning):
        print(f"mmjax: warning: {message}", file=sys.stderr)


# -- runs ------------------------------------------------------------------------------------------------------------


def _train(options: argparse.Namespace, console: Console) -> int:
    if options.config is None:
        console.print(options.usage, markup=False)
        return 0 if options.help else 2
    config = override(
        load_config(options.config),
        options.rest + ([HELP[1]] if options.help else []),
        prog=f"mmjax train {options.config}",
    )
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    workdir = options.workdir or Path("runs") / f"{options.config.stem}-{now}"
    again = ["mmjax", "train", str(options.config), *options.rest, "--workdir", str(workdir)]
    try:
        run = _fit(config, workdir)
    except (KeyboardInterrupt, NonFiniteError) as error:
        _draw(workdir, config)
        if isinstance(error, NonFiniteError):
            raise
        print(f"\nmmjax: interrupted; go on with\n  {shlex.join(again)}", file=sys.stderr)
        return 130
    _draw(workdir, config)
    _print_results(run, run.metrics, "Test split", console)
    console.print(f"work folder: {workdir}", markup=False, soft_wrap=True)
    return 0


def _fit(config: Config, workdir: Path) -> Run:
    from mmjax.report import Observers, ProgressObserver, events_observer

    notice = "mmjax: stopping after this step; Ctrl-C again stops at once"
    with Interruption(notice), Observers(ProgressObserver(), events_observer(workdir)) as observer:
        return fit(config, workdir, observer=observer)


def _draw(workdir: Path, config: Config) -> None:
    """Draw the curves, of a run that was cut off as far as they go."""
    from mmjax.report import has_calibration, save_calibration, save_curves

    path = workdir / journal.METRICS
    rows = journal.read_rows(path) if path.exists() else []
    methods = dict.fromkeys((stage.method or config.method).name for stage in config.stages) or [config.method.name]
    title = f"{config.data.name}, {', then '.join(methods)}, seed {config.train.seed}"
    if rows:
        save_curves(rows, workdir / "curves.png", title)
    if has_calibration(rows):
        save_calibration(rows, workdir / "calibration.png", title)


def _print_results(run: Run, metrics: dict[str, float], title: str, console: Console) -> None:
    from mmjax.report import results_table

    found = {key.split("/")[0] for key in metrics}  # not every model has an expert of each modality, nor every data set
    names = ("fusion", *(m for m in sorted(run.modalities) if m in found))
    console.print(results_table(metrics, names, run.inference.task, title))


def _evaluate(options: argparse.Namespace, console: Console) -> int:
    run = load(options.workdir)
    splits = run.config.data.load()
    dataset = getattr(splits, options.split)
    title = f"{options.split.capitalize()} split"
    _print_results(run, evaluate(run, dataset), title, console)
    if options.laplace:
        from mmjax.train.uncertainty import laplace_metrics

        metrics = laplace_metrics(run, splits.train, dataset, prior_precision=options.prior_precision)
        _print_results(run, metrics, f"{title}, Laplace predictive", console)
    if options.missing is not None:
        from mmjax.report import save_patterns

        table, file = save_patterns(run, dataset, options.workdir, options.missing)
        console.print(table)
        console.print(f"wrote {file}", markup=False, soft_wrap=True)
    if options.noise is not None:
        from mmjax.report import save_noise

        table, file = save_noise(run, dataset, options.workdir, options.noise)
        console.print(table)
        console.print(f"wrote {file}", markup=False, soft_wrap=True)
    if isinstance(run.inference.model, Reader):
        from mmjax.report import save_missing

        table, files = save_missing(run, dataset, options.workdir)
        console.print(table)
        console.print(f"wrote {', '.join(map(str, files))}", markup=False, soft_wrap=True)
    return 0


def _predict(options: argparse.Namespace, console: Console) -> int:
    run = load(options.workdir)
    inputs, present = read_inputs(options.file, run.modalities)
    answers = run.predict(inputs, present)
    out = options.out or options.workdir / f"predictions_{options.file.stem}.npz"
    np.savez(out, allow_pickle=False, **{name: values.astype(np.float32) for name, values in answers.items()})
    shapes = ", ".join(f"{name} {list(values.shape)}" for name, values in answers.items())
    console.print(f"wrote {out}: {shapes}", markup=False, soft_wrap=True)
    return 0


# -- what there is ---------------------------------------------------------------------------------------------------


def _summary(cls: type) -> str:
    return (cls.__doc__ or "").strip().splitlines()[0].rstrip(".")


def _table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table


_WIDE = 140
"""Columns that the table of methods needs; on a narrower screen every method has lines of its own."""


def _methods(options: argparse.Namespace, console: Console) -> int:
    if console.width >= _WIDE:
        table = _table("method", "kind", "backward passes", "formula", "what it does", "source")
        for name, method in METHODS.items():
            table.add_row(name, method.kind, method.backward_passes, method.reading, _summary(method), method.source)
        console.print(table)
        return 0
    for name, method in METHODS.items():
        passes = f"backward passes: {method.backward_passes}"
        console.print(f"[bold]{name}[/bold]  {method.kind}; {passes}; formula: {method.reading}")
        console.print(f"  {_summary(method)}.\n  [dim]{method.source}[/dim]")
    return 0


def _devices(options: argparse.Namespace, console: Console) -> int:
    import jax

    table = _table("device", "kind", "process", "memory")
    for device in jax.devices():
        limit = (device.memory_stats() or {}).get("bytes_limit")
        memory = "not told" if limit is None else f"{limit / 2**30:.1f} GiB"
        table.add_row(f"{device.platform}:{device.id}", device.device_kind, str(device.process_index), memory)
    console.print(table)
    return 0


def _data_list(options: argparse.Namespace, console: Console) -> int:
    table = _table("source", "what it is", "what it needs")
    for name, source in SOURCES.items():
        table.add_row(name, _summary(source), source.needs)
    console.print(table)
    return 0


def _data_check(options: argparse.Namespace, console: Console) -> int:
    report = describe(options.file)
    arrays = _table("array", "role", "shape", "type", "range")
    for row in report.rows():
        arrays.add_row(*row)
    console.print(arrays)
    sizes = ", ".join(f"{split} {size}" for split, size in report.sizes.items())
    if report.task is not None:
        outputs = f" with {report.num_outputs} outputs" if report.num_outputs else ""  # 0: labels that cannot be
        console.print(f"task: {report.task}{outputs}; examples: {sizes}")
    if any(report.missing.values()):
        console.print("missing: " + ", ".join(f"{name} in {count}" for name, count in report.missing.items()))
    if report.counts:
        counts = _table("class" if report.task == "classification" else "label", *report.counts)
        for row in report.class_rows():
            counts.add_row(*row)
        console.print(counts)
    for text in report.warnings:
        console.print(f"warning: {text}", markup=False)
    for text in report.problems:
        console.print(f"wrong: {text}", markup=False)
    console.print("fit for training" if report.ok else "not fit for training")
    return 0 if report.ok else 2


def _prepare_avmnist(options: argparse.Namespace, console: Console) -> int:
    with Progress(console=console, disable=not console.is_terminal) as bar:
        tasks: dict[str, Any] = {}

        def tell(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done)

        manifest = avmnist.prepare(options.mnist, options.speech, options.noise, options.out, options.seed, tell)
    sizes = ", ".join(f"{split} {end - begin:,}" for split, (begin, end) in manifest["splits"].items())
    console.print(f"wrote {options.out}: {sizes} pairs", markup=False, soft_wrap=True)
    return 0


def _prepare_health(options: argparse.Namespace, console: Console) -> int:
    return _write_npz(options.out, health_arrays(options.examples, options.seed), console)


def _prepare_questions(options: argparse.Namespace, console: Console) -> int:
    return _write_npz(options.out, question_arrays(options.examples, options.answers, options.seed), console)


def _write_npz(path: Path, arrays: Mapping[str, np.ndarray], console: Console) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:  # numpy would add .npz to a name without it
        np.savez(file, allow_pickle=False, **arrays)
    shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in arrays.items())
    console.print(f"wrote {path}: {shapes}", markup=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
