"""Ctrl-C between two steps instead of anywhere."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any


class Interruption:
    """Holds a Ctrl-C back until `check`, where nothing is half done; any later one strikes at once.

    Raised anywhere, it may strike while a checkpoint's threads or an event file's queue wait for one another, and they,
    and with them the end of the program, would wait for ever; in a callback of the garbage collector Python would only
    print it. Does nothing outside the main thread, where Python takes no signals, nor where Ctrl-C is ignored. Inside
    another one it is that one. notice: told on standard error at the first Ctrl-C.

    >>> try:
    ...     with Interruption() as interruption:
    ...         signal.raise_signal(signal.SIGINT)
    ...         print("a checkpoint is saved")
    ...         interruption.check()
    ...         print("the next step")
    ... except KeyboardInterrupt:
    ...     print("interrupted")
    a checkpoint is saved
    interrupted
    """

    def __init__(self, notice: str = "") -> None:
        """Prepare; signals are taken from entering the context to leaving it."""
        self._notice = notice
        self._before: Callable[[int, FrameType | None], Any] | None = None
        self._outer: Interruption | None = None
        self._asked = self._pressed = False

    def __enter__(self) -> Interruption:
        """Take Ctrl-C over from the handler that is there."""
        before = signal.getsignal(signal.SIGINT)
        self._outer = (
            getattr(before, "__self__", None) if getattr(before, "__func__", None) is Interruption._ask else None
        )
        if self._outer is not None:
            return self
        # not callable: ignored, as for jobs in the background; or ends the process; or not Python's to put back
        if callable(before) and threading.current_thread() is threading.main_thread():
            self._before = before
            signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Give it back, and pass on what came after the last `check`, unless an error is under way already."""
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
        if error is None and self._outer is None:
            self.check()

    def check(self) -> None:
        """If Ctrl-C was pressed, do now what it would have done.

        Raises:
          KeyboardInterrupt: usually; what happens is up to the handler that was there.
        """
        if self._outer is not None:
            self._outer.check()
        elif self._asked and self._before is not None:
            self._asked = False
            self._before(signal.SIGINT, None)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        again, self._asked, self._pressed = self._pressed, True, True
        if again:
            self.check()
        elif self._notice:
            # not print: a signal may come while the same stream is being written
            os.write(sys.stderr.fileno(), f"\n{self._notice}\n".encode())
