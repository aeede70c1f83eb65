"""When something is not finite: the error that ends a run, and what and whose it was."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

PyTree = Any
Quantity = Literal["loss", "gradient", "state"]


class NonFiniteError(FloatingPointError):
    """A loss, a gradient or the state became NaN or infinite; `.step`, `.quantity` and `.names` say where.

    >>> print(NonFiniteError(7, "gradient", ("fusion", "audio"), checkpoint=4))  # doctest: +ELLIPSIS
    the gradient of fusion and audio is not finite at step 7; the checkpoint of step 4 is kept. Lower the learning rate ...
    """

    def __init__(
        self,
        step: int,
        quantity: Quantity,
        names: tuple[str, ...],
        checkpoint: int | None,
        saving: bool = True,
        skipped: int = 0,
    ):
        """names: the objectives whose loss or gradient (its length) it is, or the arrays of the state.

        No names: the combined gradient is not finite though every objective's is.
        checkpoint: the last step saved. saving: False where the run has no work folder to save anything in. skipped: how
        often in the stage something was not finite before, at a step or in a method's pass.
        """
        self.step, self.quantity, self.names = step, quantity, names
        kept = "no checkpoint had been saved yet" if saving else "nothing is kept, as the run has no work folder"
        if checkpoint is not None:
            kept = f"the checkpoint of step {checkpoint} is kept"
        what = "the combined gradient is not finite, though every objective's is,"
        if quantity == "state":
            what = f"{names[0]}{f' (and {len(names) - 1} more)' * (len(names) > 1)} is not finite"
        elif names:
            *others, last = names
            what = f"the {quantity} of {', '.join(others)}{' and ' * bool(others)}{last} is not finite"
        before = f", after {skipped} skipped" if skipped else ""
        super().__init__(f"{what} at step {step}{before}; {kept}. Lower the learning rate or check the data.")


def cause_of_halt(
    names: Sequence[str],
    first_bad: np.ndarray,
    losses: np.ndarray,
    broken: tuple[str, ...],
    norms: Callable[[], Mapping[str, np.ndarray]],
) -> tuple[Quantity, tuple[str, ...]]:
    """Return what was not finite at the step that halted a run, and whose: as `NonFiniteError` takes them.

    names: the objectives [K]. first_bad: int [K + 1], of the state. losses: [K], the step's; NaN where an objective did not
    count. broken: arrays of the model that are not finite: then the step before has done it, by too large an update.
    norms: measures the lengths of the objectives' gradients, {name: scalar}; called if nothing else is to blame.

    >>> first_bad, losses = np.array([-1, -1, 3]), np.array([0.5, 0.25])
    >>> cause_of_halt(("fusion", "a"), first_bad, losses, (), lambda: {"fusion": np.inf, "a": 1.0})
    ('gradient', ('fusion',))
    """
    if broken:
        return "state", broken
    bad = first_bad[:-1] == first_bad.max()
    if bad.any():
        return "loss", tuple(name for name, own in zip(names, bad, strict=True) if own)
    lengths = norms()
    counted = zip(names, np.isfinite(losses), strict=True)
    return "gradient", tuple(name for name, counts in counted if counts and not np.isfinite(lengths[name]))


@jax.jit
def unsoundness(variables: PyTree) -> PyTree:
    """Return 0 for every array that is finite, 1 if it is infinite somewhere, 2 if NaN.

    An array may be infinite by intention (a running minimum, a mask): compare with what it was at first.
    """

    def of(leaf: Array) -> Array:
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            return jnp.zeros((), jnp.int32)
        return jnp.where(jnp.any(jnp.isnan(leaf)), 2, jnp.where(jnp.any(jnp.isinf(leaf)), 1, 0))

    return jax.tree.map(of, variables)


def unsound_arrays(variables: PyTree) -> dict[str, int]:
    """Return the arrays that are not finite, {path: 1 or 2}; see `unsoundness`.

    >>> unsound_arrays({"params": {"w": jnp.array([1.0, jnp.inf]), "b": jnp.zeros(2)}})
    {'params/w': 1}
    """
    found = jax.tree.leaves_with_path(jax.device_get(unsoundness(variables)))
    return {jax.tree_util.keystr(path, simple=True, separator="/"): int(how) for path, how in found if how}


def broken_arrays(variables: PyTree, at_first: Mapping[str, int]) -> tuple[str, ...]:
    """Return the paths of the arrays that are worse than they were at first; at_first: `unsound_arrays` then."""
    return tuple(name for name, how in unsound_arrays(variables).items() if how > at_first.get(name, 0))
