"""Several observers as one."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack
from types import TracebackType
from typing import Any

from mmjax.train.observer import Observer


class Observers(Observer):
    """Tells several observers everything, in the order given; as a context manager enters and leaves its members.

    >>> class Printing(Observer):
    ...     def note(self, text):
    ...         print(text)
    >>> with Observers(Printing(), Printing()) as both:
    ...     both.note("resuming at step 7")
    resuming at step 7
    resuming at step 7
    """

    def __init__(self, *observers: Observer):
        """Join `observers`; none at all is allowed."""
        self.observers = observers
        self._stack = ExitStack()

    def __enter__(self) -> Observers:
        """Enter the members that are context managers."""
        with ExitStack() as stack:  # should one fail to enter, those before it are left
            for observer in self.observers:
                if isinstance(observer, AbstractContextManager):
                    stack.enter_context(observer)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Leave the members, the last first, whatever one of them raises."""
        self._stack.__exit__(kind, error, traceback)

    def started(self, names: tuple[str, ...], total_steps: int, first_step: int) -> None:
        """Pass it on."""
        for observer in self.observers:
            observer.started(names, total_steps, first_step)

    def compiled(self, seconds: float) -> None:
        """Pass it on."""
        for observer in self.observers:
            observer.compiled(seconds)

    def row(self, row: Mapping[str, Any]) -> None:
        """Pass it on."""
        for observer in self.observers:
            observer.row(row)

    def note(self, text: str) -> None:
        """Pass it on."""
        for observer in self.observers:
            observer.note(text)
