"""The files of a work folder, besides checkpoints: config.json, environment.json, metrics.jsonl."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from mmjax.config import Config
from mmjax.config_file import from_json, read_json, to_json

CONFIG, ENVIRONMENT, METRICS, CHECKPOINTS = "config.json", "environment.json", "metrics.jsonl", "checkpoints"

Row = dict[str, Any]


def open_workdir(workdir: Path, config: Config) -> None:
    """Make the folder, or check that it belongs to this very configuration.

    Raises:
      ValueError: it holds another configuration; the first field that differs is named.
      OSError: it cannot be made or written.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe = workdir / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise type(error)(f"work folder {workdir} cannot be written: {error.strerror or error}") from error
    path = workdir / CONFIG
    wanted = to_json(config)
    if path.exists():
        difference = first_difference(read_json(path), json.loads(json.dumps(wanted)), "")
        if difference is not None:
            field, there, here = difference
            raise ValueError(
                f"work folder {workdir} holds another run: {field} is {there!r} there and {here!r} here; "
                "choose another --workdir, or the same options to resume"
            )
    else:
        write_whole(path, json.dumps(wanted, indent=2))
    write_whole(workdir / ENVIRONMENT, json.dumps(describe_environment(), indent=2))


def read_config(workdir: Path) -> Config:
    """Return the configuration of a work folder. Raises FileNotFoundError if it is none."""
    path = workdir / CONFIG
    if not path.exists():
        raise FileNotFoundError(f"{workdir} is not a work folder of a run: it has no {CONFIG}")
    return from_json(read_json(path))


def describe_environment() -> Row:
    """Return versions, platform and devices of this process."""
    packages = ("mmjax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    versions = {}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed as a package"
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "versions": versions,
        "devices": [f"{d.platform}:{d.id} {d.device_kind}" for d in jax.devices()],
        "environment": {k: os.environ[k] for k in ("JAX_PLATFORMS", "XLA_FLAGS", "JAX_ENABLE_X64") if k in os.environ},
    }


class MetricsFile:
    """metrics.jsonl: one flat JSON object a line, appended and flushed as they come."""

    def __init__(self, path: Path, up_to_step: int):
        """Open for appending; rows of the steps that a run resumed at `up_to_step` takes again go."""
        rows = read_rows(path) if path.exists() else []
        # gradients are measured, and stages begin, before their step; everything else is told after it
        kept = [row for row in rows if row["step"] < up_to_step + (row["kind"] not in ("gradients", "stage"))]
        write_whole(path, "".join(json.dumps(row) + "\n" for row in kept))
        self._file = path.open("a")

    def write(self, row: Mapping[str, Any]) -> None:
        """Append one row."""
        self._file.write(json.dumps(dict(row)) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a metrics.jsonl; a last line cut off by a kill is left out."""
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def write_whole(path: Path, text: str) -> None:
    """Write so that a kill leaves the old file or the new one, never half of one."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    temporary.replace(path)


def first_difference(there: Any, here: Any, path: str) -> tuple[str, Any, Any] | None:
    """Return (field, its value there, its value here) where two JSON values first differ, or None; path: its prefix.

    >>> first_difference({"a": {"b": 1}}, {"a": {"b": 2}}, "")
    ('a.b', 1, 2)
    """
    if isinstance(there, dict) and isinstance(here, dict):
        for key in dict.fromkeys((*there, *here)):
            found = first_difference(there.get(key), here.get(key), f"{path}.{key}".lstrip("."))
            if found is not None:
                return found
        return None
    return None if there == here else (path, there, here)
