"""The README's lines, exactly as they stand there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mmjax
from mmjax.cli import main

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
PLAIN, TRAINER = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
COMMANDS = [line.split("#")[0].strip() for line in README.splitlines() if line.startswith("mmjax ")]


@pytest.fixture(scope="module")
def plain():
    names: dict = {}
    exec(PLAIN, names)
    return names


@pytest.fixture(scope="module")
def problem():
    keys = iter(jax.random.split(jax.random.key(0), 12))
    label = jnp.arange(256) % 4
    params, batch = {}, {"label": label}
    for m, width, noise in (("image", 12, 1.0), ("audio", 7, 4.0)):
        centres = 3 * jax.random.normal(next(keys), (4, width))
        batch[m] = centres[label] + noise * jax.random.normal(next(keys), (256, width))
        params[m] = jax.random.normal(next(keys), (width, 16)) / 4
        params[f"{m}_head"] = jnp.zeros((16, 4))
        params[f"{m}_fuse"] = jnp.zeros((16, 4))
    return params, batch


def test_plain_jax_is_ten_lines():
    lines = [line for line in PLAIN.splitlines() if line and not line.startswith("import")]
    assert len(lines) <= 10


def test_plain_jax_trains(plain, problem):
    params, batch = problem
    state = plain["tx"].init(params)
    first = None
    for _ in range(150):
        params, state, values = plain["step"](params, state, batch)
        first = values if first is None else first
    np.testing.assert_allclose(first, np.log(4), rtol=1e-6)
    assert values[0] < 0.3
    assert (values < 0.7 * first).all()
    weights = state[0].weights
    np.testing.assert_allclose(weights[0], 1)
    np.testing.assert_allclose(weights[1:].sum(), 1, rtol=1e-6)  # the penalty
    # names are sorted: audio before image; audio is the noisier one, and gets the weight
    assert values[1] > values[2]
    assert weights[1] > 0.6


def test_plain_jax_costs_one_backward_pass(plain, problem):
    params, batch = problem
    state = plain["tx"].init(params)

    @jax.jit
    def usual(params, state, batch):
        def total(p):
            losses = plain["losses_fn"](p, batch)
            return losses["fusion"] + 0.4 * losses["audio"] + 0.6 * losses["image"]

        value, grads = jax.value_and_grad(total)(params)
        updates, state = optax.adam(1e-3).update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    def flops(step, state):
        return step.lower(params, state, batch).compile().cost_analysis()["flops"]

    ours, theirs = flops(plain["step"], state), flops(usual, optax.adam(1e-3).init(params))
    # two forward passes or two backward passes would add half as much again
    assert ours <= 1.02 * theirs, (ours, theirs)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder that looks like a clone, with a small file to predict."""
    place = tmp_path_factory.mktemp("readme")
    (place / "configs").symlink_to(ROOT / "configs")
    test = mmjax.data.AvDigits().load().test
    np.savez(place / "FILE.npz", **{m: x[:20] for m, x in test.inputs.items()}, label=test.label[:20])
    return place


def test_commands(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    assert len(COMMANDS) >= 8
    for command in COMMANDS:
        arguments = shlex.split(command)[1:]
        if arguments[0] == "train" and "--help" not in arguments:
            arguments += ["--train.devices", "1", "--train.epochs", "2"]  # the words are tested, not the patience
        try:
            status = main(arguments)
        except SystemExit as leaving:
            status = leaving.code
        assert status == 0, (command, capsys.readouterr().err)


def test_trainer_lines(folder, monkeypatch):
    monkeypatch.chdir(folder)
    stored = np.load(folder / "FILE.npz")
    names = {"mmjax": mmjax, "images": stored["image"], "audio": stored["audio"]}
    *lines, last = TRAINER.strip().splitlines()
    exec("\n".join(lines), names)
    accuracy, answers = eval(last, names)
    assert accuracy > 0.8
    assert answers.shape == (20, 10)
