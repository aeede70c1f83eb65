"""A run on the terminal while it goes: a spinner, a bar, the latest numbers; plain lines where there is none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.spinner import Spinner
from rich.text import Text

from mmjax.report.labels import metric_title, rounded_seconds, score_of, task_kind, written
from mmjax.train.observer import Observer


class ProgressObserver(Observer):
    """Shows a run; use it as a context manager, so that the terminal is given back whatever ends the run.

    On a terminal: a spinner while programs are compiled, the time that took, then a bar with steps, steps/s and the
    time left, above each objective's loss and last validation score. Elsewhere (a file, a notebook): one plain line at
    each validation.

    >>> import io
    >>> with ProgressObserver(Console(file=io.StringIO())) as progress:
    ...     progress.started(("fusion", "audio"), total_steps=100, first_step=0)
    """

    def __init__(self, console: Console | None = None):
        """Prepare. console: standard error if None, so that results on standard output stay clean."""
        self.console = Console(stderr=True) if console is None else console
        self._display: _Bar | _Lines | None = None

    def __enter__(self) -> ProgressObserver:
        """Nothing to do: the display opens when the run starts."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the display."""
        self.close()

    def started(self, names: tuple[str, ...], total_steps: int, first_step: int) -> None:
        """Open the display."""
        self.close()
        make = _Bar if self.console.is_terminal else _Lines
        self._display = make(self.console, names, total_steps, first_step)

    def compiled(self, seconds: float) -> None:
        """Say how long it took, and begin the bar."""
        self.console.print(f"compiled in {rounded_seconds(seconds)}", highlight=False)
        if self._display is not None:
            self._display.compiled()

    def row(self, row: Mapping[str, Any]) -> None:
        """Show the row's numbers; the test row ends the display."""
        if self._display is not None:
            self._display.row(row)
        if row["kind"] == "test":
            self.close()

    def note(self, text: str) -> None:
        """Print the note, above the bar."""
        self.console.print(text, highlight=False, markup=False)

    def close(self) -> None:
        """Give the terminal back; what the bar showed last stays."""
        display, self._display = self._display, None
        if display is not None:
            display.close()


class _Latest:
    """The numbers that the rows so far leave to show."""

    def __init__(self, names: Sequence[str]):
        self.names = names
        self.losses: dict[str, str] = {}
        self.scores: dict[str, str] = {}
        self.score_title = "score"
        self.rate = ""

    def take(self, row: Mapping[str, Any]) -> None:
        if row["kind"] == "train":
            self.losses = {n: written("loss", row[f"loss/{n}"]) for n in self.names if f"loss/{n}" in row}
            self.rate = f"{row['steps_per_second']:.1f} steps/s"
        elif row["kind"] == "validation" and (kind := task_kind(row)) is not None:
            score = score_of(kind)
            self.score_title = f"validation {metric_title(score)}"
            self.scores = {n: written(score, row[f"{n}/{score}"]) for n in self.names if f"{n}/{score}" in row}


class _Lines:
    """For a console that is no terminal."""

    def __init__(self, console: Console, names: Sequence[str], total: int, first: int):
        self.console, self.total = console, total
        self.latest = _Latest(names)

    def compiled(self) -> None:
        """Nothing changes."""

    def close(self) -> None:
        """Nothing is open."""

    def row(self, row: Mapping[str, Any]) -> None:
        latest = self.latest
        latest.take(row)
        if row["kind"] != "validation":
            return
        parts = [f"step {row['step']}/{self.total}"]
        for title, values in (("loss", latest.losses), (latest.score_title, latest.scores)):
            if values:
                parts.append(f"{title}: " + ", ".join(f"{name} {value}" for name, value in values.items()))
        parts.append(latest.rate)
        # a line stays one line, however long: it is for files and pipes
        self.console.print(" | ".join(filter(None, parts)), highlight=False, markup=False, soft_wrap=True)


class _Bar:
    """For a terminal: rich redraws it in a thread of its own, so that a row costs the loop next to nothing."""

    def __init__(self, console: Console, names: Sequence[str], total: int, first: int):
        self.console, self.total, self.first = console, total, first
        self.latest = _Latest(names)
        self.progress: Progress | None = None
        self.task = TaskID(0)
        # ASCII frames, for terminals without Unicode; transient, for it says nothing once it is over
        self.live = Live(Spinner("line", "compiling"), console=console, refresh_per_second=8, transient=True)
        if first < total:
            self.live.start(refresh=True)  # drawn now, since tracing may hold the drawing thread up

    def compiled(self) -> None:
        self.live.stop()
        self.progress = Progress(
            TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
            BarColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(compact=True),
            TextColumn("left"),
            console=self.console,
        )
        self.task = self.progress.add_task("", total=self.total, completed=self.first, rate="")
        self.live = Live(self._picture(), console=self.console, refresh_per_second=8)
        self.live.start()

    def row(self, row: Mapping[str, Any]) -> None:
        self.latest.take(row)
        if self.progress is None:
            return
        if row["kind"] in ("train", "validation"):
            self.first = row["step"]  # where the bar goes on after the programs of another stage were compiled
            self.progress.update(self.task, completed=row["step"], rate=self.latest.rate)
            self.live.update(self._picture())

    def close(self) -> None:
        self.live.stop()  # draws once more first

    def _picture(self) -> RenderableType:
        assert self.progress is not None
        latest = self.latest
        below = [
            _line(title, values)
            for title, values in (("loss", latest.losses), (latest.score_title, latest.scores))
            if values
        ]
        return Group(self.progress, *below)


def _line(title: str, values: Mapping[str, str]) -> RenderableType:
    """Name and value of each objective side by side, on as many lines as they need; a pair is never broken."""
    cells = [Text(title, style="dim")]
    cells += [Text.assemble((name, "cyan"), " ", (value, "bold")) for name, value in values.items()]
    return Columns(cells, padding=(0, 3))
