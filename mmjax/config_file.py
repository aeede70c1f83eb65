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
import re
import sys
import traceback
import types
import typing
from pathlib import Path
from typing import Any

from mmjax.config import (
    Config,
    DataConfig,
    EncoderConfig,
    FusionConfig,
    MethodConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
    StageConfig,
    TrainConfig,
)

_PREFIX = "_mmjax_config_"
_SECTIONS = (
    DataConfig,
    EncoderConfig,
    FusionConfig,
    MethodConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
    StageConfig,
    TrainConfig,
)


def load_config(path: str | Path) -> Config:
    r"""Return the configuration of a Python file with `get_config()`, or of a `config.json`.

    path: "FILE.py:get_quick_config" asks for what another function of the file returns.

    Raises:
      FileNotFoundError: no such file.
      ValueError: the file has no such function, or it returns something else than a `Config`; a field that its section
        does not have (the nearest is named), a mistyped name, a syntax error, broken JSON.

    >>> import tempfile
    >>> lines = (
    ...     "from mmjax import Config",
    ...     "from mmjax.data import Planted",
    ...     "from mmjax.optim import MimoConfig",
    ...     "from mmjax.train.optimizer import AdamConfig",
    ...     "def get_config():",
    ...     "    return Config(data=Planted(), method=MimoConfig(penalty=2.0), optimizer=AdamConfig())",
    ... )
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "mine.py"
    ...     _ = path.write_text("\n".join(lines))
    ...     load_config(path).method.penalty
    2.0
    """
    file, _, function = str(path).rpartition(":")
    path, function = (Path(file), function) if file.endswith(".py") else (Path(path), "get_config")
    if not path.is_file():
        raise FileNotFoundError(f"no such configuration file: {path}")
    config = from_json(read_json(path)) if path.suffix == ".json" else _from_python(path, function)
    if not isinstance(config, Config):
        raise ValueError(f"{path}: expected a mmjax.Config, got {type(config).__name__}")
    return config


def _from_python(path: Path, function: str) -> Any:
    try:
        module = _load_module(path)
        if not callable(getattr(module, function, None)):
            raise ValueError(f"{path} has no function {function}() that returns a mmjax.Config")
        return getattr(module, function)()
    except SyntaxError as error:
        raise ValueError(f"{path}: {error}") from error
    except (TypeError, NameError, AttributeError) as error:  # what a mistyped field, class or module gives
        lines = [
            frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path.resolve())
        ]
        where = f"{path}, line {lines[-1]}" if lines else str(path)
        raise ValueError(f"{where}: {error}{_nearest_field(error)}") from error


def _nearest_field(error: Exception) -> str:
    """Say which field a keyword that a dataclass does not have was meant to be; nothing of other errors."""
    found = re.search(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", str(error))
    if found is None:
        return ""
    name, keyword = found.groups()
    sections = [Config, *(cls for base in _SECTIONS for cls in (base, *_subclasses(base)))]
    known = [f.name for cls in sections if cls.__name__ == name for f in dataclasses.fields(cls)]
    nearest = difflib.get_close_matches(keyword, known, 1)
    return f"; did you mean {nearest[0]!r}?" if nearest else f"; it has {', '.join(known)}" if known else ""


def _subclasses(base: type[Any]) -> list[type[Any]]:
    return [cls for direct in base.__subclasses__() for cls in (direct, *_subclasses(direct))]


def read_json(path: Path) -> Any:
    """Return what a JSON file holds. Raises ValueError that names the file where it is no JSON."""
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not whole JSON: {error}") from error


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
    if isinstance(node, dict) and isinstance(node.get("type"), str):  # not an encoder of a modality called "type"
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
    try:
        return cls(**values)
    except TypeError as error:
        raise ValueError(f"{node['type']}: {error}") from error
