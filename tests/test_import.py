"""Importing touches no device: how many there are, and of which kind, is still the user's to say."""

from __future__ import annotations

import os
import subprocess
import sys

CODE = """
import jax
import mmjax, mmjax.cli, mmjax.report
jax.config.update("jax_num_cpu_devices", 3)  # an error once a device has been touched
assert jax.device_count() == 3
"""


def test_importing_touches_no_device():
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"} | {"JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-W", "error", "-c", CODE], check=True, env=environment)
