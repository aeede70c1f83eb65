"""BOGC against uniform, by hand, over scales, devices, seeds and interruptions; and what it refuses."""

from __future__ import annotations

import dataclasses
import hashlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract.problems import encode, head_losses_aux, make_batch, make_params
from jax.extend.core import jaxprs_in_params
from jax.sharding import AxisType, PartitionSpec

import mmjax
from mmjax.bayes.laplace import precision, sample_weights
from mmjax.bayes.moments import ema, laplace, mean_cross_entropy, microbatch
from mmjax.config import Config, Layout, ModelConfig, TrainConfig
from mmjax.data import Planted, batch_indices, from_arrays, gather
from mmjax.models import ConcatConfig, MLPConfig
from mmjax.optim import BogcConfig, bogc, uniform
from mmjax.train import loop
from mmjax.train.experiment import build_experiment
from mmjax.train.observer import Observer
from mmjax.train.optimizer import SGDConfig
from mmjax.train.step import train_step

LAYOUT = Layout(
    features={"audio": (4,), "image": (4,)}, last_layer={"fusion": (5, 3), "audio": (4, 3), "image": (4, 3)}
)
NAMES = ("fusion", "audio", "image")
SETTING = {"num_examples": 100, "layout": LAYOUT}


def close(a, b, rtol=1e-6, atol=1e-6):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), a, b)


def leaves_scaled(tree, factor):
    return jax.tree.map(lambda x: np.asarray(x) * factor, tree)


def stepper(tx, axis_name=None, **fixed):
    """(params, state, batch, scale of the losses) -> (update, state), not compiled."""

    def scaled(params, features, batch, scale):
        losses, aux = head_losses_aux(params, features, batch)
        return {n: scale * x for n, x in losses.items()}, aux

    def step(params, state, batch, scale=1.0):
        fn = mmjax.objective_grads(
            lambda p, z, b: scaled(p, z, b, scale),
            encode=lambda p, b: (encode(p, b), None),
            has_aux=True,
            batch_argnums=1,
            axis_name=axis_name,
        )
        values, grads, (_, aux) = fn(params, batch)
        loss = mean_cross_entropy(batch["label"], "softmax")
        extra = {"last_layer": aux["last_layer"], "key": jax.random.key(7), "logit_loss": lambda x: scale * loss(x)}
        return tx.update(grads, state, params, values=values, **(extra | fixed))

    return step


@pytest.fixture(scope="module")
def problem():
    return make_params(), make_batch()


@pytest.fixture(scope="module")
def plain(problem):
    """The uniform update."""
    params, batch = problem
    return jax.jit(stepper(uniform()))(params, uniform().init(params), batch)[0]


# -- known answers -------------------------------------------------------------------------------------------------------


def test_equal_evidence_is_uniform_at_both_levels(problem, plain):
    """At its first step the moving average knows no variance: all evidence is equal."""
    params, batch = problem
    for tx in (bogc(ema(), level="parameters", layout=LAYOUT), bogc(ema(), layout=LAYOUT)):
        update, state = jax.jit(stepper(tx))(params, tx.init(params), batch)
        close(update, plain)
        np.testing.assert_allclose(state.weights, [1, 1, 1], rtol=1e-6)
        held = [float(v) for n, v in state.diagnostics.items() if "held_back" in n]
        assert held and not any(held)


