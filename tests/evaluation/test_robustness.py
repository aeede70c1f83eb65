"""Noise of a stated size goes into one modality at a time."""

from __future__ import annotations

import numpy as np
import pytest

from mmjax.evaluation.robustness import robustness_curves

RNG = np.random.default_rng(0)
INPUTS = {
    "a": (RNG.normal(size=(4000, 2)) * [1.0, 10.0]).astype(np.float32),
    "t": RNG.integers(1, 6, (4000, 4)).astype(np.int32) * (np.arange(4) < 3),
}


def test_noise_is_in_units_of_each_feature_and_in_one_modality_only():
    seen = []

    def score(inputs):
        seen.append(inputs)
        return float(np.std(inputs["a"][:, 1] - INPUTS["a"][:, 1]))

    curves = robustness_curves(score, INPUTS, [0.0, 0.5, 1.0])
    spread = INPUTS["a"][:, 1].std()
    np.testing.assert_allclose(curves["a"], [0.0, 0.5 * spread, spread], rtol=0.05)
    np.testing.assert_allclose(curves["a"][2], 2 * curves["a"][1], rtol=1e-3)  # one draw, scaled
    np.testing.assert_array_equal(curves["t"], 0)
    assert seen[0]["a"] is INPUTS["a"] and all(s["t"] is INPUTS["t"] for s in seen[:3])
    np.testing.assert_allclose((seen[2]["a"] - INPUTS["a"])[:, 0].std(), 1, rtol=0.05)
    np.testing.assert_array_equal(robustness_curves(score, INPUTS, [0.5])["a"], curves["a"][1:2])
    assert robustness_curves(score, INPUTS, [0.5], seed=1)["a"] != curves["a"][1]


def test_tokens_are_replaced_by_others_of_their_own_and_padding_stays():
    seen = {}

    def score(inputs):
        changed = inputs["t"] != INPUTS["t"]
        seen[len(seen)] = inputs["t"]
        return float(changed[:, :3].mean())

    curve = robustness_curves(score, {"t": INPUTS["t"]}, [0.0, 0.5, 1.0])["t"]
    np.testing.assert_allclose(curve, [0, 0.4, 0.8], atol=0.04)  # one in five is drawn as itself
    assert all((t[:, 3] == 0).all() and t[:, :3].min() >= 1 for t in seen.values())
    assert seen[2].dtype == np.int32


def test_who_lacks_a_modality_is_passed_by():
    n = 500
    present = np.arange(n)[:, None] % 3 != [1, 2]
    a = np.where(present[:, :1], INPUTS["a"][:n], 1e6).astype(np.float32)
    t = np.where(present[:, 1:], INPUTS["t"][:n], 99)
    seen = []
    robustness_curves(lambda x: float(bool(seen.append(x))), {"a": a, "t": t}, [1.0], present=present)
    moved = seen[0]["a"] - a
    assert not moved[~present[:, 0]].any()
    np.testing.assert_allclose(moved[present[:, 0]].std(axis=0), a[present[:, 0]].std(axis=0), rtol=0.1)
    assert (seen[1]["t"][~present[:, 1]] == 99).all() and seen[1]["t"][present[:, 1]].max() <= 5
    with pytest.raises(ValueError, match=r"present must be bool \[500, 2\]; got bool \[500, 1\]"):
        robustness_curves(lambda x: 0.0, {"a": a, "t": t}, [1.0], present=present[:, :1])


def test_mistakes_are_named():
    for inputs, levels, message in (
        ({}, [1.0], "no modality"),
        (INPUTS, [], "at least one level.*levels of at least 0"),
        (INPUTS, [-0.5], r"levels of at least 0; got \[-0.5\]"),
    ):
        with pytest.raises(ValueError, match=message):
            robustness_curves(lambda x: 0.0, inputs, levels)
    with pytest.raises(ValueError, match="t holds tokens"):
        robustness_curves(lambda x: 0.0, INPUTS, [2.0])
