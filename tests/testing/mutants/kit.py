"""What the galleries are made of: the entry, the checks that kill, and combiners with one thing wrong."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mmjax.optim.gradients import count_objectives, stacked, weighted_sum
from mmjax.testing import BrokenPropertiesError, check_combiner

Make = Callable[[int], optax.GradientTransformation]
Check = Callable[[Make], None]


class Mutant(NamedTuple):
    """make: K -> the method with one thing wrong. killed_by: raises AssertionError on it, and not on `original`."""

    make: Make
    killed_by: Check
    original: Make


class Crash(Exception):
    """A mutant fell over before a property could be seen to fail: it shows nothing."""


@lru_cache  # once: the classes of its states must be the same at every call
def edited(function: Any, old: str, new: str) -> Any:
    """Return the function as its module would have it with `old` replaced by `new` in the source.

    Raises ValueError unless the source holds `old` exactly once: a mutant must not come to be the original unseen.
    """
    source = inspect.getsource(sys.modules[function.__module__])
    if source.count(old) != 1:
        raise ValueError(f"{function.__module__} has {source.count(old)} times {old!r}; a mutant needs exactly one")
    # The module's own name: its dataclasses look their annotations up there.
    namespace: dict[str, Any] = {"__name__": function.__module__}
    exec(compile(source.replace(old, new), f"<{function.__name__} with {new!r}>", "exec"), namespace)
    return namespace[function.__name__]


def breaks(name: str, **arguments: Any) -> Check:
    """Return the check that runs one property of `check_combiner`, by default with three objectives."""

    def check(make: Make) -> None:
        try:
            check_combiner(make, {name} - _ALWAYS, only=[name], **({"num_objectives": (3,)} | arguments))
        except BrokenPropertiesError as error:
            if error.violations[0].problem is None and not arguments.get("crashes"):
                raise Crash(str(error)) from error
            raise

    return check


_ALWAYS = {
    "finite",
    "one_compilation",
    "donatable",
    "extra_arguments",
    "lazy_as_stacked",
    "absent_objectives",
    "bfloat16",
    "randomness",
    "devices",
}


class State(NamedTuple):
    """The simplest state: the last weights."""

    weights: jax.Array


def weighing(weigh: Callable[..., jax.Array], *, masked: bool = True) -> Make:
    """K -> the combiner Σ_k w_k g_k with w = weigh(values [K], active bool[K]).

    masked: leave inactive objectives out by selection; else by a weight of 0 alone.
    """

    def make(num_objectives: int) -> optax.GradientTransformationExtraArgs:
        def update(grads, state, params=None, *, values=None, active=None, **extra_args):
            k = count_objectives(grads)
            here = jnp.ones(k, bool) if active is None else active
            weights = weigh(values, here)
            return weighted_sum(grads, weights, active if masked else None), State(weights)

        return optax.GradientTransformationExtraArgs(lambda params: State(jnp.zeros(num_objectives)), update)

    return make


def on_rows(make: Make, change: Callable[..., Any]) -> Make:
    """The method on changed gradients: change(rows [K, ...] of a leaf) -> rows."""
    return before(make, lambda rows, extra: (jax.tree.map(change, rows), extra))


def before(make: Make, change: Callable[[Any, dict[str, Any]], tuple[Any, dict[str, Any]]]) -> Make:
    """The method on change(stacked gradients, extra arguments)."""

    def mutant(num_objectives: int) -> optax.GradientTransformationExtraArgs:
        inner = optax.with_extra_args_support(make(num_objectives))

        def update(grads, state, params=None, **extra_args):
            touching = extra_args.get("touching")
            if touching is None and not isinstance(grads, dict):
                extra_args["touching"] = grads.touching
            rows, extra_args = change(stacked(grads), extra_args)
            return inner.update(rows, state, params, **extra_args)

        return optax.GradientTransformationExtraArgs(inner.init, update)

    return mutant


def after(make: Make, change: Callable[[Any, Any], tuple[Any, Any]]) -> Make:
    """The method with change(update, state) behind it."""

    def mutant(num_objectives: int) -> optax.GradientTransformationExtraArgs:
        inner = optax.with_extra_args_support(make(num_objectives))

        def update(grads, state, params=None, **extra_args):
            return change(*inner.update(grads, state, params, **extra_args))

        return optax.GradientTransformationExtraArgs(inner.init, update)

    return mutant


def with_options(change: Callable[[dict[str, Any]], dict[str, Any]], make: Make) -> Make:
    """The method on changed extra arguments, whatever form the gradients have."""

    def mutant(num_objectives: int) -> optax.GradientTransformationExtraArgs:
        inner = optax.with_extra_args_support(make(num_objectives))

        def update(grads, state, params=None, **extra_args):
            return inner.update(grads, state, params, **change(extra_args))

        return optax.GradientTransformationExtraArgs(inner.init, update)

    return mutant