def test_update_by_hand_at_the_parameters():
    """Two objectives on one leaf over two steps, an entry where one of them is dead, one where both are."""
    tx = bogc(ema(0.9), level="parameters", num_objectives=2)
    series = np.float32([[[1, 2, 3, 0], [1, -1, 0, 0]], [[1.5, 2.2, 1, 0], [0, 3, 0, 0]]])
    params = {"w": jnp.zeros(4)}

    @jax.jit
    def two(series):
        state = tx.init(params)
        for rows in series:
            update, state = tx.update({"w": rows}, state, params)
        return update["w"], state

    update, state = two(series)
    g = series.astype(np.float64)
    a = 0.1 / (1 - 0.9**2)
    v = (1 - a) * a * (g[1] - g[0]) ** 2
    live = np.array([[True, True, True, False], [True, True, False, False]])
    mean_v = v[live].mean()
    e = np.where(live, mean_v / (v + 1e-3 * mean_v), 0)
    b = e / (e + 1)
    w = np.where(live.any(0), b / np.maximum(b.sum(0), 1e-9), 0.5)
    fused = 1 - np.prod(1 / (e + 1), axis=0)
    c = np.where(live.any(0), fused / fused[live.any(0)].mean(), 1)
    np.testing.assert_allclose(update, 2 * (w * g[1]).sum(0) * c, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(state.weights, 2 * w.mean(1), rtol=1e-5)
    np.testing.assert_allclose(state.diagnostics["bogc/evidence/w/0"], e[0][live[0]].mean(), rtol=1e-5)
    np.testing.assert_allclose(state.diagnostics["bogc/held_back/w"], (c[live.any(0)] < 0.5).mean(), rtol=1e-6)


def test_samples_are_pulled_back_and_then_their_moments_taken(problem):
    """Through the fusion head's hidden layer, where the variance of the pull-back is not the pull-back of the variance."""
    params, batch = problem
    seen = {}
    estimator = laplace(prior_precision=5.0, mean="posterior", refresh_every=1)

    def spying(setting, gradients, state, given):
        seen["moments"], state = estimator.estimate(setting, gradients, state, given)
        seen["posteriors"] = state.posteriors
        return seen["moments"], state

    tx = bogc(estimator._replace(estimate=spying), **SETTING)

    @jax.jit
    def estimated(params, batch):
        _, state = stepper(tx)(params, tx.init(params), batch)
        return seen["moments"], seen["posteriors"], state.moments.trace

    moments, posteriors, trace = estimated(params, batch)
    (mean, variance), _ = moments  # audio: objectives fusion and audio

    @jax.jit
    def expected(params, batch):
        features = encode(params, batch)
        last = head_losses_aux(params, features, batch)[1]["last_layer"]
        fitted = {n: 100 / 8 * precision(*last[n]) + 5 * jnp.eye(3 * (last[n][1].shape[0] + 1)) for n in last}
        weights = sample_weights(
            posteriors["fusion"], *last["fusion"][1:], jax.random.fold_in(jax.random.key(7), 0), 64
        )

        def loss_of_sample(audio, w):
            inputs = head_losses_aux(params, features | {"audio": audio}, batch)[1]["last_layer"]["fusion"][0]
            return mean_cross_entropy(batch["label"], "softmax")(inputs @ w[:, :-1].T + w[:, -1])

        samples = jax.vmap(lambda w: jax.grad(loss_of_sample)(features["audio"], w))(weights)
        return samples, fitted["fusion"], jnp.mean(jnp.sum((weights - weights.mean(0)) ** 2, (1, 2)))

    samples, fitted, spread = expected(params, batch)
    np.testing.assert_allclose(mean[0], samples.mean(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(variance[0], np.var(samples, axis=0, ddof=1), rtol=1e-3, atol=1e-9)
    factor = np.linalg.inv(np.asarray(posteriors["fusion"].root))
    np.testing.assert_allclose(factor @ factor.T, fitted, rtol=1e-4, atol=1e-4)  # N/B times the batch's
    np.testing.assert_allclose(trace[0], spread, rtol=0.1)


def test_update_by_hand_at_the_features(problem):
    """Unequal evidence, example by example, with a unit on which one objective is dead; the encoders get its pull-back."""
    params, batch = problem
    head = params["head"]["audio"]
    blind = {**head, "kernel": head["kernel"].at[1].set(0.0)}  # its own head does not look at unit 1
    params = {**params, "head": {**params["head"], "audio": blind}}
    seen = {}
    estimator = laplace(prior_precision=5.0, refresh_every=1)

    def spying(*arguments):
        seen["moments"], state = estimator.estimate(*arguments)
        return seen["moments"], state

    tx = bogc(estimator._replace(estimate=spying), **SETTING)

    @jax.jit
    def step(params):
        update, state = stepper(tx)(params, tx.init(params), batch)
        return update, state, seen["moments"]

    update, state, moments = step(params)
    combined = {}
    for m, (mean, variance) in zip(("audio", "image"), moments, strict=True):
        g, v = np.asarray(mean, np.float64), np.asarray(variance, np.float64)  # [fusion and m, B, D]
        live = np.broadcast_to((g**2).sum(1, keepdims=True) > 0, g.shape)
        typical = v[live].mean()  # over objectives, examples and dimensions
        e = np.where(live, typical / (v + 1e-3 * typical), 0)
        b = e / (e + 1)
        w = b / b.sum(0)
        fused = 1 - np.prod(1 / (e + 1), axis=0)
        combined[m] = jnp.asarray(2 * (w * g).sum(0) * fused / fused.mean(), jnp.float32)
        np.testing.assert_allclose(state.diagnostics[f"bogc/evidence/{m}/{m}"], e[1][live[1]].mean(), rtol=1e-4)
        assert (~live[1]).any() == (m == "audio") and np.ptp(w) > 0.1  # else this shows little
        if m == "audio":
            np.testing.assert_array_equal(w[0, :, 1], 1)  # the fusion alone has an opinion there
    pulled = jax.vjp(lambda p: encode(p, batch), params)[1](combined)[0]
    direct, _ = jax.jit(stepper(uniform()))(params, uniform().init(params), batch)
    close(update["encoder"], pulled["encoder"], rtol=1e-4, atol=1e-6)
    close({k: x for k, x in update.items() if k != "encoder"}, {k: x for k, x in direct.items() if k != "encoder"})


def test_a_certain_posterior_has_no_variance_and_the_gradients_own_scale(problem, plain):
    """τ → ∞; evidence is free of scale, so only the posterior's mean shows a wrong one."""
    params, batch = problem
    seen = {}
    estimator = laplace(prior_precision=1e12, mean="posterior")

    def spying(*arguments):
        seen["moments"], state = estimator.estimate(*arguments)
        return tuple(m._replace(variance=0 * m.variance) for m in seen["moments"]), state

    tx = bogc(estimator._replace(estimate=spying), **SETTING)
    update, deviation = jax.jit(
        lambda p, b: (stepper(tx)(p, tx.init(p), b)[0], [jnp.sqrt(v) / jnp.max(jnp.abs(m)) for m, v in seen["moments"]])
    )(params, batch)
    close(update, plain, rtol=1e-4, atol=1e-5)
    assert max(float(d.max()) for d in deviation) < 1e-4


@pytest.mark.parametrize("estimator", [laplace(refresh_every=1, prior_precision=3.0), ema()], ids=["laplace", "ema"])
def test_one_factor_on_all_losses_changes_nothing_else(problem, estimator):
    params, batch = problem
    other = make_batch(seed=5)
    tx = bogc(estimator, **SETTING)

    @jax.jit
    def two(scale):
        _, state = stepper(tx)(params, tx.init(params), batch, scale)
        return stepper(tx)(params, state, other, scale)

    (update, state), *others = [two(s) for s in (1.0, 1e-4, 1e4)]
    for (scaled, told), scale in zip(others, (1e-4, 1e4), strict=True):
        close(leaves_scaled(scaled, 1 / scale), update, rtol=2e-5, atol=2e-6)
        np.testing.assert_allclose(told.weights, state.weights, rtol=1e-5)
    assert np.ptp(state.weights) > 0.01  # the moments did weigh


def test_conservatism_leaves_most_entries_moving_with_dead_units_and_constant_inputs():
    """Harmonic evidence: the median c_d of live entries is in [0.5, 2]; dead entries get the plain sum."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(12, 2, 400)) * 10 ** rng.uniform(-3, 0, (1, 2, 400))
    rows[..., :40] = 0  # dead units
    rows[..., 40:60] = rows[:1, :, 40:60]  # constant inputs: no variance
    rows = rows.astype(np.float32)
    params = {"w": jnp.zeros(400)}
    boldness = {}
    for conservatism in (True, False):
        tx = bogc(ema(), level="parameters", num_objectives=2, conservatism=conservatism)

        @jax.jit
        def last(rows, tx=tx):
            step = lambda state, g: tx.update({"w": g}, state, params)[::-1]  # noqa: E731
            state, updates = jax.lax.scan(step, tx.init(params), rows)
            return updates["w"][-1], state

        boldness[conservatism], state = last(rows)
    live = slice(40, None)
    c = np.asarray(boldness[True])[live] / np.asarray(boldness[False])[live]
    assert 0.5 <= np.median(c) <= 2 and c.min() >= 0
    np.testing.assert_array_equal(boldness[True][:40], 0)
    np.testing.assert_allclose(c.mean(), 1, rtol=1e-5)


def test_one_objective_is_its_gradient_without_conservatism():
    tx = bogc(ema(), level="parameters", num_objectives=1, conservatism=False)
    params = {"w": jnp.zeros(3)}
    state = tx.init(params)
    for g in ([[1.0, 2.0, 0.0]], [[0.5, -3.0, 0.0]]):
        update, state = tx.update({"w": jnp.array(g)}, state, params)
    np.testing.assert_allclose(update["w"], [0.5, -3, 0], rtol=1e-6)


def test_balanced_gradients_that_repeat_stay_uniform():
    """Over a run: where no gradient changes, all evidence is equal."""
    rows = 2.0 * jnp.linalg.qr(np.random.default_rng(5).normal(size=(9, 3)))[0].T
    tx = bogc(ema(), level="parameters", num_objectives=3, conservatism=False)
    params = {"w": jnp.zeros(9)}
    state = tx.init(params)
    for _ in range(4):
        update, state = tx.update({"w": rows}, state, params)
        np.testing.assert_allclose(update["w"], rows.sum(axis=0), rtol=1e-4, atol=1e-5)


def test_an_absent_objective_has_no_say_and_its_memory_stays():
    def run(active):
        tx = bogc(ema(), level="parameters", num_objectives=3)
        params = {"w": jnp.zeros(6)}
        rows = np.random.default_rng(1).normal(size=(4, 3, 6)).astype(np.float32)
        state = tx.init(params)

        @jax.jit
        def step(state, g, active):
            return tx.update({"w": g}, state, params, active=active)

        for g in rows[:3]:
            update, state = step(state, g, np.ones(3, bool))
        before = state
        g = rows[3].copy()
        g[~active] = np.nan
        update, state = step(state, g, active)
        return update["w"], before, state

    active = np.array([True, True, False])
    update, before, after = run(active)
    assert np.isfinite(update).all() and after.weights[2] == 0
    for new, old in (
        (after.squares["w"], before.squares["w"]),
        (after.moments.variance[0], before.moments.variance[0]),
    ):
        np.testing.assert_array_equal(new[2], old[2])
        assert np.abs(np.asarray(new[:2]) - old[:2]).max() > 0
    assert after.seen.tolist() == [4, 4, 3]


def test_temperature_and_relative_evidence():
    """T → ∞ is uniform; relative evidence does not see that one objective's gradient is longer."""
    rows = np.random.default_rng(2).normal(size=(5, 2, 30)).astype(np.float32)
    params = {"w": jnp.zeros(30)}

    def weights(scale, **options):
        tx = bogc(ema(), level="parameters", num_objectives=2, **options)
        step = lambda state, g: tx.update({"w": g}, state, params)[::-1]  # noqa: E731
        return jax.jit(lambda r: jax.lax.scan(step, tx.init(params), r)[0].weights)(rows * np.float32([[scale], [1]]))

    np.testing.assert_allclose(weights(3.0, temperature=1e6), [1, 1], rtol=1e-4)
    longer, level = weights(10.0), weights(1.0)
    assert longer[0] < level[0] - 0.3  # precision favours the shorter gradient
    np.testing.assert_allclose(weights(10.0, relative=True), weights(1.0, relative=True), rtol=1e-5)


def test_an_update_has_a_derivative_with_respect_to_the_temperature():
    rows = np.random.default_rng(4).normal(size=(2, 2, 6, 5)).astype(np.float32)
    params = {"w": jnp.zeros((6, 5))}

    @jax.jit
    def last(temperature):
        tx = bogc(ema(), level="parameters", num_objectives=2, temperature=temperature)
        state = tx.init(params)
        for g in rows:
            update, state = tx.update({"w": g}, state, params)
        return jnp.sum(update["w"] * rows[0, 0])

    slope = jax.jit(jax.grad(last))(2.0)
    np.testing.assert_allclose(slope, (last(2.01) - last(1.99)) / 0.02, rtol=1e-2)


def test_refresh_is_taken_when_the_caller_says_so(problem):
    params, batch = problem
    tx = bogc(laplace(), **SETTING)

    @jax.jit
    def step(state, refresh):
        return stepper(tx, refresh=refresh)(params, state, batch)[1]

    first = step(tx.init(params), False)
    second = step(first, True)
    before, after = (np.linalg.inv(s.moments.posteriors["fusion"].root) for s in (first, second))
    np.testing.assert_allclose(before, np.sqrt(10) * np.eye(18), rtol=1e-6)  # the prior's, τ = N/10
    assert np.abs(after - before).max() > 0.01


def decompositions(jaxpr, in_cond=False):
    """Count Cholesky decompositions in a program: (those that every step makes, those that a condition guards)."""
    always = guarded = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "cholesky":
            always, guarded = always + (not in_cond), guarded + in_cond
        for inner in jaxprs_in_params(equation.params):
            a, g = decompositions(inner, in_cond or equation.primitive.name == "cond")
            always, guarded = always + a, guarded + g
    return always, guarded


@pytest.mark.parametrize("by", ["count", "caller"])
def test_runs_in_one_program_pay_for_a_posterior_only_when_one_is_due(problem, by):
    """Also when each run has its own predicate; and each takes the posterior at its own steps."""
    params, batch = problem
    tx = bogc(laplace(refresh_every=3 if by == "count" else None), **SETTING)

    def step(params, state, batch, due):
        return stepper(tx, **({} if by == "count" else {"refresh": due}))(params, state, batch)[1]

    due = jnp.array([True, False])
    states = jax.vmap(lambda _: tx.init(params))(due)
    states = states._replace(count=jnp.array([3, 4]))
    many = jax.vmap(step, (None, 0, None, 0))
    traced = jax.make_jaxpr(many)(params, states, batch, due)
    always, guarded = decompositions(traced.jaxpr)
    assert always == 0 and guarded >= 3  # three objectives; with jitter besides
    after = jax.jit(many)(params, states, batch, due).moments.posteriors
    prior = tx.init(params).moments.posteriors
    for name, found in after.items():
        taken, kept = (jax.tree.map(lambda x, i=i: x[i], found).root for i in (0, 1))
        np.testing.assert_array_equal(kept, prior[name].root)
        assert np.abs(np.linalg.inv(taken) - np.linalg.inv(prior[name].root)).max() > 0.01


def test_a_modality_that_no_example_has_does_not_enter_the_weights(problem):
    """It says nothing, and what `.weights` tells of the others is what the leaves with an opinion say."""
    params, batch = problem
    tx = bogc(ema(), **SETTING)
    state = tx.init(params)
    size = len(batch["label"])
    none_of_audio = np.stack([np.zeros(size, bool), np.ones(size, bool)], axis=1)
    step = jax.jit(lambda state, batch, present: stepper(tx, present=present)(params, state, batch)[1])
    for seed in (1, 2):
        state = step(state, make_batch(seed), np.ones((size, 2), bool))
    told = step(state, make_batch(3), none_of_audio)
    fusion = told.diagnostics["bogc/weight/image/fusion"]
    assert abs(float(fusion) - 1) > 0.01
    np.testing.assert_allclose(told.weights[0], fusion, rtol=1e-6)


# -- devices, seeds, interruptions ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("parts", "devices"), [(4, 2), (2, 4)])
def test_micro_batches_are_the_same_on_devices(problem, parts, devices):
    """Several parts on a device, and several devices on a part."""
    params, batch = problem
    tx = bogc(microbatch(parts), **SETTING)
    update, _ = jax.jit(stepper(tx))(params, tx.init(params), batch)
    mesh = jax.make_mesh((devices,), ("d",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])
    spread = jax.shard_map(
        stepper(tx, axis_name="d"),
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec(), PartitionSpec("d")),
        out_specs=PartitionSpec(),
    )
    close(jax.jit(spread)(params, tx.init(params), batch)[0], update, rtol=1e-5)


@pytest.mark.parametrize("level", ["features", "parameters"])
def test_moving_moments_are_the_same_on_eight_devices(problem, level):
    """An example a device, over steps: state and update."""
    params, _ = problem
    tx = bogc(ema(), level=level, **SETTING)
    mesh = jax.make_mesh((8,), ("d",), axis_types=(AxisType.Auto,), devices=jax.devices()[:8])
    spread = jax.shard_map(
        stepper(tx, axis_name="d"),
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec(), PartitionSpec("d")),
        out_specs=PartitionSpec(),
    )
    here, there = jax.jit(stepper(tx)), jax.jit(spread)
    state = other = tx.init(params)
    for seed in (1, 2, 3):
        batch = make_batch(seed)
        update, state = here(params, state, batch)
        update_there, other = there(params, other, batch)
        close(update_there, update, rtol=1e-4)
        close(other, state, rtol=1e-4)


@pytest.fixture(scope="module")
def splits():
    rng = np.random.default_rng(0)
    label = rng.integers(0, 3, 96)
    return from_arrays({m: np.eye(3)[label] + rng.normal(size=(96, 3)) for m in "ab"}, label)


def config(method=None, **train):
    options = {"epochs": 1.0, "batch_size": 8, "devices": 1, "monitor_every": 0, "evaluate_every": 4, "log_every": 4}
    return Config(
        data=Planted(),
        model=ModelConfig(encoders={m: MLPConfig(width=4, depth=1) for m in "ab"}, fusion=ConcatConfig(hidden=(5,))),
        method=method or BogcConfig(samples=16, refresh_epochs=0.5, mean="posterior"),
        optimizer=SGDConfig(learning_rate=0.3),
        train=TrainConfig(**(options | train)),
    )


class Watch(Observer):
    """Keeps the rows; breaks off when told to."""

    def __init__(self, stop_at=None):
        self.rows, self.stop_at = [], stop_at

    def row(self, row):
        self.rows.append(row)
        if row["kind"] == "validation" and row["step"] == self.stop_at:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def whole_run(splits):
    """A run without interruption on one device: its rows and its last state."""
    watch, kept = Watch(), {}
    with pytest.MonkeyPatch.context() as patch:
        _keep_states(patch, kept)
        run = mmjax.fit(config(), splits=splits, observer=watch)
    return run, watch.rows, kept["state"]


def _keep_states(patch, kept):
    save = loop._Loop._save

    def keep(self, local):
        kept["state"] = jax.device_get(local)
        save(self, local)

    patch.setattr(loop._Loop, "_save", keep)


def test_eight_devices_give_what_one_gives(splits, whole_run, monkeypatch):
    """On both routes: draws, sums over examples and the posterior's scale; SGD in float32."""
    _, _, expected = whole_run
    for parallel in ("jit", "pmap"):
        kept = {}
        with monkeypatch.context() as patch:
            _keep_states(patch, kept)
            mmjax.fit(config(devices=8, parallel=parallel), splits=splits)
        close(kept["state"].params, expected.params, rtol=1e-4, atol=1e-5)
        close(
            kept["state"].opt_state[0].inner.moments.posteriors,
            expected.opt_state[0].inner.moments.posteriors,
            1e-4,
            1e-4,
        )
        close(kept["state"].opt_state[0].weights, expected.opt_state[0].weights, 1e-4)


def test_an_interrupted_run_goes_on_bit_for_bit(splits, whole_run, tmp_path, monkeypatch):
    """Parameters, and the whole state: moments, posteriors, counts, the optimizer's."""
    with pytest.raises(KeyboardInterrupt):
        mmjax.fit(config(), tmp_path, splits=splits, observer=Watch(stop_at=8))
    kept = {}
    _keep_states(monkeypatch, kept)
    resumed = mmjax.fit(config(), tmp_path, splits=splits)

    def digest(tree):
        return hashlib.sha256(b"".join(np.asarray(x).tobytes() for x in jax.tree.leaves(tree))).hexdigest()

    assert digest(resumed.params) == digest(whole_run[0].params)
    assert len(jax.tree.leaves(kept["state"].opt_state)) > 20
    assert digest(kept["state"].opt_state) == digest(whole_run[2].opt_state)


def test_the_posterior_is_of_the_whole_training_set_and_the_rows_tell_of_it(splits, whole_run):
    _, rows, state = whole_run
    steps = -(-len(splits.train) // 8)
    experiment = build_experiment(config(), splits)
    assert experiment.refresh.every == -(-steps // 2)
    told = [row for row in rows if row["kind"] == "train"][-1]
    keys = {k for k in told if k.startswith("bogc/")}
    assert {"bogc/evidence/a/fusion", "bogc/weight/b/b", "bogc/held_back/a", "bogc/posterior_trace/fusion"} <= keys
    assert told["bogc/posterior_trace/b"] > 0 and 0 < told["bogc/weight/a/a"] < 2
    assert told["bogc/weight/a/a"] + told["bogc/weight/a/fusion"] == pytest.approx(2, rel=1e-5)
    assert told["bogc/evidence/a/b"] == 0  # no opinion
    refresh = experiment.refresh
    variables = {"params": state.params}
    inference = experiment.training.inference
    batch = gather(splits.train, np.arange(len(splits.train)))
    outputs = jax.jit(inference.model.apply)(variables, batch.inputs)
    combiner = refresh.finish(
        refresh.add(
            refresh.start(state.opt_state[0].inner), outputs, batch.label, np.ones(len(batch.label), np.float32)
        ),
        state.opt_state[0].inner,
    )
    factor = np.linalg.inv(np.asarray(combiner.moments.posteriors["b"].root))
    direct = precision(*outputs.last_layer["b"]) + len(splits.train) / 10 * np.eye(len(factor))
    np.testing.assert_allclose(factor @ factor.T, direct, rtol=1e-4, atol=1e-4)


def test_vmapped_seeds_are_the_sequential_ones(splits):
    experiment = build_experiment(config(), splits)
    step = partial(train_step, experiment.training)
    states = []
    for seed in (0, 1):
        start = dataclasses.replace(experiment, config=config(seed=seed)).initial_state()
        states.append(start)
    batches = [gather(splits.train, batch_indices(seed, 0, len(splits.train), 8)) for seed in (0, 1)]
    stack = lambda trees: jax.tree.map(lambda *x: jnp.stack(x), *trees)  # noqa: E731
    many = jax.jit(jax.vmap(step))(stack(states), stack(batches))[0]
    one = jax.jit(step)
    for i in (0, 1):
        alone = one(states[i], batches[i])[0]
        close(jax.tree.map(lambda x, i=i: x[i], many.params), alone.params, rtol=1e-5)
        close(jax.tree.map(lambda x, i=i: x[i], many.opt_state), alone.opt_state, rtol=1e-4, atol=1e-5)


# -- what it refuses -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"level": "layers"}, "level must be one of features, parameters; got 'layers'"),
        ({"normalizer": "mean"}, "normalizer must be one of harmonic, median; got 'mean'"),
        ({"moments": "fisher"}, "moments must be an estimator or one of laplace, ema, microbatch; got 'fisher'"),
        ({"temperature": 0}, "temperature must be a finite number > 0, got 0"),
        ({"level": "parameters"}, "moments='laplace' serve level features, not level='parameters'"),
        ({"layout": None}, "give layout="),
        ({"num_examples": None}, "laplace needs num_examples"),
        ({"num_examples": 0}, "num_examples must be at least 1, got 0"),
        ({"num_objectives": 4}, "num_objectives = 4, but the layout has 3"),
        ({"moments": "ema", "level": "parameters", "layout": None}, "give num_objectives"),
    ],
)
def test_options_out_of_range_are_named(problem, options, message):
    with pytest.raises(ValueError, match=message):
        bogc(**(SETTING | options)).init(problem[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prior_precision": 0.0}, "method.prior_precision"),
        ({"samples": 8}, "method.samples must be an integer >= 16, got 8"),
        ({"parts": 1}, "method.parts must be an integer >= 2"),
        ({"refresh_epochs": 0}, "method.refresh_epochs"),
        ({"level": "parameters"}, "method.moments='laplace' has no level='parameters'"),
        ({"moments": "microbatch", "parts": 3}, "train.batch_size = 8 does not divide into method.parts = 3"),
    ],
)
def test_configurations_out_of_range_are_named(splits, change, message):
    with pytest.raises(ValueError, match=message):
        build_experiment(config(BogcConfig(**change)), splits)


@pytest.mark.parametrize(
    ("moments", "change", "whose"),
    [
        ("ema", {"samples": 128}, "laplace"),
        ("microbatch", {"decay": 0.5}, "ema"),
        ("laplace", {"parts": 2}, "microbatch"),
    ],
)
def test_an_option_of_another_estimator_is_warned_of(moments, change, whose):
    (name,) = change
    with pytest.warns(
        UserWarning, match=rf"method\.{name} is an option of moments='{whose}'; with moments='{moments}' it"
    ):
        BogcConfig(moments=moments, **change).validate()


def test_gradients_that_do_not_serve_are_named(problem):
    params, batch = problem

    def traced(tx, **extra):
        jax.eval_shape(lambda p, b: stepper(tx, **extra)(p, tx.init(p), b)[0], params, batch)

    stacked = jax.tree.map(lambda p: jnp.zeros((3, *p.shape)), params)
    tx = bogc("ema", **SETTING)
    with pytest.raises(ValueError, match="needs lazy gradients.*got a stacked tree"):
        tx.update(stacked, tx.init(params), params)
    tx = bogc("microbatch", level="parameters", **SETTING)
    with pytest.raises(ValueError, match="micro-batch moments at the parameters need lazy gradients"):
        tx.update(stacked, tx.init(params), params)
    with pytest.raises(ValueError, match="2 objectives came, but bogc was made for 3"):
        tx.update(jax.tree.map(lambda g: g[:2], stacked), tx.init(params), params)
    with pytest.raises(ValueError, match="does not divide into 3 equal parts"):
        traced(bogc(microbatch(3), **SETTING))
    with pytest.raises(ValueError, match="labels"):
        traced(bogc("laplace", **SETTING), logit_loss=None)
    wrong = dataclasses.replace(LAYOUT, features={"audio": (4,), "image": (7,)})
    with pytest.raises(ValueError, match=r"the layout says .*\(7,\)"):
        traced(bogc("ema", layout=wrong))
    wrong = dataclasses.replace(LAYOUT, last_layer=LAYOUT.last_layer | {"audio": (4, 5)})
    with pytest.raises(ValueError, match="last_layer has kernels"):
        traced(bogc("laplace", layout=wrong, num_examples=10))
