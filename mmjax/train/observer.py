"""What a training run tells whoever watches: a progress bar, an event file, a notebook."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Observer:
    """Hears of a run as it goes; every method does nothing unless overridden. Its speed is the loop's."""

    def started(self, names: tuple[str, ...], total_steps: int, first_step: int) -> None:
        """The run begins, or goes on at `first_step`. names: the objectives."""

    def compiled(self, seconds: float) -> None:
        """All programs of the hot loop are compiled."""

    def row(self, row: Mapping[str, Any]) -> None:
        """A line of metrics.jsonl: "step", "kind" ("train", "validation", "gradients", "stage", "test") and numbers."""

    def note(self, text: str) -> None:
        """Something worth a line: early stopping, a resumed run."""
