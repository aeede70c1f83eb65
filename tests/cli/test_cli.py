"""The commands, as a user types them, on small made-up data."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import mmjax
from mmjax.cli import main
from mmjax.optim import METHODS

CONFIG = '''
"""A small experiment."""
from mmjax import Config, MethodConfig, ModelConfig, TrainConfig
from mmjax.data import Npz
from mmjax.models import MLPConfig
from mmjax.optim import MimoConfig
from mmjax.train.optimizer import AdamConfig


def get_config():
    return Config(
        data=Npz(path="{path}"),
        model=ModelConfig(encoders={{"zoom": MLPConfig(width=8)}}),
        method=MimoConfig(),
        optimizer=AdamConfig(learning_rate=1e-2),
        train=TrainConfig(epochs=4, batch_size=16, devices=1, monitor_every=4),
    )
'''


@pytest.fixture(scope="module")
def npz(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "small.npz"
    rng = np.random.default_rng(0)
    label = np.arange(120) % 3
    centres = rng.normal(size=(2, 3, 5))
    zoom, audio = (2 * c[label] + rng.normal(size=(120, 5)) for c in centres)
    np.savez(path, zoom=zoom.astype(np.float32), audio=audio.astype(np.float32), label=label)
    return path


@pytest.fixture(scope="module")
def config(npz, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("config") / "small.py"
    path.write_text(CONFIG.format(path=npz))
    return path


@pytest.fixture(scope="module")
def workdir(config, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "one"
    assert main(["train", str(config), "--workdir", str(folder), "--method.penalty", "3"]) == 0
    return folder


def test_train_leaves_everything(workdir):
    names = {p.name for p in workdir.iterdir()}
    assert {"config.json", "environment.json", "metrics.jsonl", "curves.png", "checkpoints", "events"} <= names
    assert (workdir / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert mmjax.load_config(workdir / "config.json").method.penalty == 3.0
    kinds = {json.loads(line)["kind"] for line in (workdir / "metrics.jsonl").read_text().splitlines()}
    assert kinds == {"train", "validation", "gradients", "test"}
    assert json.loads((workdir / "environment.json").read_text())["versions"]["jax"]


def test_train_again_shows_the_results_and_trains_nothing(workdir, config, capsys):
    before = (workdir / "metrics.jsonl").read_text()
    assert main(["train", str(config), "--workdir", str(workdir), "--method.penalty", "3"]) == 0
    out = capsys.readouterr().out
    assert "fusion" in out
    assert "accuracy" in out
    assert (workdir / "metrics.jsonl").read_text() == before


def test_evaluate_tells_what_the_run_told(workdir, capsys):
    assert main(["evaluate", str(workdir)]) == 0
    out = capsys.readouterr().out
    accuracy = mmjax.load(workdir).metrics["zoom/accuracy"]
    row = next(line for line in out.splitlines() if "zoom" in line)
    assert f"{accuracy:.1%}".replace("%", " %") in row
    assert main(["evaluate", str(workdir), "--split", "validation"]) == 0
    assert "Validation split" in capsys.readouterr().out


def test_predict_writes_what_the_run_predicts(workdir, npz, tmp_path, capsys):
    assert main(["predict", str(workdir), str(npz), "--out", str(tmp_path / "out.npz")]) == 0
    written = np.load(tmp_path / "out.npz")
    assert set(written.files) == {"fusion", "audio", "zoom"}
    arrays = np.load(npz)
    expected = mmjax.load(workdir).predict({m: arrays[m] for m in ("zoom", "audio")})
    for name in written.files:
        np.testing.assert_allclose(written[name], expected[name], atol=1e-6)
    assert main(["predict", str(workdir), str(npz)]) == 0
    assert (workdir / "predictions_small.npz").exists()


def test_without_a_workdir_a_new_one_is_made(config, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", str(config), "--train.epochs", "1"]) == 0
    (made,) = (tmp_path / "runs").iterdir()
    assert made.name.startswith("small-")
    assert str(made.relative_to(tmp_path)) in capsys.readouterr().out


def test_listings(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "250")
    assert main(["methods"]) == 0
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}
    for name, method in METHODS.items():
        told = (method.kind, method.backward_passes, method.reading)
        assert re.search(r"\s{2,}".join(map(re.escape, (name, *told))), rows[name])
    assert {"method", "joint", "uniform", "mimo"} <= set(rows)
    assert "Fernando" in rows["mimo"]
    assert main(["data", "list"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("avdigits", "avmnist", "mfeat", "npz", "planted"))
    assert main(["devices"]) == 0
    assert "cpu:0" in capsys.readouterr().out


def test_data_check(npz, tmp_path, capsys):
    assert main(["data", "check", str(npz)]) == 0
    out = capsys.readouterr().out
    assert "120 x 5" in out
    assert "fit for training" in out
    bad = tmp_path / "bad.npz"
    np.savez(bad, a=np.full((4, 2), np.nan), label=np.arange(4), present=np.ones((4, 2), bool))
    assert main(["data", "check", str(bad)]) == 2
    out = capsys.readouterr().out
    assert "a holds nan at [0, 0]" in out
    assert "present has shape (4, 2); expected (4, 1)" in out
    assert "not fit for training" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    (
        (["train", "nowhere.py"], "no such configuration file: nowhere.py"),
        (["train", "CONFIG", "--train.sed", "1"], "did you mean --train.seed?"),
        (["train", "CONFIG", "--work-dir", "x"], "did you mean --workdir?"),
        (["train", "CONFIG", "--method.name", "mino"], "did you mean 'mimo'?"),
        (["train", "CONFIG", "--data.path", "gone.npz"], "gone.npz"),
        (
            ["train", "CONFIG", "--train.batch-size", "1000"],
            "train.batch_size = 1000 is larger than the training split",
        ),
        (["train", "CONFIG", "--train.devices", "3"], "does not divide evenly over 3 devices"),
        (["train", "CONFIG", "--method.penalty", "-1"], "method.penalty must be"),
        (["train", "CONFIG", "--model.encoders.zom.width", "4"], "model.encoders.zom"),
        (["train", "CONFIG", "--data.modalities", "zom"], "did you mean 'zoom'?"),
        (["evaluate", "nowhere"], "not a work folder"),
        (["predict", "nowhere", "x.npz"], "not a work folder"),
        (["data", "check", "gone.npz"], "gone.npz"),
    ),
)
def test_mistakes_are_one_line_and_status_2(arguments, message, config, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([str(config) if a == "CONFIG" else a for a in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("mmjax: error: ")
    assert message in error
    assert "Traceback" not in error
    assert not list(tmp_path.rglob("config.json"))  # nothing was begun


@pytest.mark.parametrize(
    ("was", "instead", "message"),
    (
        ("epochs=4", "epoch=4", "line 16: TrainConfig.__init__() got an unexpected keyword argument 'epoch'; did you"),
        ("width=8", "wide=8", "line 13: MLPConfig.__init__() got an unexpected keyword argument 'wide'; did you mean"),
        ("MimoConfig()", "MinoConfig()", "line 14: name 'MinoConfig' is not defined"),
        ("def get_config():", "def get_config(:", "small.py: invalid syntax (small.py, line 10)"),
    ),
)
def test_a_mistake_in_a_configuration_file_is_named_with_its_line(was, instead, message, config, tmp_path, capsys):
    text = config.read_text()
    assert was in text
    (tmp_path / "small.py").write_text(text.replace(was, instead))
    assert main(["train", str(tmp_path / "small.py")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("mmjax: error: ")
    assert message in error


def test_a_broken_json_configuration_is_named(workdir, tmp_path, capsys):
    (tmp_path / "config.json").write_text((workdir / "config.json").read_text()[:100])
    assert main(["train", str(tmp_path / "config.json")]) == 2
    assert f"{tmp_path / 'config.json'} is not whole JSON" in capsys.readouterr().err
    (tmp_path / "config.json").write_text('{"type": "mmjax.config:Config"}')
    assert main(["train", str(tmp_path / "config.json")]) == 2
    assert "missing 3 required keyword-only arguments: 'data', 'method', and 'optimizer'" in capsys.readouterr().err


def test_an_unwritable_work_folder(config, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    assert main(["train", str(config), "--workdir", str(tmp_path / "file")]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_another_run_s_work_folder(workdir, config, capsys):
    before = {p: p.stat().st_mtime_ns for p in workdir.iterdir()}
    assert main(["train", str(config), "--workdir", str(workdir)]) == 2
    assert "method.penalty is 3.0 there and 2.0 here" in capsys.readouterr().err
    assert before == {p: p.stat().st_mtime_ns for p in workdir.iterdir()}


@pytest.mark.filterwarnings("default")
def test_a_class_absent_from_training_is_a_warning(tmp_path, config, capsys):
    label = np.arange(60) % 3
    split = np.where(np.arange(60) % 5 == 0, "test", np.where(np.arange(60) % 5 == 1, "validation", "train"))
    split[label == 2] = "test"
    np.savez(tmp_path / "rare.npz", zoom=np.random.default_rng(0).normal(size=(60, 3)), label=label, split=split)
    arguments = ["train", str(config), "--data.path", str(tmp_path / "rare.npz"), "--workdir", str(tmp_path / "run")]
    main([*arguments, "--train.epochs", "1"])
    assert "mmjax: warning: class 2 has no training example" in capsys.readouterr().err


def test_help_needs_the_configuration(config, capsys):
    assert main(["train", "--help"]) == 0
    assert "mmjax train CONFIG" in capsys.readouterr().out
    with pytest.raises(SystemExit) as error:
        main(["train", str(config), "--help"])
    assert error.value.code == 0
    assert "--train.seed INT" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["train", "theory"])
def test_a_field_before_the_configuration_is_told_apart_from_it(config, capsys, command):
    with pytest.raises(SystemExit) as error:
        main([command, "--method.name", "uniform", str(config)])
    assert error.value.code == 2
    assert "CONFIG comes first, then its fields: mmjax ... CONFIG --method.name" in capsys.readouterr().err


def rows(folder: Path) -> list[dict]:
    timing = ("steps_per_second", "wall_seconds", "compile_seconds")
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in timing} for line in lines]


def start(config: Path, folder: Path) -> subprocess.Popen:
    # small steps and many of them, so that the signal strikes in the middle
    options = ["--train.epochs", "300", "--train.evaluate-every", "40", "--train.monitor-every", "0"]
    # where the tests run in the background, Ctrl-C is ignored, which a process inherits
    program = (
        "import signal, runpy; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "runpy.run_module('mmjax', run_name='__main__', alter_sys=True)"
    )
    command = [sys.executable, "-c", program, "train", str(config), "--workdir", str(folder), *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ))


def wait_for_checkpoint(folder: Path, count: int) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        saved = folder / "checkpoints" / "last"
        if saved.is_dir() and any(p.name.isdigit() and int(p.name) >= 40 * count for p in saved.iterdir()):
            return
        time.sleep(0.01)
    raise AssertionError("no checkpoint appeared")


def test_ctrl_c_tells_how_to_go_on(config, tmp_path):
    process = start(config, tmp_path / "run")
    wait_for_checkpoint(tmp_path / "run", 2)
    process.send_signal(signal.SIGINT)
    try:
        _, error = process.communicate(timeout=120)
    finally:
        process.kill()  # should it hang, it must not outlive the test
    assert process.returncode == 130, error
    assert f"--workdir {tmp_path / 'run'}" in error
    assert (tmp_path / "run" / "curves.png").exists()


@pytest.mark.soak
@pytest.mark.parametrize("count", (1, 3, 7, 12))
def test_kill_9_loses_at_most_the_steps_since_the_last_checkpoint(config, tmp_path, count):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    process = start(config, cut)
    wait_for_checkpoint(cut, count)
    process.kill()
    process.communicate()
    told = [row["step"] for row in rows(cut)]
    process = start(config, cut)
    _, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    resumed = int(error.split("resuming at step ")[1].split()[0])
    assert max(told) - 40 - 10 <= resumed <= max(told)
    process = start(config, whole)
    assert process.communicate(timeout=300) and process.returncode == 0
    assert rows(cut) == rows(whole)
    a, b = mmjax.load(cut), mmjax.load(whole)
    for x, y in zip(*(map(np.asarray, __import__("jax").tree.leaves(r.params)) for r in (a, b)), strict=True):
        np.testing.assert_array_equal(x, y)


def test_another_function_of_a_configuration_file(config, tmp_path, capsys):
    path = tmp_path / "two.py"
    quick = "\n\ndef get_quick_config():\n    import dataclasses\n    config = get_config()\n"
    quick += "    return dataclasses.replace(config, train=dataclasses.replace(config.train, epochs=1.0))\n"
    path.write_text(config.read_text() + quick)
    assert mmjax.load_config(path).train.epochs == 4 and mmjax.load_config(f"{path}:get_quick_config").train.epochs == 1
    assert main(["train", f"{path}:get_quick_config", "--workdir", str(tmp_path / "run")]) == 0
    assert json.loads((tmp_path / "run" / "config.json").read_text())["train"]["epochs"] == 1.0
    assert main(["train", f"{path}:get_slow_config"]) == 2
    assert "has no function get_slow_config() that returns a mmjax.Config" in capsys.readouterr().err
