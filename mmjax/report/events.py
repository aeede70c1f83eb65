"""Rows of a run as TensorBoard events; needs the extra [tensorboard] and no TensorFlow."""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from mmjax.train.journal import METRICS, read_rows
from mmjax.train.observer import Observer

EVENTS = "events"
"""Folder of the event files in a work folder."""


class EventsObserver(Observer):
    """Writes every number of every row under `workdir`/events as a scalar "kind/key", say "train/loss/fusion".

    The events are a view of the work folder's metrics.jsonl: when a run starts, the event files there are replaced by
    one that tells its rows again, so that after a resumption no step is told twice, whatever reads the events (what was
    told again has the wall time of the resumption). Events reach the disk at each validation row and when the observer
    is left as a context manager.

    Raises:
      ImportError: tensorboard is not installed (`events_observer` falls back to doing nothing).

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with EventsObserver(folder) as events:  # mmjax.fit(config, folder, observer=events) calls the two
    ...         events.started(("fusion", "audio"), total_steps=100, first_step=0)
    ...         events.row({"step": 10, "kind": "train", "loss/fusion": 2.0, "loss/audio": 2.5})
    ...     len(list(Path(folder).glob("events/*")))
    1
    """

    def __init__(self, workdir: str | Path):
        """Prepare to write below the work folder; it need not exist yet."""
        import tensorboard.summary  # noqa: F401  an extra; told here rather than in the middle of a run

        self.workdir = Path(workdir)
        self._writer: Any = None

    def __enter__(self) -> EventsObserver:
        """Nothing to do: the start of the run opens the file."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Write what is left and close the file."""
        self.close()

    def started(self, names: tuple[str, ...], total_steps: int, first_step: int) -> None:
        """Open a file, and tell again what the work folder says of the steps before `first_step`."""
        from tensorboard.summary import Writer

        self.close()  # of an earlier run with this observer
        folder, metrics = self.workdir / EVENTS, self.workdir / METRICS
        rows = read_rows(metrics) if metrics.exists() else []
        for old in folder.glob("events.out.tfevents.*") if metrics.exists() else ():
            old.unlink()
        self._writer = Writer(str(folder))
        for row in rows:
            self._write(row)
        self._writer.flush()

    def row(self, row: Mapping[str, Any]) -> None:
        """Write the row's numbers."""
        if self._writer is not None:
            self._write(row)
            if row["kind"] in ("validation", "test"):
                self._writer.flush()

    def close(self) -> None:
        """Write what is left and close the file; rows are not heard of until another run starts."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _write(self, row: Mapping[str, Any]) -> None:
        for key, value in row.items():
            if key != "step" and isinstance(value, numbers.Real):
                self._writer.add_scalar(f"{row['kind']}/{key}", float(value), row["step"])


def events_observer(workdir: str | Path) -> Observer:
    """Return an `EventsObserver`, or an observer that does nothing where tensorboard is not installed.

    >>> isinstance(events_observer("runs/example"), Observer)
    True
    """
    try:
        return EventsObserver(workdir)
    except ImportError:
        return Observer()
