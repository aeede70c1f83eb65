"""One check for the options of encoders and fusion heads."""

from __future__ import annotations

from typing import Any


def check_option(section: str, option: str, value: Any, ok: bool, right: str) -> None:
    """Raise ValueError naming section ("encoder", "fusion"), option and value unless `ok`; `right` says what would be.

    >>> check_option("encoder", "width", 0, False, "at least 1")
    Traceback (most recent call last):
    ...
    ValueError: encoder option width must be at least 1, got 0
    """
    if not ok:
        raise ValueError(f"{section} option {option} must be {right}, got {value!r}")
