"""The scripts in benchmarks/ keep up with the library: they say what they do, and their tables leave nothing out."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from mmjax.models import ENCODERS, FUSIONS

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"
SCRIPTS = sorted(path.name for path in FOLDER.glob("*.py") if path.name != "problems.py")


@pytest.mark.soak
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_says_what_it_does(name):
    told = subprocess.run([sys.executable, FOLDER / name, "--help"], capture_output=True, text=True, timeout=120)
    assert told.returncode == 0, told.stderr
    assert "usage:" in told.stdout


def test_the_table_of_models_has_every_fusion_head_and_encoder(monkeypatch):
    """Traced, not timed."""
    script = runpy.run_path(str(FOLDER / "models.py"))
    rows = []

    def trace(name, said, module, given, budget, steps=1):
        shapes, *functions = script["programs"](module, given)
        forward, _ = (jax.eval_shape(f, shapes, given) for f in functions)
        rows.append((name, forward.shape[0]))

    monkeypatch.setitem(script["fusion_rows"].__globals__, "measure", trace)
    list(script["fusion_rows"](0.0))
    assert {name for name, _ in rows} == set(FUSIONS) and {size for _, size in rows} == {script["BATCH"]}
    rows.clear()
    list(script["encoder_rows"](0.0))
    assert {name.split(",")[0] for name, _ in rows} == set(ENCODERS) - {"identity", "custom"}
    assert {size for _, size in rows} == {script["ENCODER_BATCH"]}
