"""A sweep's file: JSONL, a line that says whose it is, then a line a cell, appended as they come."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from mmjax.train.journal import first_difference, read_rows, write_whole

Row = dict[str, Any]


class SweepFile:
    """Opens `path` for appending; `rows` are those that it already holds. Without a path it keeps nothing.

    A last line cut off by a kill is dropped.

    Raises:
      ValueError: the file is of another sweep; the first field that differs is named.
      OSError: it cannot be written.
    """

    def __init__(self, path: str | Path | None, header: Row):
        """Read what is there, and check that its header is this one."""
        self.rows: list[Row] = []
        self._path = None if path is None else Path(path)
        self._file: IO[str] | None = None
        self._header = json.loads(json.dumps(header))
        if self._path is not None and self._path.exists():
            self._read(self._path)

    def _read(self, path: Path) -> None:
        found = read_rows(path)
        if not found:
            return
        difference = first_difference(found[0], self._header, "")
        if difference is not None:
            field, there, here = difference
            raise ValueError(
                f"{path} holds another sweep: {field} is {there!r} there and {here!r} here; choose another folder, or "
                "the same options to go on with it"
            )
        self.rows = found[1:]

    def __enter__(self) -> SweepFile:
        """Write the header and the rows whole, and go on from there."""
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self._path, "".join(json.dumps(row) + "\n" for row in (self._header, *self.rows)))
            self._file = self._path.open("a")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def write(self, row: Row) -> None:
        """Append one row, at once."""
        if self._file is not None:
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()
