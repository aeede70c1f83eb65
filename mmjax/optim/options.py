"""Checks of options, shared by all methods. Only concrete numbers are checked: traced ones and schedules pass."""

from __future__ import annotations

import difflib
import numbers
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

Scale = Literal["mean", "sum"]
SCALES = ("mean", "sum")


def _known(value: Any) -> np.ndarray | None:
    """Return a number or array as float64, JAX's among them; None for what is traced, a schedule or no number."""
    if isinstance(value, jax.core.Tracer) or not isinstance(value, numbers.Real | np.ndarray | Array):
        return None
    return np.asarray(value, float)


def check_positive(name: str, value: Any) -> None:
    """Raise ValueError if `value` is a concrete number that is not finite and above 0.

    >>> check_positive("penalty", -1.0)
    Traceback (most recent call last):
    ...
    ValueError: penalty must be a finite number > 0, got -1.0
    """
    known = _known(value)
    if known is not None and not np.all(np.isfinite(known) & (known > 0)):
        raise ValueError(f"{name} must be a finite number > 0, got {value}")


def check_at_least(name: str, value: Any, least: float) -> None:
    """Raise ValueError if `value` is a concrete number that is not finite and at least `least`.

    >>> check_at_least("window", 0, 1)
    Traceback (most recent call last):
    ...
    ValueError: window must be a finite number >= 1, got 0
    """
    known = _known(value)
    if known is not None and not np.all(np.isfinite(known) & (known >= least)):
        raise ValueError(f"{name} must be a finite number >= {least}, got {value}")


def check_fraction(name: str, value: Any) -> None:
    """Raise ValueError if `value` is a concrete number outside [0, 1).

    >>> check_fraction("c", 1.0)
    Traceback (most recent call last):
    ...
    ValueError: c must be a number in [0, 1), got 1.0
    """
    known = _known(value)
    if known is not None and not np.all((known >= 0) & (known < 1)):
        raise ValueError(f"{name} must be a number in [0, 1), got {value}")


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """Raise ValueError if `value` is none of `choices`; it names the nearest.

    >>> check_choice("scope", "share", ("shared", "all"))
    Traceback (most recent call last):
    ...
    ValueError: scope must be one of shared, all; got 'share' (did you mean shared?)
    """
    if value not in choices:
        nearest = difflib.get_close_matches(str(value), choices, 1)
        hint = f" (did you mean {nearest[0]}?)" if nearest else ""
        raise ValueError(f"{name} must be one of {', '.join(choices)}; got {value!r}{hint}")


def by_objective(name: str, given: Mapping[str, float], names: Sequence[str], default: float) -> tuple[float, ...]:
    """Return the value given for each of `names`, `default` where there is none.

    Raises ValueError for an objective that does not exist.

    >>> by_objective("method.ideal", {"image": 0.5}, ("fusion", "audio", "image"), 0.0)
    (0.0, 0.0, 0.5)
    """
    for unknown in sorted(set(given) - set(names)):
        check_choice(f"{name}: an objective", unknown, names)
    return tuple(float(given.get(objective, default)) for objective in names)


def check_key(key: Any, method: str) -> Array:
    """Return `key`, one of `jax.random.key` (or `PRNGKey`). Raises ValueError if it is missing, or no key."""
    if key is None:
        raise ValueError(f"{method} draws at random: call update(grads, state, params, key=key), another key each step")
    dtype = getattr(key, "dtype", None)
    typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    # without a type of its own, a key is 2 numbers (threefry) or 4 (rbg, unsafe_rbg)
    if not (jnp.shape(key) == () if typed else dtype == jnp.uint32 and jnp.shape(key) in ((2,), (4,))):
        what = type(key).__name__ if dtype is None else f"{dtype}{list(jnp.shape(key))}"
        raise ValueError(f"key must be one key, as from jax.random.key(0); got {what}")
    return key


def check_num_objectives(value: int | None) -> None:
    """Raise ValueError unless `value` is None or an integer >= 1."""
    if value is not None and (not isinstance(value, numbers.Integral) or value < 1):
        raise ValueError(f"num_objectives must be None or an integer >= 1, got {value!r}")


def at_step(option: optax.ScalarOrSchedule, count: Array) -> Array:
    """Return the option's value at this step: itself, or the schedule's."""
    return jnp.asarray(option(count) if callable(option) else option, jnp.float32)


def check_values(values: Any, num_objectives: int, method: str) -> Array:
    """Return `values` as float32 [K].

    Raises ValueError if they are missing or of the wrong length.
    """
    if values is None:
        raise ValueError(f"{method} weighs by the losses: call update(grads, state, params, values=values)")
    values = jnp.asarray(values, jnp.float32)
    if values.shape != (num_objectives,):
        raise ValueError(f"values must have shape ({num_objectives},), one loss an objective; got {values.shape}")
    return values


def check_active(active: Any, num_objectives: int) -> Array | None:
    """Return `active` as bool [K] or None. Raises ValueError if its length is wrong."""
    if active is None:
        return None
    active = jnp.asarray(active, bool)
    if active.shape != (num_objectives,):
        raise ValueError(f"active must have shape ({num_objectives},), one flag an objective; got {active.shape}")
    return active
