"""A run on the terminal, and where there is none."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from mmjax.report import Observers, ProgressObserver
from mmjax.train.observer import Observer
from report.rows import NAMES, run_rows

SHOW_CURSOR, HIDE_CURSOR = "\x1b[?25h", "\x1b[?25l"


def console(terminal: bool, width: int = 100) -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    return Console(file=file, force_terminal=terminal, width=width, color_system=None, _environ={}), file


def last_picture(text: str) -> list[str]:
    """Lines of the last drawing: what follows the last clearing of a line."""
    end = re.split(r"\x1b\[2K", text)[-1]
    return [re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", line).strip() for line in end.splitlines()]


def test_plain_lines_one_a_validation():
    where, file = console(terminal=False, width=40)
    with ProgressObserver(where) as progress:
        progress.started(NAMES, 40, 0)
        progress.compiled(3.21)
        for row in run_rows():
            progress.row(row)
        progress.note("stopped early [at] step 40")
    assert file.getvalue().splitlines() == [
        "compiled in 3.2 s",
        "step 20/40 | loss: fusion 0.1000, audio 0.1500, image 0.2000 | validation accuracy: fusion 82.0 %, audio 77.0 %, "
        "image 72.0 % | 120.0 steps/s",
        "step 40/40 | loss: fusion 0.05000, audio 0.07500, image 0.1000 | validation accuracy: fusion 84.0 %, "
        "audio 79.0 %, image 74.0 % | 140.0 steps/s",
        "stopped early [at] step 40",
    ]


def test_the_score_has_the_tasks_name():
    where, file = console(terminal=False)
    progress = ProgressObserver(where)
    progress.started(NAMES, 40, 0)
    for row in run_rows(score="r2", loss="mse"):
        progress.row(row)
    assert "validation R2: fusion 0.8200" in file.getvalue()


def test_a_terminal_sees_a_spinner_then_the_bar_with_all_numbers():
    where, file = console(terminal=True)
    with ProgressObserver(where) as progress:
        progress.started(NAMES, 80, 0)
        assert "compiling" in file.getvalue()
        progress.compiled(3.21)
        assert "compiled in 3.2 s" in file.getvalue()
        for row in run_rows()[:-1]:
            progress.row(row)
    bar, losses, scores = last_picture(file.getvalue())[:3]
    assert bar.startswith("step 40/80") and "140.0 steps/s" in bar and re.search(r"\d\d:\d\d left", bar)
    assert losses.split() == "loss fusion 0.05000 audio 0.07500 image 0.1000".split()
    assert scores.split() == "validation accuracy fusion 84.0 % audio 79.0 % image 74.0 %".split()


def test_a_resumed_bar_starts_where_the_run_does():
    where, file = console(terminal=True)
    with ProgressObserver(where) as progress:
        progress.started(NAMES, 80, 60)
        progress.compiled(1.0)
    assert last_picture(file.getvalue())[0].startswith("step 60/80")


def test_many_objectives_wrap_and_none_is_cut():
    modalities = [f"modality_{k}" for k in range(8)]
    where, file = console(terminal=True, width=60)
    with ProgressObserver(where) as progress:
        progress.started(("fusion", *modalities), 40, 0)
        progress.compiled(1.0)
        for row in run_rows(modalities)[:-1]:
            progress.row(row)
    picture = "\n".join(last_picture(file.getvalue()))
    assert all(picture.count(f"{name} ") == 2 for name in modalities)


@pytest.mark.parametrize("error", [KeyboardInterrupt, FloatingPointError])
@pytest.mark.parametrize("compiled", [False, True])
def test_the_terminal_is_given_back_whatever_happens(error, compiled):
    where, file = console(terminal=True)
    with pytest.raises(error), ProgressObserver(where) as progress:
        progress.started(NAMES, 40, 0)
        if compiled:
            progress.compiled(1.0)
        raise error
    text = file.getvalue()
    assert text.count(HIDE_CURSOR) == text.count(SHOW_CURSOR) == 1 + compiled
    assert where._live_stack == []  # no thread of rich's draws on


def test_the_test_row_ends_the_display_and_another_run_may_follow():
    where, file = console(terminal=True)
    progress = ProgressObserver(where)
    for _ in range(2):
        progress.started(NAMES, 40, 0)
        progress.compiled(1.0)
        for row in run_rows():
            progress.row(row)
        assert where._live_stack == []
    assert file.getvalue().count("compiled in 1.0 s") == 2


def test_a_run_that_is_finished_already_shows_no_spinner():
    where, file = console(terminal=True)
    with ProgressObserver(where) as progress:
        progress.started(NAMES, 40, 40)
        progress.note("resuming at step 40")
    assert file.getvalue() == "resuming at step 40\n"


class _Heard(Observer):
    def __init__(self):
        self.told, self.entered, self.left = [], 0, []

    def __enter__(self):
        self.entered += 1
        return self

    def __exit__(self, kind, error, traceback):
        self.left.append(kind)

    def started(self, names, total_steps, first_step):
        self.told.append((names, total_steps, first_step))

    def compiled(self, seconds):
        self.told.append(seconds)

    def row(self, row):
        self.told.append(row)

    def note(self, text):
        self.told.append(text)


def test_observers_tell_and_close_all_and_bear_with_one_that_cannot_be_entered():
    a, b = _Heard(), _Heard()
    with pytest.raises(KeyboardInterrupt), Observers(a, Observer(), b) as observers:
        observers.started(NAMES, 4, 1)
        observers.compiled(2.0)
        observers.row({"step": 2})
        observers.note("well")
        raise KeyboardInterrupt
    assert a.told == b.told == [(NAMES, 4, 1), 2.0, {"step": 2}, "well"]
    assert (a.entered, a.left) == (b.entered, b.left) == (1, [KeyboardInterrupt])
