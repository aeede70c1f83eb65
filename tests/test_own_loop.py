"""docs/own_loop.md, exactly as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import jax
import numpy as np
import pytest

import mmjax

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "own_loop.md").read_text()
MODEL, LOOP = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(scope="module")
def names():
    found: dict = {}
    exec(MODEL, found)
    exec(LOOP, found)
    return found


def test_the_loop_learns_and_tells_what_it_did(names):
    first, _, _ = names["gradients"](names["start"](names["key"]), names["data"])
    last, _, _ = names["gradients"](names["params"], names["data"])
    assert (last < 0.5 * first).all()
    told = names["told"]
    assert np.isfinite(told.values).all() and np.isfinite(told.norms).all() and int(told.measurements) == 3
    assert np.isnan(told.cosines[1, 2]) and np.isfinite(told.cosines[0]).all()
    assert int(names["state"][0].skipped) == 0 and names["step"]._cache_size() == 1


def test_last_layers_from_the_losses_are_those_of_the_argument(names):
    params, data, combiner = names["params"], names["data"], names["combiner"]

    def update(from_aux=False, **change):
        values, grads, (_, aux) = names["gradients"](params, data)
        given = {"values": values, "labels": data["label"], "key": jax.random.key(3), "refresh": True} | change
        given |= {"last_layer": aux["last_layer"]} if from_aux else {}
        return combiner.update(grads, combiner.init(params), params, **given)[0]

    told, given = update(), update(from_aux=True)
    jax.tree.map(np.testing.assert_array_equal, told, given)
    with pytest.raises(
        ValueError, match=r"needs the extra arguments key and labels \(or logit_loss\): .*key=..., labels="
    ):
        update(key=None, labels=None)


def test_losses_that_do_not_name_their_last_layers_are_told_what_to_name(names):
    silent = mmjax.objective_grads(
        lambda *given: names["losses_fn"](*given)[0], encode=lambda *given: names["encode"](*given)[0]
    )
    params, data, combiner = names["params"], names["data"], names["combiner"]
    _, grads = silent(params, data)
    with pytest.raises(
        ValueError,
        match=r"needs the extra argument key: .*; and last_layer: .*has_aux=True and .*each of \('fusion', 'a",
    ):
        combiner.update(grads, combiner.init(params), params, labels=data["label"])


def test_the_loop_in_float64_and_with_data_finer_than_the_parameters():
    found: dict = {}
    with jax.enable_x64(True):
        exec(MODEL, found)
        exec(LOOP.replace("range(30)", "range(3)"), found)
        assert found["params"]["audio"]["kernel"].dtype == "float64" and found["step"]._cache_size() == 1
        assert np.isfinite(found["told"].weights).all()
        params = jax.tree.map(lambda x: x.astype("float32"), found["start"](found["key"]))
        state = found["tx"].init(params)
        batch = {name: x[: found["BATCH"]] for name, x in found["data"].items()}
        assert batch["audio"].dtype == "float64"
        _, after = found["step"](params, state, batch, found["key"])
        assert jax.tree.map(lambda x: x.dtype, after[0].inner.inner) == jax.tree.map(
            lambda x: x.dtype, state[0].inner.inner
        )
