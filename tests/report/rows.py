"""Rows of a run as the loop writes them, with numbers that tell every curve from every other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

NAMES = ("fusion", "audio", "image")


def run_rows(
    modalities: Sequence[str] = NAMES[1:], score: str = "accuracy", loss: str = "nll", steps: int = 40
) -> list[dict[str, Any]]:
    """Return train rows every 10 steps, gradients every 20, validation every 20, and the test row; best at step 20."""
    names = ("fusion", *modalities)
    experts = (*names, "late_fusion") if len(modalities) > 1 else names
    rows: list[dict[str, Any]] = []
    for step in range(10, steps + 1, 10):
        if (step - 10) % 20 == 0:
            row: dict[str, Any] = {"step": step - 10, "kind": "gradients"}
            row |= {f"norm/{n}": 1.0 + k + step / 100 for k, n in enumerate(names)}
            row |= {f"cosine/fusion/{m}": -0.5 + k / 10 + step / 1000 for k, m in enumerate(modalities)}
            rows.append(row)
        row = {"step": step, "kind": "train"}
        row |= {f"loss/{n}": (2.0 + k) / step for k, n in enumerate(names)}
        row |= {f"weight/{n}": 1.0 + k / 10 + step / 1000 for k, n in enumerate(names)}
        rows.append(row | {"steps_per_second": 100.0 + step})
        if step % 20 == 0:
            row = {"step": step, "kind": "validation"}
            row |= {f"{n}/{loss}": 1.0 + k / 7 - step / 1000 for k, n in enumerate(experts)}
            row |= {f"{n}/{score}": 0.8 - k / 20 + step / 1000 for k, n in enumerate(experts)}
            rows.append(row | {f"score/{n}": row[f"{n}/{score}"] for n in names})
    test = {f"{n}/{score}": 0.75 - k / 50 for k, n in enumerate(experts)}
    timing = {"wall_seconds": 12.5, "compile_seconds": 3.21, "steps_per_second": 104.0}
    rows.append({"step": steps, "kind": "test", "best_step": 20} | test | timing)
    return rows
