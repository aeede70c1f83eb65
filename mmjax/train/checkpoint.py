"""Checkpoints by Orbax: the last state, to resume from, and the best on validation, to use."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from mmjax.train.state import TrainState

PyTree = Any


class Checkpoints:
    """Two series under `folder`: `last` (state and the loop's bookkeeping) and `best` (what predictions need).

    Saving is asynchronous; a save that was cut off leaves a temporary folder that is ignored, and the one before it
    stays until the new one is whole. What the operating system refuses (a full disk) is an `OSError`, raised by the call
    that meets it, which may be a later one.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        # the one before the newest is kept too: a kill may strike while the newest replaces it
        self._last = ocp.CheckpointManager(folder / "last", options=ocp.CheckpointManagerOptions(max_to_keep=2))
        self._best = ocp.CheckpointManager(folder / "best")
        self._named: tuple[int, ...] = ()  # the best steps that the two last checkpoints need when they are restored

    def save_last(self, state: TrainState, loop: Mapping[str, Any]) -> None:
        """Save everything a run needs to go on from this step. loop: plain JSON values, "best_step" among them."""
        with _system_errors(self._folder):
            self._best.wait_until_finished()  # a checkpoint must not be whole before the best model that it names
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), loop=ocp.args.JsonSave(dict(loop)))
        self._save(self._last, int(state.step), args)
        self._named = (*self._named[-1:], loop["best_step"])

    def save_best(self, step: int, variables: PyTree) -> None:
        """Save the variables of the best model so far."""
        self._save(self._best, step, ocp.args.Composite(variables=ocp.args.StandardSave(variables)))
        # the newest is still being written, and the one before it is what there is until then
        for old in sorted(self._best.all_steps())[:-2]:
            if old not in self._named:
                self._best.delete(old)

    def _save(self, manager: ocp.CheckpointManager, step: int, args: ocp.args.Composite) -> None:
        # An existing step is left alone (save would return False): a resumed run reproduces it bit for bit.
        if step not in manager.all_steps():
            with _system_errors(self._folder):
                manager.save(step, args=args)

    def forget_best_after(self, step: int) -> None:
        """Delete the best models later than `step`, from where a run goes on.

        On other devices its numbers part from theirs, and what is left would be taken for the best of all.
        """
        with _system_errors(self._folder):
            self._best.wait_until_finished()  # to delete what is being written would break the writing
        for later in self._best.all_steps():
            if later > step:
                self._best.delete(later)

    def last_step(self) -> int | None:
        """Return the newest step saved whole, or None; waits for one that is being written."""
        with _system_errors(self._folder):
            self._last.wait_until_finished()
        return self._last.latest_step()

    def best_step(self) -> int | None:
        """Return the newest best step saved whole, or None."""
        return self._best.latest_step()

    def restore_last(self, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """Return the newest state, placed as `like` is, and the loop's bookkeeping."""
        args = ocp.args.Composite(state=ocp.args.StandardRestore(_abstract(like)), loop=ocp.args.JsonRestore())
        restored = self._last.restore(self._last.latest_step(), args=args)
        self._named = (restored["loop"]["best_step"],)
        return restored["state"], restored["loop"]

    def restore_best(self, like: PyTree, step: int | None = None) -> PyTree:
        """Return the variables of the best model (or those saved at `step`), placed as `like` is."""
        args = ocp.args.Composite(variables=ocp.args.StandardRestore(_abstract(like)))
        return self._best.restore(self._best.latest_step() if step is None else step, args=args)["variables"]

    def close(self) -> None:
        """Finish what is being written."""
        with _system_errors(self._folder), ExitStack() as each:
            for manager in (self._last, self._best):
                each.callback(manager.close)
                each.callback(manager.wait_until_finished)


@contextmanager
def _system_errors(folder: Path) -> Iterator[None]:
    """Turn what the storage library makes of an error of the system, a ValueError with its number in the text, back."""
    try:
        yield
    except ValueError as error:
        number = re.search(r"os_error_code='(\d+)'", str(error))
        if number is None:
            raise
        code = int(number[1])
        raise OSError(code, os.strerror(code), str(folder)) from error


def _abstract(tree: PyTree) -> PyTree:
    # with shardings: without them Orbax neither keeps NamedTuples nor knows where the arrays go
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)
