"""The Laplace predictive of a run, by hand for both likelihoods; the command; what it refuses. BOGC on several labels."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.bayes import posterior, precision
from mmjax.bayes.laplace import predictive, sample_weights
from mmjax.cli import main
from mmjax.config import Config, ModelConfig, TrainConfig
from mmjax.data import Npz, from_arrays
from mmjax.evaluation.metrics import task_metrics
from mmjax.models import ConcatConfig, MLPConfig
from mmjax.optim import BogcConfig, UniformConfig
from mmjax.train.experiment import build_experiment
from mmjax.train.loop import fit
from mmjax.train.optimizer import AdamConfig
from mmjax.train.run import evaluate, load
from mmjax.train.step import outputs_of
from mmjax.train.uncertainty import laplace_metrics

TAU = 2.0


def arrays(task, n=150):
    rng = np.random.default_rng(0)
    label = rng.integers(0, 3, n)
    inputs = {m: (np.eye(3)[label] + rng.normal(size=(n, 3))).astype(np.float32) for m in ("audio", "zoom")}
    if task == "multilabel":
        return inputs, np.stack([label > 0, label == 1], axis=1).astype(np.float32)
    return inputs, label.astype(np.float32) / 7 if task == "regression" else label


def config(path="", method=None, **train):
    encoders = {m: MLPConfig(width=6, depth=1) for m in ("audio", "zoom")}
    return Config(
        data=Npz(path=str(path)),
        model=ModelConfig(encoders=encoders, fusion=ConcatConfig(hidden=(4,))),
        method=method or UniformConfig(),
        optimizer=AdamConfig(learning_rate=0.03),
        train=TrainConfig(**({"epochs": 20.0, "batch_size": 30, "devices": 1, "monitor_every": 0} | train)),
    )


@pytest.fixture(scope="module", params=["classification", "multilabel"])
def folder(request, tmp_path_factory):
    place = tmp_path_factory.mktemp(request.param)
    inputs, label = arrays(request.param)
    np.savez(place / "data.npz", **inputs, label=label)
    fit(config(place / "data.npz"), place / "run")
    return place / "run"


def test_the_predictive_is_the_mean_over_draws_of_the_posterior_of_the_training_set(folder):
    run = load(folder)
    splits = run.config.data.load()
    kind = splits.train.task.kind
    likelihood = "softmax" if kind == "classification" else "sigmoid"

    def layers_of(part):
        return outputs_of(
            run.inference, run.variables, {m: part.inputs[m][:] for m in part.modalities}, None
        ).last_layer

    trained, tested = layers_of(splits.train), layers_of(splits.test)
    told = laplace_metrics(run, splits.train, splits.test, prior_precision=TAU)
    plain = evaluate(run, splits.test)
    for place, name in enumerate(sorted(tested)):
        layer, given = trained[name], tested[name]
        total = precision(layer.inputs, layer.kernel, layer.bias, likelihood=likelihood)
        key = jax.random.fold_in(jax.random.key(0), place)
        draws = sample_weights(posterior(total, TAU), layer.kernel, layer.bias, key, 64)
        logits = jnp.einsum("nd,scd->snc", given.inputs, draws[..., :-1]) + draws[:, None, :, -1]
        p = np.asarray((jax.nn.softmax if likelihood == "softmax" else jax.nn.sigmoid)(logits).mean(0), np.float64)
        said = np.log(p) if likelihood == "softmax" else np.log(p / (1 - p))
        for metric, value in task_metrics(splits.test.task, said, splits.test.label).items():
            np.testing.assert_allclose(
                told[f"{name}/{metric}"], value, rtol=2e-3, atol=2e-4, err_msg=f"{name}/{metric}"
            )
    assert abs(told["fusion/nll"] - plain["fusion/nll"]) > 1e-4  # draws do change what is said


def test_the_command_shows_it_beside_the_weights_as_trained(folder, capsys):
    assert main(["evaluate", str(folder), "--laplace", "--prior-precision", str(TAU)]) == 0
    out = capsys.readouterr().out
    run = load(folder)
    splits = run.config.data.load()
    nll = laplace_metrics(run, splits.train, splits.test, prior_precision=TAU)["fusion/nll"]
    assert "Laplace predictive" in out and f"{nll:#.4g}" in out
    assert main(["evaluate", str(folder), "--laplace", "--prior-precision", "0"]) == 2
    assert "prior_precision must be a finite number > 0, got 0.0" in capsys.readouterr().err


def test_mistakes_are_named(folder):
    run = load(folder)
    splits = run.config.data.load()
    with pytest.raises(ValueError, match="samples must be at least 1, got 0"):
        laplace_metrics(run, splits.train, splits.test, samples=0)
    other = dataclasses.replace(splits.test, inputs={"audio": splits.test.inputs["audio"]}, preprocess={})
    with pytest.raises(ValueError, match=r"a dataset has \('audio',\)"):
        laplace_metrics(run, splits.train, other)
    x, kernel, bias = jnp.ones((2, 3)), jnp.ones((3, 2)), jnp.zeros(2)
    with pytest.raises(ValueError, match="likelihood must be one of softmax, sigmoid; got 'probit'"):
        precision(x, kernel, bias, likelihood="probit")
    known = posterior(precision(x, kernel, bias), 1.0)
    with pytest.raises(ValueError, match="likelihood must be one of softmax, sigmoid; got 'probit'"):
        predictive(known, x, kernel, bias, jax.random.key(0), likelihood="probit")
    with pytest.raises(ValueError, match="samples must be at least 1, got 0"):
        predictive(known, x, kernel, bias, jax.random.key(0), samples=0)


def test_a_task_without_a_likelihood_is_refused():
    splits = from_arrays(*arrays("regression"))
    run = fit(config(epochs=1.0), splits=splits)
    with pytest.raises(ValueError, match="is for classification and multi-label; the task here is regression"):
        laplace_metrics(run, splits.train, splits.test)
    with pytest.raises(ValueError, match="method.moments='laplace' is for classification and multi-label"):
        build_experiment(config(method=BogcConfig(samples=16)), splits)


@pytest.mark.parametrize("moments", ["laplace", "ema", "microbatch"])
@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_bogc_trains_on_other_tasks(task, moments):
    if (task, moments) == ("regression", "laplace"):
        pytest.skip("refused, above")
    splits = from_arrays(*arrays(task))
    own = {"laplace": {"samples": 16, "prior_precision": TAU}, "microbatch": {"parts": 2}, "ema": {}}
    method = BogcConfig(moments=moments, **own[moments])
    options = config(method=method, epochs=8.0)
    run = fit(options, splits=splits)
    score = "fusion/map" if task == "multilabel" else "fusion/r2"
    untrained = fit(dataclasses.replace(options, optimizer=AdamConfig(learning_rate=1e-9)), splits=splits)
    assert run.metrics[score] > untrained.metrics[score] + 0.1
