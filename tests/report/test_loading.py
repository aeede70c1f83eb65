"""What reports load: no pyplot, with its windows and global state; no TensorFlow; tensorboard only where it is used."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

CODE = """
import sys
from mmjax.report import curves, events_observer
assert "tensorboard" not in sys.modules
curves([{"step": 1, "kind": "train", "loss/fusion": 1.0}])
with events_observer(sys.argv[1]) as events:
    events.started(("fusion",), 1, 0)
    events.row({"step": 1, "kind": "train", "loss/fusion": 1.0})
print(*sorted({"matplotlib.pyplot", "tensorflow", "tensorboard"} & set(sys.modules)))
"""


def test_reports_load_no_more_than_they_need(tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", CODE, str(tmp_path)], check=True, capture_output=True, text=True
    )
    assert done.stdout.split() == (["tensorboard"] if importlib.util.find_spec("tensorboard") else [])
