"""Configurations in files: Python files with `get_config()`, and JSON that is whole and reloadable.

Every dataclass becomes an object with a "type", "module:Class", so that a reader knows what to import; for a class
defined in a configuration file itself it is "/path/of/file.py:Class".
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import importlib
import importlib.util
import json
import sys
import types
import typing
from pathlib import Path
from typing import Any

from mmjax.config import Config

_PREFIX = "_mmjax_config_"


def load_config(path: str | Path) -> Config:
    """Return the configuration of a Python file with `get_config()`, or of a `config.json`.

    Raises:
      FileNotFoundError: no such file.
      ValueError: the file has no `get_config`, or it returns something else than a `Config`; unknown fields in JSON.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such configuration file: {path}")
    if path.suffix == ".json":
        config = from_json(json.loads(path.read_text()))
    else:
        module = _load_module(path)
        if not callable(getattr(module, "get_config", None)):
            raise ValueError(f"{path} has no function get_config() that returns a mmjax.Config")
        config = module.get_config()
    if not isinstance(config, Config):
        raise ValueError(f"{path}: expected a mmjax.Config, got {type(config).__name__}")
    return config


def _load_module(path: Path) -> types.ModuleType:
    path = path.resolve()
    # one name a path, and the same in every process: classes of the file must be found again
    name = _PREFIX + path.stem + hashlib.sha256(str(path).encode()).hexdigest()[:8]
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} is neither a Python file nor a config.json")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def to_json(value: Any) -> Any:
    """Return `value` (dataclasses, dicts with string keys, tuples and lists, plain values) as JSON values.

    Raises TypeError for anything else.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"type": _type_name(type(value)), **fields}
    if isinstance(value, dict):
        return {str(k): to_json(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return [to_json(v) for v in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"cannot write {value!r} of type {type(value).__name__} to JSON: use plain values or a dataclass")


def _type_name(cls: type) -> str:
    module = sys.modules[cls.__module__]
    where = str(module.__file__) if cls.__module__.startswith(_PREFIX) else cls.__module__
    return f"{where}:{cls.__qualname__}"


def from_json(node: Any) -> Any:
    """Return what `to_json` was given.

    Raises:
      ValueError: a type that cannot be imported, a field that the type does not have (the nearest is named).
    """
    if isinstance(node, dict) and "type" in node:
        return _dataclass_from(node)
    if isinstance(node, dict):
        return {k: from_json(v) for k, v in node.items()}
    if isinstance(node, list):
        return tuple(from_json(v) for v in node)  # configurations are frozen: sequences are tuples
    return node


def _dataclass_from(node: dict[str, Any]) -> Any:
    where, _, name = node["type"].rpartition(":")
    try:
        module = _load_module(Path(where)) if where.endswith(".py") else importlib.import_module(where)
        cls = getattr(module, name)
    except (ImportError, AttributeError, OSError) as error:
        raise ValueError(f"cannot find {node['type']}, which this configuration needs: {error}") from error
    known = [f.name for f in dataclasses.fields(cls)]
    hints = typing.get_type_hints(cls) if "list" in str(cls.__annotations__) else {}
    values = {}
    for key, value in node.items():
        if key == "type":
            continue
        if key not in known:
            nearest = difflib.get_close_matches(key, known, 1)
            hint = f"; did you mean {nearest[0]!r}?" if nearest else f"; it has {known}"
            raise ValueError(f"{name} has no field {key!r}{hint}")
        values[key] = from_json(value)
        if typing.get_origin(hints.get(key)) is list:
            values[key] = list(values[key])
    return cls(**values)
