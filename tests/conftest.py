"""Settings that must be in place before JAX starts, and the place of the real data."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
# Most of the suite's time is compilation, much of it of the same programs (a run and its resumption).
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
# Most of compilation is LLVM's optimization, for programs that run for less time than it takes.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault("MPLBACKEND", "agg")
# A job in the background starts with Ctrl-C ignored; the tests press it.
if threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest  # noqa: E402


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Folder of the real data sets, from MMJAX_DATA; skips where it is absent."""
    root = Path(os.environ.get("MMJAX_DATA", ROOT.parent / "shared" / "data"))
    if not root.is_dir():
        pytest.skip(f"no data at {root}: set MMJAX_DATA to the folder with mnist, fsdd, esc10 and mfeat")
    return root
