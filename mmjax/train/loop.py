"""The training loop: at every boundary evaluate, then checkpoint, then step; effects only when they are due."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.config import Config
from mmjax.data import Batch, Splits, batch_indices, gather
from mmjax.evaluation.metrics import loss_name, objective_value, score_name
from mmjax.train import journal
from mmjax.train.base import Experiment
from mmjax.train.checkpoint import Checkpoints
from mmjax.train.interruption import Interruption
from mmjax.train.nonfinite import NonFiniteError, Quantity, broken_arrays, cause_of_halt, unsound_arrays
from mmjax.train.observer import Observer
from mmjax.train.predictor import Predictor
from mmjax.train.refresher import Refresher
from mmjax.train.run import Run
from mmjax.train.signature import write_signature
from mmjax.train.stages import build_stages
from mmjax.train.state import TrainState
from mmjax.train.step import StepMetrics

PyTree = Any


@dataclass(frozen=True)
class _Bookkeeping:
    """What the loop itself remembers; saved beside the state, as JSON."""

    best_value: float | None = None
    best_step: int = -1
    evaluations_without_better: int = 0
    stopped: bool = False
    wall_seconds: float = 0.0


@dataclass(frozen=True)
class _Window:
    """What the steps up to `done` told, still on the device.

    told: (when each objective was not finite, steps skipped, the combiner's diagnostics), copies: the next step is given
    the state's memory. measured: (step, geometry of the gradients) of the steps in the window that measured them.
    """

    done: int
    metrics: list[StepMetrics]
    told: tuple[jax.Array, jax.Array, dict[str, jax.Array]]
    measured: list[tuple[int, dict[str, Any]]]


@dataclass
class _Clock:
    """Seconds: when this run began or went on, and how long it compiled and took steps; and how many steps."""

    started: float
    compiling: float = 0.0
    stepping: float = 0.0
    steps: int = 0


def fit(
    config: Config,
    workdir: str | Path | None = None,
    *,
    splits: Splits | None = None,
    observer: Observer | None = None,
) -> Run:
    """Train as `config` says, choose the best model on validation, and look at the test split once, at the end.

    workdir: where configuration, metrics and checkpoints go; if the same run was interrupted there, it goes on, bit for
    bit as if it had not been (on the same devices). None: nothing is written.
    splits: data to use in place of `config.data.load()`. observer: hears of compilation, metrics and notes.

    Returns the `Run`: `.metrics` (of the test split, "fusion/accuracy" and so on, with wall_seconds, compile_seconds and
    steps_per_second), `.params`, `.predict`.

    Raises:
      ValueError: a configuration or data that cannot work; before anything is compiled.
      NonFiniteError: a loss, a gradient or the state became NaN or infinite.
      OSError: the work folder cannot be written.

    >>> from mmjax.train.optimizer import AdamConfig
    >>> from mmjax.data import Planted
    >>> from mmjax.optim import UniformConfig
    >>> from mmjax.config import Config, TrainConfig
    >>> train = TrainConfig(epochs=1, batch_size=32, monitor_every=0, devices=1)
    >>> run = fit(Config(data=Planted(), method=UniformConfig(), optimizer=AdamConfig(), train=train))
    >>> 0.0 <= run.metrics["fusion/accuracy"] <= 1.0
    True
    """
    stages = build_stages(config, splits)
    folder = None if workdir is None else Path(workdir).absolute()
    if folder is not None:
        journal.open_workdir(folder, config)
        write_signature(folder, stages[0].splits)
    return _Loop(config, stages, folder, observer or Observer()).run()


class _Loop:
    """One run's effects in order, stage by stage. The pure work is the experiments', one a stage."""

    def __init__(self, config: Config, stages: tuple[Experiment, ...], folder: Path | None, observer: Observer):
        self.config, self.stages, self.folder, self.observer = config, stages, folder, observer
        self.experiment = stages[0]  # the stage at hand
        # which objectives steer changes nothing in what a model says: one program serves all stages
        self.predictor = Predictor(stages[-1].inference, stages[-1].route)
        self.clock = _Clock(started=time.perf_counter())
        self.interruption = Interruption()
        self.checkpoints = None if folder is None else Checkpoints(folder / journal.CHECKPOINTS)
        self.file: journal.MetricsFile | None = None
        self.books = _Bookkeeping()
        self.best: PyTree = None
        self.pending: list[StepMetrics] = []
        self.measured: list[tuple[int, dict[str, Any]]] = []
        self.waiting: list[_Window] = []
        self.fetched = 0.0  # when the last windows were
        self.skipped = 0  # steps of the stage at which something was not finite, as told last
        self.measure: Callable[..., Any] | None = None
        self.at_first: dict[str, int] = {}  # what of the model was infinite then, such as a running minimum

    def run(self) -> Run:
        with self.interruption:
            try:
                run = self._run()
            except BaseException as error:
                try:
                    self._close()
                except Exception as closing:  # must not hide why the run ended
                    error.add_note(f"closing the work folder failed, too: {closing}")
                    self.observer.note(error.__notes__[-1])
                raise
            self._close()
            return run

    def _close(self) -> None:
        with ExitStack() as each:  # one that fails leaves the other none the less closed
            if self.file is not None:
                each.callback(self.file.close)
            if self.checkpoints is not None:
                each.callback(self.checkpoints.close)

    def _run(self) -> Run:
        local, first = self._restore()
        test = self._open_metrics(first)
        self.observer.started(self.experiment.names, self.stages[-1].end, first)
        if first:
            self.observer.note(f"resuming at step {first}")
        if test is not None:  # nothing is left to do, and the test split has been looked at already
            return self._finish(local, {k: v for k, v in test.items() if k not in ("step", "kind", "best_step")})

        self.clock.started = time.perf_counter()
        place = next(i for i, stage in enumerate(self.stages) if stage is self.experiment)
        local = self._train(local)
        for stage in self.stages[place + 1 :]:
            local = self._train(self._hand_over(local, stage))
        timing = {
            "wall_seconds": self.books.wall_seconds + time.perf_counter() - self.clock.started,
            "compile_seconds": self.clock.compiling,
            "steps_per_second": self.clock.steps / self.clock.stepping if self.clock.stepping else 0.0,
        }
        self.interruption.check()
        test_split = self.experiment.splits.test
        test_metrics = self.predictor.metrics(self._best_variables(local), test_split) | timing
        self._row({"step": int(local.step), "kind": "test", "best_step": self.books.best_step} | test_metrics)
        return self._finish(local, test_metrics)

    def _train(self, local: TrainState) -> TrainState:
        """Take the steps of the stage at hand that are left; return its last state, as `local` is placed."""
        experiment, route, train = self.experiment, self.experiment.route, self.experiment.config.train
        first, total = int(local.step), experiment.end
        self.skipped = int(local.skipped)
        if first == experiment.start and len(self.stages) > 1:
            self._row({"step": first, "kind": "stage", "title": experiment.title})
            self.observer.note(f"stage {experiment.title!r}: steps {first} to {total}")
        if first >= total or self.books.stopped:
            return local
        refresh = experiment.refresh
        refresher = None if refresh is None else Refresher(refresh, experiment.inference, route)
        self.interruption.check()
        started = time.perf_counter()
        state = route.place_state(local)
        del local
        batch = route.place_batch(self._batch(first))
        step_program, self.measure = self._compile(state, batch)
        compile_seconds = time.perf_counter() - started
        self.clock.compiling += compile_seconds
        self.observer.compiled(compile_seconds)
        loop_started = self.fetched = time.perf_counter()
        aside = 0.0  # seconds of evaluating and saving, which are no part of the steps' rate
        for step in range(first, total):
            self.interruption.check()
            if step > first:
                batch = route.place_batch(self._batch(step))
            if refresher is not None and (step - experiment.start) % refresher.every == 0:
                state = self._refresh(refresher, state)
            if self.measure is not None and step % train.monitor_every == 0:
                self.measured.append((step, self.measure(state, batch)))
            state, metrics = step_program(state, batch)
            self.pending.append(metrics)
            self.clock.steps += 1
            done = step + 1
            evaluate = done % experiment.evaluate_every == 0 or done == total
            save = done % experiment.checkpoint_every == 0 or done == total
            if done % train.log_every == 0 or evaluate or save:
                self._close_window(done, state, fetch=evaluate or save)
            if evaluate or save:
                pause = time.perf_counter()
                local = route.local_state(state)
                self._check(done, local)
                if evaluate:
                    values = self._evaluate(done, local)
                    local = local.replace(validation_values=jax.device_put(values, route.replicated))
                    state = state.replace(validation_values=route.place_state(values))
                if save or self.books.stopped:
                    self._save(local)
                del local
                self.fetched = time.perf_counter()
                aside += self.fetched - pause
            if self.books.stopped:
                self.observer.note(f"stopped early at step {done}: best at step {self.books.best_step}")
                break
        self.clock.stepping += time.perf_counter() - loop_started - aside
        return route.local_state(state)

    def _hand_over(self, local: TrainState, stage: Experiment) -> TrainState:
        """Return the first state of the next stage, from the best weights of the one that is over."""
        state = stage.state_after(self._best_variables(local))
        self.experiment, self.best = stage, None
        self.books = _Bookkeeping(wall_seconds=self.books.wall_seconds)
        return jax.device_put(state, stage.route.replicated)

    # -- programs ----------------------------------------------------------------------------------------------------

    def _compile(self, state: PyTree, batch: Batch) -> tuple[Callable[..., Any], Callable[..., Any] | None]:
        experiment = self.experiment
        step = experiment.route.compile(experiment.step, state, batch, donate=True)
        _snapshot(_told(state))
        if not experiment.config.train.monitor_every:
            return step, None
        self.interruption.check()
        measure = experiment.route.compile(experiment.measure, state, batch, donate=False)
        return step, measure

    def _batch(self, step: int) -> Batch:
        train, data = self.experiment.config.train, self.experiment.splits.train
        return gather(data, batch_indices(train.seed, step, len(data), train.batch_size))

    # -- boundaries --------------------------------------------------------------------------------------------------

    def _close_window(self, done: int, state: TrainState, fetch: bool) -> None:
        """Fetch the windows before this one, and let this one wait, unless `fetch`: its steps may still be running.

        To fetch it now would empty the queue of steps, and the device would idle until the next one is there.
        """
        if self.pending:
            self.waiting.append(_Window(done, self.pending, _snapshot(_told(state)), self.measured))
            self.pending, self.measured = [], []
        ready = len(self.waiting) if fetch else len(self.waiting) - 1
        windows, self.waiting = self.waiting[:ready], self.waiting[ready:]
        if not windows:
            return
        fetched = [
            self.experiment.route.read((w.metrics, w.told, [values for _, values in w.measured])) for w in windows
        ]
        before, self.fetched = self.fetched, time.perf_counter()
        rate = sum(len(w.metrics) for w in windows) / (self.fetched - before)
        for window, (metrics, (first_bad, skipped, diagnostics), measured) in zip(windows, fetched, strict=True):
            halted = int(first_bad.max())
            for (step, _), values in zip(window.measured, measured, strict=True):
                if halted < 0 or step < halted:
                    # a number that is not finite: the batch lacks a modality, or the step was skipped
                    known = {k: float(v) for k, v in values.items() if np.isfinite(v)}
                    self._row({"step": step, "kind": "gradients"} | known)
            if halted >= 0:
                raise self._halted(state, first_bad, metrics[halted - window.done].values, int(skipped))
            if skipped > self.skipped:
                self.observer.note(f"step {window.done}: {skipped} skipped so far, as something was not finite")
                self.skipped = int(skipped)
            self._write_window(window.done, metrics, diagnostics, rate)

    def _write_window(
        self, done: int, metrics: list[StepMetrics], diagnostics: dict[str, np.ndarray], rate: float
    ) -> None:
        """Write what the steps of a window told."""
        names = self.experiment.names
        losses, weights = (_mean_where_finite(np.stack(told)) for told in zip(*metrics, strict=True))
        row: dict[str, Any] = {"step": done, "kind": "train"}
        row |= {f"loss/{name}": float(v) for name, v in zip(names, losses, strict=True) if not np.isnan(v)}
        row |= {f"weight/{name}": float(w) for name, w in zip(names, weights, strict=True) if not np.isnan(w)}
        row |= {name: float(value) for name, value in diagnostics.items()}  # of the last step
        if self.experiment.config.train.skip_nonfinite:
            row["skipped"] = self.skipped
        row["steps_per_second"] = rate
        self._row(row)

    def _halted(self, state: TrainState, first_bad: np.ndarray, losses: np.ndarray, skipped: int) -> NonFiniteError:
        """Return the error of the step that halted the run, whose state is left as the step found it.

        losses: [K], of that step; NaN for an objective that did not count.
        """
        experiment, step = self.experiment, int(first_bad.max())

        def norms() -> dict[str, np.ndarray]:
            batch = experiment.route.place_batch(self._batch(step))
            measure = self.measure or experiment.route.compile(experiment.measure, state, batch, donate=False)
            geometry = experiment.route.read(measure(state, batch))
            return {name: geometry[f"norm/{name}"] for name in experiment.names}

        broken = broken_arrays(experiment.route.local_state(state).variables, self.at_first)
        quantity, names = cause_of_halt(experiment.names, first_bad, losses, broken, norms)
        return self._non_finite(step, quantity, names, skipped - 1)

    def _check(self, done: int, local: TrainState) -> None:
        """Raise `NonFiniteError` if an array is no longer finite: nothing of the kind is evaluated or saved."""
        names = broken_arrays(local.variables, self.at_first)
        if names:
            raise self._non_finite(done, "state", names, self.skipped)

    def _non_finite(self, step: int, quantity: Quantity, names: tuple[str, ...], skipped: int) -> NonFiniteError:
        saved = None if self.checkpoints is None else self.checkpoints.last_step()
        return NonFiniteError(step, quantity, names, saved, self.checkpoints is not None, skipped)

    def _refresh(self, refresher: Refresher, state: TrainState) -> TrainState:
        """Return the state after the method's pass; without what it found, if that is not finite and may be skipped."""
        route = self.experiment.route
        local = route.local_state(state)
        if int(local.first_bad.max()) >= 0:  # halted: the loop says why when it looks
            return state
        step, skipped, before = int(local.step), int(local.skipped), local.opt_state[0].inner
        broken = broken_arrays(local.variables, self.at_first)
        if not broken:
            combiner = refresher(local.variables, before, self.experiment.splits.train)
            broken = tuple(f"method/{name}" for name in broken_arrays(combiner, unsound_arrays(before)))
            if not broken:
                watched = state.opt_state[0]._replace(inner=route.place_state(combiner))
                return state.replace(opt_state=(watched, *state.opt_state[1:]))
            if skipped < self.experiment.config.train.skip_nonfinite:
                what = f"after a pass over the training split {broken[0]} would not be finite"
                self.observer.note(f"step {step}: {what}; what was there stays")
                return state.replace(skipped=route.place_state(local.skipped + 1))
        self._close_window(step, state, fetch=True)  # what the steps before told
        raise self._non_finite(step, "state", broken, skipped)

    def _evaluate(self, done: int, local: TrainState) -> np.ndarray:
        """Evaluate on validation and choose the best; return the objectives' losses there, [K]."""
        experiment, train = self.experiment, self.experiment.config.train
        task = experiment.splits.train.task
        score = score_name(task)
        variables = experiment.ready(local.variables)
        metrics = self.predictor.metrics(variables, experiment.splits.validation)
        row = {"step": done, "kind": "validation"} | metrics
        scored = (name for name in experiment.names if f"{name}/{score}" in metrics)
        row |= {f"score/{name}": metrics[f"{name}/{score}"] for name in scored}
        self._row(row)
        value = experiment.criterion(metrics)
        best = self.books.best_value
        if best is None or value < best or (np.isnan(best) and not np.isnan(value)):  # NaN is never better
            self.books = dataclasses.replace(self.books, best_value=value, best_step=done, evaluations_without_better=0)
            self.best = _copy(variables)
            if self.checkpoints is not None:
                self.checkpoints.save_best(done, self.best)
        else:
            waited = self.books.evaluations_without_better + 1
            stop = bool(train.early_stopping) and waited >= train.early_stopping
            self.books = dataclasses.replace(self.books, evaluations_without_better=waited, stopped=stop)
        known = (f"{name}/{loss_name(task)}" in metrics for name in experiment.names)
        named = zip(experiment.names, known, strict=True)
        return np.array([objective_value(task, metrics, n) if here else np.nan for n, here in named], np.float32)

    def _save(self, local: TrainState) -> None:
        if self.checkpoints is not None:
            elapsed = time.perf_counter() - self.clock.started
            books = dataclasses.replace(self.books, wall_seconds=self.books.wall_seconds + elapsed)
            self.checkpoints.save_last(_copy(local), dataclasses.asdict(books))

    # -- resuming and finishing --------------------------------------------------------------------------------------

    def _restore(self) -> tuple[TrainState, int]:
        """Return the state to go on from and its step, and turn to its stage; at a boundary that is the stage before."""
        saved = None if self.checkpoints is None else self.checkpoints.last_step()
        if saved is not None:
            self.experiment = next(stage for stage in self.stages if saved <= stage.end)
        fresh = jax.device_put(self.experiment.initial_state(), self.experiment.route.replicated)
        self.at_first = unsound_arrays(fresh.variables)
        if self.checkpoints is not None:
            self.checkpoints.forget_best_after(saved or 0)
        if self.checkpoints is None or saved is None:
            return fresh, 0
        state, books = self.checkpoints.restore_last(fresh)
        self.books = _Bookkeeping(**books)
        if self.books.best_step >= 0:
            self.best = self.checkpoints.restore_best(fresh.variables, self.books.best_step)
        return state, int(state.step)

    def _open_metrics(self, first: int) -> dict[str, Any] | None:
        """Open metrics.jsonl; return its test row if the run had come to its end."""
        if self.folder is None:
            return None
        path = self.folder / journal.METRICS
        self.file = journal.MetricsFile(path, first)
        return next((row for row in journal.read_rows(path) if row["kind"] == "test"), None)

    def _best_variables(self, local: TrainState) -> PyTree:
        return local.variables if self.best is None else self.best

    def _row(self, row: dict[str, Any]) -> None:
        if self.file is not None:
            self.file.write(row)
        self.observer.row(row)

    def _finish(self, local: TrainState, metrics: dict[str, Any]) -> Run:
        experiment = self.experiment
        return Run(
            config=self.config,
            inference=self.stages[-1].inference,
            route=experiment.route,
            variables=self._best_variables(local),
            metrics=metrics,
            modalities={m: tuple(x.shape[1:]) for m, x in experiment.splits.train.inputs.items()},
            workdir=self.folder,
        )


def _mean_where_finite(values: np.ndarray) -> np.ndarray:
    """Return the means [K] of values [steps, K] over the steps at which they are finite; NaN where none is.

    A loss is not where the batch lacks the modality, or the step was skipped for it.
    """
    there = np.isfinite(values)
    total = np.where(there, values, 0).sum(axis=0, dtype=np.float64)
    return np.where(there.any(axis=0), total / np.maximum(there.sum(axis=0), 1), np.nan)


def _told(state: TrainState) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
    return state.first_bad, state.skipped, getattr(state.opt_state[0], "diagnostics", {})


@jax.jit
def _snapshot(tree: PyTree) -> PyTree:
    """Copy small arrays in one program: a call for each would cost the loop more than the copies do."""
    return jax.tree.map(jnp.copy, tree)


def _copy(tree: PyTree) -> PyTree:
    """Copy what outlives the next step, which is given the state's memory."""
    return jax.tree.map(jnp.copy, tree)
