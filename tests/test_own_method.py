"""docs/own_method.md, exactly as it stands there."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from mmjax.cli import main
from mmjax.optim import Promise
from mmjax.testing import BrokenPropertiesError, check_combiner
from mmjax.testing.properties import ALWAYS

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "own_method.md").read_text()
WRITTEN, CHECKED, TRAINED = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(scope="module")
def by_loss():
    names: dict = {}
    exec(WRITTEN, names)
    return names["by_loss"]


def test_what_is_checked_is_told():
    told = re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)
    assert told == [*ALWAYS, *(promise.value for promise in Promise)]


def test_the_example_keeps_its_promises(by_loss, capsys):
    exec(CHECKED, {"by_loss": by_loss})
    assert "absent_objectives" in capsys.readouterr().out


def test_a_promise_that_it_does_not_keep_is_found(by_loss):
    with pytest.raises(BrokenPropertiesError, match="non_conflicting"):
        check_combiner(by_loss, {"non_conflicting"}, only=["non_conflicting"])


def test_a_run_with_it(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(WRITTEN + TRAINED)
    monkeypatch.chdir(tmp_path)
    assert main(["train", "mine.py", "--workdir", "run", "--train.epochs", "2", "--train.devices", "1"]) == 0
    assert json.loads((tmp_path / "run" / "config.json").read_text())["method"]["name"] == "by_loss"
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    weights = [row for row in rows if row["kind"] == "train"][-1]
    assert sum(weights[f"weight/{name}"] for name in ("fusion", "audio", "image")) == pytest.approx(3, rel=1e-5)
    assert main(["evaluate", "run"]) == 0
