"""Options of the command line, `--section.field VALUE`, on top of a configuration.

Two passes. The first puts the kinds in place that the options name (`--method.name uniform`, `--optimizer.schedule.name
cosine`, an encoder for a modality that has none yet), because a kind decides which fields there are; it also finds
mistyped fields. The second leaves types, values and `--help` to tyro.
"""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import tyro

from mmjax.config import Config, ModelConfig
from mmjax.registry import KINDS

HELP = ("-h", "--help")

Make = Callable[[type, Any], Any]
"""(base class of a section, what is there now) -> what is to be there."""


def override(config: Config, arguments: Sequence[str], prog: str = "mmjax train CONFIG") -> Config:
    """Return `config` with the options in `arguments` applied.

    arguments: ("--section.field", "value", ...), also "--section.field=value"; "-" and "_" in names are the same.
    Changing a kind (`--method.name`) takes the new kind's defaults, except for the fields that all kinds of the section
    have (an optimizer's learning rate, clipping and schedule; the modalities of the data).

    Raises:
      ValueError: an unknown field or kind; the nearest right one is named.
      SystemExit: tyro's, for a value of the wrong type (2) and after `--help` (0).

    >>> from mmjax.data import AvDigits
    >>> from mmjax.optim import UniformConfig
    >>> from mmjax.train.optimizer import AdamConfig
    >>> config = Config(data=AvDigits(), method=UniformConfig(), optimizer=AdamConfig())
    >>> override(config, ["--method.name", "mimo", "--method.penalty", "3"]).method.penalty
    3.0
    >>> override(config, ["--train.sed", "3"])
    Traceback (most recent call last):
    ...
    ValueError: unknown option --train.sed; did you mean --train.seed?
    """
    arguments = [part for argument in arguments for part in _split(argument)]
    wants_help = any(argument in HELP for argument in arguments)
    if wants_help:  # a section that is absent would hide its fields
        config = _filled(config)
    kinds, rest = _take_kinds(arguments)
    for path, kind in sorted(kinds, key=lambda pair: len(pair[0])):  # outer sections first: they hold the inner ones
        config = _set(config, path, partial(_kind, path, kind))
    for option in (argument for argument in rest if _is_option(argument)):
        config = _with_section(config, _path(option))
    _check_names(config, rest)
    return tyro.cli(
        Config,
        prog=prog,
        description="Train as CONFIG says, with any of its fields replaced.",
        default=config,
        args=rest,
        config=(tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff),
    )


def _split(argument: str) -> list[str]:
    name, equals, value = argument.partition("=")
    return [name, value] if _is_option(argument) and equals else [argument]


def _is_option(argument: str) -> bool:
    return argument.startswith("--") and argument not in HELP


def _path(option: str) -> tuple[str, ...]:
    return tuple(option.removeprefix("--").replace("-", "_").split("."))


def _take_kinds(arguments: Sequence[str]) -> tuple[list[tuple[tuple[str, ...], str]], list[str]]:
    """Separate `--section.name KIND` from the rest."""
    kinds, rest = [], []
    i = 0
    while i < len(arguments):
        if _is_option(arguments[i]) and arguments[i].endswith(".name"):
            if i + 1 == len(arguments) or arguments[i + 1].startswith("-"):
                raise ValueError(f"{arguments[i]} needs a value")
            kinds.append((_path(arguments[i])[:-1], arguments[i + 1]))
            i += 2
        else:
            rest.append(arguments[i])
            i += 1
    return kinds, rest


def _base(hint: Any) -> type | None:
    """Return which section with kinds an annotation means: `FusionConfig | None` means `FusionConfig`."""
    return next((t for t in (hint, *typing.get_args(hint)) if t in KINDS), None)


def _set(node: Any, path: tuple[str, ...], make: Make) -> Any:
    """Return `node` with the section at `path` replaced by make(base class, old section)."""
    return _descend(node, path, path, make)


