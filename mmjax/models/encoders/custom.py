"""An encoder of one's own, by import path."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from mmjax.config import EncoderConfig
from mmjax.models.adapters import PureEncoder

_PURE, _INITIALISE = ("params", "x", "train", "rngs"), ("key", "x")  # what a pure function is called with


@dataclass(frozen=True, kw_only=True)
class CustomConfig(EncoderConfig):
    """A linen module, a pure function, or a factory of modules, found by its import path.

    Example:
    >>> config = CustomConfig(path="mmjax.models:MLP", options={"width": 8})
    >>> config.build().width
    8
    >>> CustomConfig(path="mmjax.models:MPL").validate()
    Traceback (most recent call last):
        ...
    ValueError: encoder option path: cannot find mmjax.models:MPL: module 'mmjax.models' has no attribute 'MPL'
    """

    name: str = "custom"
    path: str = ""
    """`package.module:Name` of a linen module (x, train) -> features; of a function (params, x, train, rngs) ->
    features, if `initialise` is set; or of a function that returns a linen module (an adapter of mmjax.models)."""
    initialise: str = ""
    """`package.module:name` of a function (key, x) -> params, for a pure function."""
    options: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the module, of both functions, or of the factory; plain values."""

    def validate(self) -> None:
        """Raise ValueError for a path that names nothing, or options that what it names does not take."""
        target = _find("path", self.path)
        _check_options(self.path, target, self.options, given=len(_PURE) if self.initialise else 0)
        if self.initialise:
            _check_options(self.initialise, _find("initialise", self.initialise), self.options, given=len(_INITIALISE))

    def build(self, *, dtype: Any = jnp.float32, axis_name: str | None = None) -> nn.Module:
        """Make the module; a linen module with fields `dtype` and `axis_name` gets the model's."""
        self.validate()
        target = _find("path", self.path)
        if self.initialise:
            initialise = _find("initialise", self.initialise)
            return PureEncoder(partial(initialise, **self.options), partial(target, **self.options))
        given = dict(self.options)
        if isinstance(target, type) and issubclass(target, nn.Module):
            fields = {f.name for f in dataclasses.fields(target)}
            given = {k: v for k, v in (("dtype", dtype), ("axis_name", axis_name)) if k in fields} | given
        module = target(**given)
        if not isinstance(module, nn.Module):
            raise ValueError(
                f"encoder option path: {self.path} gave a {type(module).__name__}, not a linen module; "
                "for a pure function (params, x, train, rngs) set initialise too"
            )
        return module


def _find(option: str, path: str) -> Any:
    where, colon, name = path.partition(":")
    if not (where and colon and name):
        raise ValueError(f"encoder option {option} must be of the form package.module:Name, got {path!r}")
    try:
        found = getattr(importlib.import_module(where), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"encoder option {option}: cannot find {path}: {error}") from error
    if not callable(found):
        raise ValueError(f"encoder option {option}: {path} is a {type(found).__name__}, nothing that can be called")
    return found


def _check_options(path: str, target: Any, options: dict[str, Any], given: int) -> None:
    """Raise ValueError for options that `target` does not take, or lacks beside `given` positional arguments."""
    signature = inspect.signature(target)
    parameters = signature.parameters
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        unknown = sorted(set(options) - set(parameters))
        if unknown:
            raise ValueError(f"encoder option options: {path} takes no {unknown[0]!r}, only {list(parameters)}")
    try:
        signature.bind(*[None] * given, **options)
    except TypeError as error:
        raise ValueError(f"encoder option options: {path}: {error}") from error
