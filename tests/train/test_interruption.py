"""Ctrl-C while a run trains."""

from __future__ import annotations

import signal
import threading

import jax
import numpy as np
import pytest

from mmjax.config import Config, TrainConfig
from mmjax.data import Planted, Splits
from mmjax.optim import UniformConfig
from mmjax.train.checkpoint import Checkpoints
from mmjax.train.interruption import Interruption
from mmjax.train.loop import fit
from mmjax.train.observer import Observer
from mmjax.train.optimizer import SGDConfig

CONFIG = Config(
    data=Planted(),
    method=UniformConfig(),
    optimizer=SGDConfig(learning_rate=0.05),
    train=TrainConfig(epochs=1, batch_size=64, devices=1, monitor_every=0, evaluate_every=4, checkpoint_every=4),
)


@pytest.fixture(scope="module")
def splits() -> Splits:
    return CONFIG.data.load()


@pytest.fixture(autouse=True)
def _usual_handler():
    """Where the tests run in the background, Ctrl-C is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def press() -> None:
    signal.raise_signal(signal.SIGINT)


def test_the_handler_that_was_there_is_called_at_the_check_and_put_back():
    seen = []
    before = signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))
    try:
        with Interruption() as interruption:
            press()
            assert not seen
            interruption.check()
            assert seen == [signal.SIGINT]
            interruption.check()
            assert seen == [signal.SIGINT]  # once a press
            press()
            assert seen == [signal.SIGINT] * 2  # the first one has been passed on: this one strikes at once
        with Interruption():
            press()
        assert seen == [signal.SIGINT] * 3  # what came after the last check is not lost
        seen.pop()
        press()
        assert seen == [signal.SIGINT] * 3
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_second_ctrl_c_strikes_at_once():
    reached = []
    with pytest.raises(KeyboardInterrupt), Interruption():
        press()
        reached.append("first")
        press()
        reached.append("second")
    assert reached == ["first"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_one_inside_another_is_that_one(capfd):
    with pytest.raises(KeyboardInterrupt), Interruption("stopping soon") as outer:
        with Interruption() as inner:
            press()
            assert signal.getsignal(signal.SIGINT) == outer._ask
        inner.check()
    assert "stopping soon" in capfd.readouterr().err
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_ctrl_c_while_the_first_is_being_seen_to_strikes_at_once():
    reached = []
    with pytest.raises(KeyboardInterrupt), Interruption() as interruption:
        try:
            press()
            interruption.check()
        finally:
            press()
            reached.append("cleaning up")
    assert not reached


def test_an_error_under_way_is_not_replaced():
    with pytest.raises(FloatingPointError), Interruption():
        press()
        raise FloatingPointError


@pytest.mark.parametrize("handler", [signal.SIG_IGN, signal.SIG_DFL])
def test_an_ignored_ctrl_c_stays_ignored(handler):
    before = signal.signal(signal.SIGINT, handler)
    try:
        with Interruption():
            assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_another_thread_leaves_signals_alone():
    handlers = []

    def work():
        with Interruption():
            handlers.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert handlers == [signal.default_int_handler]


@pytest.mark.parametrize("method", ["save_last", "save_best"])
def test_a_save_begun_is_finished(splits, tmp_path, monkeypatch, method):
    save = getattr(Checkpoints, method)

    def interrupted(self, *arguments):
        press()
        save(self, *arguments)

    straight = fit(CONFIG, splits=splits)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Checkpoints, method, interrupted)
        fit(CONFIG, tmp_path, splits=splits)
    folder = tmp_path / "checkpoints" / method.removeprefix("save_")
    assert [path.name for path in folder.iterdir()] == ["4"]  # whole, and there was no second
    resumed = fit(CONFIG, tmp_path, splits=splits)
    jax.tree.map(np.testing.assert_array_equal, resumed.variables, straight.variables)


def test_observers_hear_the_whole_row(splits, tmp_path):
    heard = []

    class Pressing(Observer):
        def row(self, row):
            if not heard:
                press()
            heard.append(row["kind"])

    with pytest.raises(KeyboardInterrupt):
        fit(CONFIG, tmp_path, splits=splits, observer=Pressing())
    assert heard == ["train", "validation"]  # those of the step in which it came, and no more