def _descend(node: Any, path: tuple[str, ...], whole: tuple[str, ...], make: Make) -> Any:
    name, *inner = path
    if isinstance(node, tuple):  # one of several stages, by its number
        if not (name.isdigit() and int(name) < len(node) and inner):
            raise ValueError(f"unknown option --{_option(whole)}.name: there are {len(node)}, counted from 0")
        place = int(name)
        return (*node[:place], _descend(node[place], tuple(inner), whole, make), *node[place + 1 :])
    hints = typing.get_type_hints(type(node))
    if name not in {f.name for f in dataclasses.fields(node)}:
        raise ValueError(
            f"unknown option --{_option(whole)}.name: {type(node).__name__} has no section {name!r}, "
            f"only {sorted(hints)}"
        )
    old, hint = getattr(node, name), hints[name]
    if isinstance(old, dict) and inner:  # {modality: section}
        key, *inner = inner
        new: Any = old | {key: _inside(old.get(key), typing.get_args(hint)[1], tuple(inner), whole, make)}
    elif isinstance(old, tuple) and inner:
        new = _descend(old, tuple(inner), whole, make)
    else:
        new = _inside(old, hint, tuple(inner), whole, make)
    return dataclasses.replace(node, **{name: new})


def _inside(old: Any, hint: Any, inner: tuple[str, ...], whole: tuple[str, ...], make: Make) -> Any:
    base = _base(hint)
    if not inner:
        if base is None:
            raise ValueError(f"unknown option --{_option(whole)}.name: {'.'.join(whole)} has only one kind")
        return make(base, old)
    return _descend(_default(base) if old is None else old, inner, whole, make)


def _default(base: type | None) -> Any:
    if base is None:
        raise ValueError("a section without kinds cannot be absent")
    return next(iter(KINDS[base].values()))()


def _kind(path: tuple[str, ...], name: str, base: type, old: Any) -> Any:
    if old is not None and old.name == name:
        return old  # also for a kind of the user's own, which no registry knows
    kinds = KINDS[base]
    if name not in kinds:
        near = difflib.get_close_matches(name, kinds, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"--{_option(path)}.name {name!r} is unknown{hint} (there are {', '.join(sorted(kinds))})")
    shared = {} if old is None else {f.name: getattr(old, f.name) for f in dataclasses.fields(base) if f.name != "name"}
    return kinds[name](**shared)


def _with_section(config: Config, path: tuple[str, ...]) -> Config:
    """Make the sections that an option lies in and that are absent, with their default kind."""
    for length in range(1, len(path)):
        node: Any = config
        for name in path[:length]:
            known = dataclasses.is_dataclass(node) and name in {f.name for f in dataclasses.fields(node)}
            if isinstance(node, dict):
                node = node.get(name)
            elif isinstance(node, tuple) and name.isdigit() and int(name) < len(node):
                node = node[int(name)]
            elif known:
                node = getattr(node, name)
            else:
                return config  # a mistyped name: `_check_names` has the words for it
        if node is None:
            config = _set(config, path[:length], lambda base, old: _default(base))
    return config


def _filled(config: Config) -> Config:
    """Return `config` with every absent section at its default, to show all fields."""
    if type(config.model) is not ModelConfig:  # a model of another family has no sections that could be absent
        filled = typing.cast(Config, _fill(dataclasses.replace(config, model=ModelConfig())))
        return dataclasses.replace(filled, model=config.model)
    if not config.model.encoders:
        encoders = {
            "MODALITY": _default(_base(typing.get_args(typing.get_type_hints(type(config.model))["encoders"])[1]))
        }
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, encoders=encoders))
    return typing.cast(Config, _fill(config))


def _fill(node: Any) -> Any:
    changes = {}
    hints = typing.get_type_hints(type(node))
    for f in dataclasses.fields(node):
        value, base = getattr(node, f.name), _base(hints[f.name])
        if value is None and base is not None:
            value = _default(base)
        if dataclasses.is_dataclass(value):
            changes[f.name] = _fill(value)
    return dataclasses.replace(node, **changes)


def _check_names(config: Config, arguments: Sequence[str]) -> None:
    known = {_option(path) for path in _fields(config)}
    for argument in filter(_is_option, arguments):
        option = _option(_path(argument))
        if option not in known:
            near = difflib.get_close_matches(option, (*known, "workdir"), 1, cutoff=0.5)
            raise ValueError(
                f"unknown option --{option}"
                + (f"; did you mean --{near[0]}?" if near else "; --help shows every field")
            )


def _fields(node: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the path of every field that holds a value, and of a dict that is empty and may be given whole."""
    if dataclasses.is_dataclass(node):
        items = {f.name: getattr(node, f.name) for f in dataclasses.fields(node)}
    elif isinstance(node, dict) and node:
        items = node
    elif isinstance(node, tuple) and node and dataclasses.is_dataclass(node[0]):
        items = {str(place): item for place, item in enumerate(node)}
    else:
        yield path
        return
    for name, value in items.items():
        yield from _fields(value, (*path, name))


def _option(path: Sequence[str]) -> str:
    return ".".join(path).replace("_", "-")
