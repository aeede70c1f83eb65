"""Known answers that a method's constructor (K -> transformation) must give; each raises AssertionError."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import nnls

from mmjax.bayes.moments import Estimator, Moments
from mmjax.testing import problems
from mmjax.testing.problems import Problem
from mmjax.testing.subject import Subject


def subject(make, random: bool = False) -> Subject:
    """The transformation, ready to run on problems."""
    return Subject(make, num_objectives=(1, 2, 3, 5), forms=("stacked", "lazy"), random=random, extra=None, rtol=1e-4)


def sum_of_rows(weights, problem: Problem) -> np.ndarray:
    """Σ_k w_k g_k in float64, inactive rows left out."""
    matrix = problem.matrix.astype(np.float64)
    if problem.active is not None:
        matrix = np.where(problem.active[:, None], matrix, 0)
    return np.asarray(weights, np.float64) @ matrix


def close(got, wanted, scale: float = 1.0, rtol: float = 1e-4) -> None:
    np.testing.assert_allclose(got, wanted, rtol=rtol, atol=rtol * scale)


def uniform_is_the_sum(make) -> None:
    for structure in ("dense", "encoders"):
        for problem in (problems.random(3, structure), problems.absent(problems.random(3, structure), 2)):
            outcome = subject(make).update(problem)
            weights = np.ones(3) if problem.active is None else [1, 1, 0]
            close(outcome.flat, sum_of_rows(weights, problem))
            np.testing.assert_array_equal(outcome.weights, weights)


def joint_follows_the_fusion(make) -> None:
    run = subject(make)
    problem = problems.random(3, "encoders")
    for form in ("stacked", "lazy"):
        outcome = run.update(problem, form)
        got, rows = outcome.update, problem.rows
        for m in ("audio", "gaze"):
            close(got["encoder"][m]["kernel"], rows["encoder"][m]["kernel"][0])
            own = problem.names.index(m)
            close(got["head"][m]["kernel"], rows["head"][m]["kernel"][own])  # probes learn on their own losses
        close(got["fusion"]["kernel"], rows["fusion"]["kernel"][0])
        np.testing.assert_array_equal(outcome.weights, [1, 0, 0])
    dense = problems.conflicting(3, "dense")
    close(run.update(dense).flat, dense.matrix[0])


def mimo_follows_its_formula(penalty: float = 2.0, smoothing: float = 0.1):
    """g_0 + λ Σ_m π_m g_m with π = softmax(L/μ) over those active, in float64."""

    def check(make) -> None:
        run = subject(make)
        base = dataclasses.replace(problems.random(4), values=np.array([3.0, 1.0, 1.05, 0.9], np.float32))
        outliers = dataclasses.replace(base, values=np.array([0.1, 900.0, 899.9, 1.0], np.float32))
        for problem in (base, outliers, problems.absent(base, 2), problems.scaled(problems.absent(base, 1), 2.0)):
            active = np.ones(4, bool) if problem.active is None else problem.active
            losses = np.where(active, problem.values, -np.inf).astype(np.float64)[1:]
            pi = np.exp((losses - losses.max()) / smoothing)
            weights = np.concatenate([[1.0], penalty * pi / pi.sum()])
            outcome = run.update(problem)
            close(outcome.weights, weights, rtol=1e-3)
            close(outcome.flat, sum_of_rows(weights, problem), problem.norm, rtol=1e-3)

    return check


def mimo_counts_its_steps(make) -> None:
    """`make` gives a penalty that doubles with every step, from 1."""
    run = subject(make)
    problem = dataclasses.replace(problems.random(2))
    state = None
    for step in range(3):
        outcome = run.update(problem, state=state)
        close(outcome.weights, [1.0, 2.0**step])
        state = outcome.state


def normalised_sum(make) -> None:
    """Σ_k g_k / ‖g_k‖: the plain sum of unit gradients."""
    problem = problems.random(3)
    norms = np.linalg.norm(problem.matrix.astype(np.float64), axis=1)
    for form in ("stacked", "lazy"):
        close(subject(make).update(problem, form).flat, sum_of_rows(1 / norms, problem))


# ---- methods that weigh by numbers -----------------------------------------------------------------------------------


def weights_over_steps(make, losses, **extra) -> np.ndarray:
    """The weights [steps, K] of a run with these losses [steps, K]; extra: further arguments, one entry a step."""
    state, seen = None, []
    for step, values in enumerate(losses):
        problem = dataclasses.replace(problems.random(len(values)), values=np.asarray(values, np.float32))
        given = {name: np.asarray(each[step], np.float32) for name, each in extra.items()}
        run = Subject(
            make, num_objectives=(len(values),), forms=("stacked",), random=False, extra=lambda p, g=given: g, rtol=1e-4
        )
        outcome = run.update(problem, state=state)
        state = outcome.state
        seen.append(outcome.weights)
    return np.array(seen)


def stch_is_a_smooth_maximum(make) -> None:
    """Π = softmax(L/μ) over all objectives with μ = 0.1, in float64."""
    losses = np.array([[1.0, 1.05, 0.9], [500.0, 499.95, 1.0]], np.float32).astype(np.float64)
    wanted = np.exp((losses - losses.max(axis=1, keepdims=True)) / 0.1)
    close(weights_over_steps(make, losses), wanted / wanted.sum(axis=1, keepdims=True), rtol=1e-3)


def uncertainty_learns_variances(make) -> None:
    """½ each at first; then Adam's first step, of length 0.1 against the sign of ½ − ½ L."""
    got = weights_over_steps(make, [[0.5, 2.0, 3.0], [1.0, 1.0, 1.0]])
    close(got, [[0.5] * 3, [0.5 * np.exp(0.1), 0.5 * np.exp(-0.1), 0.5 * np.exp(-0.1)]], rtol=1e-3)


def dwa_compares_windows(make) -> None:
    """Windows of 2 steps, T = ½: uniform for two of them, then K softmax of the ratio of their means."""
    losses = [[1.0, 1.0], [3.0, 3.0], [2.0, 1.0], [2.0, 0.6], [9.0, 9.0]]
    ratios = np.array([1.0, 0.4]) / 0.5
    wanted = 2 * np.exp(ratios) / np.exp(ratios).sum()
    close(weights_over_steps(make, losses), [[1.0, 1.0]] * 4 + [wanted], rtol=1e-3)


def famo_evens_out_the_rates(make) -> None:
    """1/L at first; then what fell more in log L has lost: Adam's first step of 0.025 on ξ."""
    got = weights_over_steps(make, [[3.0, 1.0], [2.9, 0.5]])
    xi = np.array([0.025, -0.025])
    second = np.exp(xi) / np.array([2.9, 0.5])
    close(got, [[0.25, 0.75], second / second.sum()], rtol=1e-4)


def gblend_prefers_what_generalises(make) -> None:
    """|ΔL_val| / Δ(L_val − L_train)², summing to K, from the third call on."""
    losses = [[1.0, 1.0], [0.5, 0.2], [0.4, 0.1]]
    validation = [[np.nan, np.nan], [1.0, 1.0], [0.8, 0.7]]
    share = np.array([0.2 / 0.3**2, 0.3 / 0.5**2])  # gaps: 0, then 0.3 and 0.5
    got = weights_over_steps(make, losses, validation_values=validation)
    close(got, [[1.0, 1.0], [1.0, 1.0], 2 * share / share.sum()], rtol=1e-3)


# ---- random methods --------------------------------------------------------------------------------------------------


def rlw_draws_normal_logits(make) -> None:
    """Weights on the simplex, spread as softmax(N(0, I)), another draw for each key."""
    _, weights = subject(make, random=True).over_keys(problems.random(3), 1024)
    close(weights.sum(axis=1), np.ones(1024))
    logits = np.random.default_rng(0).normal(size=(200_000, 3))
    wanted = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(weights.mean(axis=0), 1 / 3, atol=0.04)
    np.testing.assert_allclose(weights.std(axis=0), wanted.std(axis=0), rtol=0.12)


def graddrop_draws_one_sign_an_entry(make) -> None:
    """Two gradients of opposite sign, 3 and −1: the first stays with probability ¾, independently at each entry."""
    problem = problems.random(2)
    matrix = np.array([3.0, -1.0])[:, None] * np.ones_like(problem.matrix)
    matrix[:, -1] = [2.0, 1.0]  # no conflict here
    updates, _ = subject(make, random=True).over_keys(
        dataclasses.replace(problem, matrix=matrix.astype(np.float32)), 1024
    )
    assert set(np.unique(updates[:, :-1].round(4))) == {-1.0, 3.0}
    close(updates[:, -1], 3.0)
    kept = updates[:, :-1] > 0
    np.testing.assert_allclose(kept.mean(axis=0), 0.75, atol=0.08)
    correlation = np.corrcoef(kept.T)
    assert np.abs(correlation[~np.eye(len(correlation), dtype=bool)]).max() < 0.2


# ---- balance methods -------------------------------------------------------------------------------------------------


def _scores(problem: Problem) -> np.ndarray:
    logits = problem.logits.astype(np.float64)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    return probabilities[:, np.arange(len(problem.labels)), problem.labels].sum(axis=1)


def ogm_slows_the_leader(make) -> None:
    """α = 0.5, two modalities: the kernel of the encoder ahead times 1 − tanh(α ρ), all else the plain sum."""
    problem = problems.random(3)
    first, second = _scores(problem)
    ratio = np.array([first / second, second / first])
    factors = np.where(ratio > 1, 1 - np.tanh(0.5 * ratio), 1.0)
    outcome = subject(make).update(problem)
    total = jax.tree.map(lambda g: g.astype(np.float64).sum(axis=0), problem.rows)
    for m, factor in zip(("audio", "gaze"), factors, strict=True):
        close(outcome.update["encoder"][m]["kernel"], factor * total["encoder"][m]["kernel"])
        close(outcome.update["head"][m]["kernel"], total["head"][m]["kernel"])
    close(outcome.update["fusion"]["kernel"], total["fusion"]["kernel"])
    close(outcome.weights, [1.0, *factors])


def ogm_ge_adds_noise_of_the_gradients_spread(make) -> None:
    """Over keys: the mean is OGM's update, the deviation that of the unscaled kernel's entries; encoders only."""
    problem = problems.random(3)
    updates, _ = subject(make, random=True).over_keys(problem, 1024)
    trees = problems.split_leaves(updates, problem.modalities)
    total = jax.tree.map(lambda g: g.astype(np.float64).sum(axis=0), problem.rows)
    scores = _scores(problem)
    for i, m in enumerate(("audio", "gaze")):
        ratio = scores[i] / scores[1 - i]
        factor = 1 - np.tanh(0.5 * ratio) if ratio > 1 else 1.0
        kernel, spread = total["encoder"][m]["kernel"], total["encoder"][m]["kernel"].std()
        np.testing.assert_allclose(trees["encoder"][m]["kernel"].std(axis=0), spread, rtol=0.12)
        np.testing.assert_allclose(trees["encoder"][m]["kernel"].mean(axis=0), factor * kernel, atol=0.2 * spread)
        assert np.ptp(trees["head"][m]["kernel"], axis=0).max() < 1e-5


def agm_slows_who_is_further_ahead_than_usual(modulation) -> None:
    """modulation(losses, reference, α) -> κ: below its running loss (r above) κ < 1, above it κ > 1; clipped; M/(M−1)."""
    ahead = np.asarray(modulation(np.array([1.0, 2.0]), np.array([1.5, 1.5]), 1.0))
    r = np.exp(2.0 * np.array([0.5, -0.5]))
    close(ahead, np.exp(1.0 - r))
    assert ahead[0] < 1 < ahead[1]
    close(modulation(np.array([1.0, 2.0]), np.array([1.0, 2.0]), 3.0), [1.0, 1.0])
    three = np.asarray(modulation(np.array([1.0, 1.2, 1.4]), np.array([1.2, 1.2, 1.2]), 2.0))
    close(three, np.exp(2.0 * (1.0 - np.exp(1.5 * np.array([0.2, 0.0, -0.2])))))
    far = np.asarray(modulation(np.array([0.0, 100.0]), np.array([50.0, 50.0]), 1.0))
    close(far, [np.exp(-10.0), np.exp(1.0 - np.exp(-10.0))], scale=0)  # e^-10 is not 0


def agm_keeps_running_means(make) -> None:
    """The plain sum of the gradients, and the mean over steps of each modality's loss."""
    steps = np.array([[1.0, 3.0], [2.0, 1.0], [6.0, 2.0]])
    state = None
    problem = problems.random(3)
    for losses in steps:
        given = {"shapley_losses": losses.astype(np.float32), "kappa": np.array([0.5, 1.5], np.float32)}
        run = Subject(
            make, num_objectives=(3,), forms=("stacked",), random=False, extra=lambda p, g=given: g, rtol=1e-4
        )
        outcome = run.update(problem, state=state)
        state = outcome.state
    close(outcome.flat, problem.matrix.astype(np.float64).sum(axis=0))
    close(np.asarray(state.losses)[:2], steps.mean(axis=0))
    close(outcome.weights, [1.0, 0.5, 1.5])


# ---- methods on the Gramian ------------------------------------------------------------------------------------------


def mgda_of_two_gradients(make) -> None:
    """The closed form: clip((g_2·g_2 − g_1·g_2)/‖g_1 − g_2‖², 0, 1) on the first."""
    ahead = problems.random(2)
    # much the same direction, lengths 1 and 3: outside the simplex without the clip
    ahead = dataclasses.replace(
        ahead, matrix=(ahead.matrix[:1] * [[1.0], [3.0]] + 0.1 * ahead.matrix).astype(np.float32)
    )
    for problem in (problems.random(2), problems.conflicting(2), problems.unequal(2), ahead):
        one, two = problem.matrix.astype(np.float64)
        first = np.clip((two @ two - one @ two) / ((one - two) @ (one - two)), 0, 1)
        outcome = subject(make).update(problem)
        close(outcome.weights, [first, 1 - first], rtol=1e-3)
        close(outcome.flat, first * one + (1 - first) * two, problem.norm, rtol=1e-3)


def mgda_satisfies_kkt(make) -> None:
    """min_k (G w)_k = wᵀ G w on the shared parameters, weights on the simplex; elsewhere the plain sum."""
    for structure in ("dense", "encoders"):
        for problem in (problems.random(4, structure), problems.conflicting(4, structure)):
            here = problems.shared(problem)
            outcome = subject(make).update(problem)
            rows = problem.matrix.astype(np.float64)
            gram, w = rows[:, here] @ rows[:, here].T, outcome.weights
            close(w.sum(), 1.0)
            assert w.min() >= -1e-6
            close((gram @ w).min(), w @ gram @ w, np.trace(gram), rtol=1e-5)
            close(outcome.flat[here], (w @ rows)[here])
            close(outcome.flat[~here], rows.sum(axis=0)[~here])


def _dense(k: int) -> tuple[Problem, ...]:
    """Problems of k objectives that reach every parameter: random, conflicting, of unequal lengths."""
    return problems.random(k, "dense"), problems.conflicting(k, "dense"), problems.unequal(k, "dense")


def pcgrad_of_two_gradients(make) -> None:
    """Where g_1·g_2 < 0, each without its part along the other; else the plain sum."""
    for problem in _dense(2):
        one, two = problem.matrix.astype(np.float64)
        product = min(one @ two, 0.0)
        wanted = one - product / (two @ two) * two + two - product / (one @ one) * one
        close(subject(make).update(problem).flat, wanted, problem.norm, rtol=1e-3)


def pcgrad_draws_independent_orders(make) -> None:
    """Three gradients: each is projected off the other two as they were, in either order; all 8 combinations come up."""
    rows = np.array([[1.0, 0.0, 0.2], [-0.8, 0.7, 0.1], [-0.5, -0.9, 0.3]])
    problem = problems.random(3, "dense")
    matrix = np.zeros_like(problem.matrix)
    matrix[:, :3] = rows
    updates, _ = subject(make, random=True).over_keys(dataclasses.replace(problem, matrix=matrix), 256)

    def projected(own: int, order: tuple[int, int]) -> np.ndarray:
        g = rows[own].copy()
        for other in order:
            g -= min(g @ rows[other], 0.0) / (rows[other] @ rows[other]) * rows[other]
        return g

    others = [(1, 2), (0, 2), (0, 1)]
    each = [[projected(k, pair), projected(k, pair[::-1])] for k, pair in enumerate(others)]
    wanted = np.array([a + b + c for a in each[0] for b in each[1] for c in each[2]])
    distance = np.abs(updates[:, None, :3] - wanted[None]).max(axis=-1)
    assert distance.min(axis=1).max() < 1e-4
    assert set(np.argmin(distance, axis=1)) == set(range(8))


def upgrad_projects_each_gradient(make) -> None:
    """The mean over k of the projection of g_k onto {d : J d >= 0}, by non-negative least squares in float64."""
    for problem in _dense(3):
        rows = problem.matrix.astype(np.float64)
        projections = [g + rows.T @ nnls(rows.T, -g)[0] for g in rows]
        close(subject(make).update(problem).flat, np.mean(projections, axis=0), problem.norm, rtol=1e-3)


def cagrad_is_the_best_in_its_ball(make) -> None:
    """c = 0.5: ‖d − ḡ‖ = c ‖ḡ‖, and min_k g_k·d is the dual's minimum over the simplex (a grid)."""
    grid = np.array([(i, j, 200 - i - j) for i in range(201) for j in range(201 - i)]) / 200
    for problem in (problems.random(3, "dense"), problems.random(3, "dense", seed=1)):
        rows = problem.matrix.astype(np.float64)
        mean, d = rows.mean(axis=0), subject(make).update(problem).flat.astype(np.float64)
        radius = 0.5 * np.linalg.norm(mean)
        close(np.linalg.norm(d - mean), radius, radius, rtol=1e-3)
        along = grid @ rows
        dual = (along @ mean + radius * np.linalg.norm(along, axis=1)).min()
        close((rows @ d).min(), dual, problem.norm**2, rtol=2e-3)


def imtl_g_projects_equally(make) -> None:
    """u·g_k/‖g_k‖ is one number for all k, and the weights sum to 1."""
    for k in (2, 3):
        for problem in (problems.random(k, "dense"), problems.unequal(k, "dense")):
            rows = problem.matrix.astype(np.float64)
            outcome = subject(make).update(problem)
            projections = rows @ outcome.flat.astype(np.float64) / np.linalg.norm(rows, axis=1)
            close(projections, projections.mean(), np.abs(projections).max(), rtol=2e-3)
            close(outcome.weights.sum(), 1.0, rtol=1e-3)
            close(outcome.flat, sum_of_rows(outcome.weights, problem), problem.norm, rtol=1e-3)


def nash_mtl_solves_its_equation(make) -> None:
    """α > 0 and α_k (G α)_k = 1, so that the update's norm is √K."""
    for k in (2, 3):
        for problem in (problems.random(k, "dense"), problems.unequal(k, "dense")):
            rows = problem.matrix.astype(np.float64)
            outcome = subject(make).update(problem)
            alpha = outcome.weights.astype(np.float64)
            assert alpha.min() > 0
            close(alpha * (rows @ rows.T @ alpha), 1.0, rtol=5e-3)
            close(outcome.flat, sum_of_rows(alpha, problem), np.sqrt(k), rtol=5e-3)


def aligned_mtl_is_the_nearest_orthogonal_system(make) -> None:
    """The mean of the rows of σ_min U Vᵀ, with J = U Σ Vᵀ, in float64."""
    for problem in (problems.random(2, "dense"), problems.random(3, "dense"), problems.conflicting(2, "dense")):
        u, sigma, vt = np.linalg.svd(problem.matrix.astype(np.float64), full_matrices=False)
        wanted = (sigma.min() * u @ vt).mean(axis=0)
        close(subject(make).update(problem).flat, wanted, np.linalg.norm(wanted), rtol=1e-2)


def mmpareto_restores_the_step(make) -> None:
    """γ = 1.5: in each encoder 2 (w_0 g_0 + w_m g_m) at the length of the sum, elsewhere the plain sum."""
    for problem in (problems.random(3, "encoders"), problems.conflicting(3, "encoders")):
        rows = jax.tree.map(lambda g: g.astype(np.float64), problem.rows)
        for form in ("stacked", "lazy"):
            got = subject(make).update(problem, form).update
            for m in ("audio", "gaze"):
                k = problem.names.index(m)
                leaves, structure = jax.tree.flatten(rows["encoder"][m])
                one, two = (np.concatenate([leaf[i].ravel() for leaf in leaves]) for i in (0, k))
                first = 0.5
                if one @ two < 0:
                    first = (two @ two - one @ two) / ((one - two) @ (one - two))
                g = 2 * (first * one + (1 - first) * two)
                wanted = g * max(1.0, np.linalg.norm(one + two) / np.linalg.norm(g)) * 1.5
                found = np.concatenate([np.ravel(x) for x in structure.flatten_up_to(got["encoder"][m])])
                close(found, wanted, problem.norm, rtol=1e-3)
                close(got["head"][m]["kernel"], rows["head"][m]["kernel"].sum(axis=0), problem.norm)
            close(got["fusion"]["kernel"], rows["fusion"]["kernel"].sum(axis=0), problem.norm)


# ---- evidence --------------------------------------------------------------------------------------------------------


def bogc_of_two_steps(make) -> None:
    """Moving moments with decay 0.9 over two steps of one leaf, in float64.

    At one entry one objective is dead, at one both, and at one a gradient repeats: variance 0, evidence 1/ε.
    """
    series = np.float32([[[1, 2, 3, 0, 0.7], [1, -1, 0, 0, 5]], [[1.5, 2.2, 1, 0, 0.7], [0, 3, 0, 0, -4]]])
    params = {"w": np.zeros(5, np.float32)}
    tx = make(2)
    state = tx.init(params)
    for rows in series:
        update, state = jax.jit(tx.update)({"w": rows}, state, params)
    g = series.astype(np.float64)
    rate = 0.1 / (1 - 0.9**2)
    variance = (1 - rate) * rate * (g[1] - g[0]) ** 2
    live = np.array([[True, True, True, False, True], [True, True, False, False, True]])
    typical = variance[live].mean()
    evidence = np.where(live, typical / (variance + 1e-3 * typical), 0)
    belief = evidence / (evidence + 1)
    weights = np.where(live.any(0), belief / np.maximum(belief.sum(0), 1e-9), 0.5)
    fused = 1 - np.prod(1 / (evidence + 1), axis=0)
    boldness = np.where(live.any(0), fused / fused[live.any(0)].mean(), 1)
    close(update["w"], 2 * (weights * g[1]).sum(0) * boldness)


def known_variances() -> Estimator:
    """Moments with the gradient for a mean, and variances that are known."""

    def estimate(setting, gradients, state, given):
        del setting, given
        made = zip(gradients.rows, variances_at_the_features(), strict=True)
        assert gradients.objectives == ((0, 1), (0, 2))
        return tuple(Moments(rows, jnp.asarray(variance, jnp.float32)) for rows, variance in made), state

    return Estimator("known", lambda setting, like: (), estimate, levels=("features",))


def variances_at_the_features() -> np.ndarray:
    """What `known_variances` says, [modality, T, B, D]: the examples differ, and so do the objectives."""
    spread = np.random.default_rng(3).uniform(-1, 1, (2, 2, problems.EXAMPLES, problems.WIDTH))
    return 10.0**spread * np.logspace(-1, 1, problems.EXAMPLES)[:, None]


def bogc_at_the_features(make) -> None:
    """Fusion and two uni-modal losses on the features of two encoders, variances known example by example; float64.

    One entry of a modality's own gradient is 0 in every example: a dead one.
    """
    problem = problems.random(3, "encoders")
    dead = problem.matrix.copy()
    dead[1, 1 : 2 * problems.EXAMPLES : 2] = 0  # the second feature of the first encoder, whose kernel is [B, 2]
    problem = dataclasses.replace(problem, matrix=dead)
    tx, arrays = make(3), problem.arrays()

    @jax.jit
    def step(arrays):
        _, grads, _ = problems.lazy(problem.names, problem.touching, arrays)
        return tx.update(grads, tx.init(arrays["params"]), arrays["params"])

    update, _ = step(arrays)
    batch = arrays["batch"]
    for i, m in enumerate(problem.modalities):
        reached = [0, i + 1]
        g = np.moveaxis(batch["slopes"][m][:, reached], 1, 0).astype(np.float64) / problems.EXAMPLES  # [T, B, D]
        v = variances_at_the_features()[i]
        live = np.broadcast_to((g**2).sum(axis=1, keepdims=True) > 0, g.shape)
        typical = v[live].mean()
        evidence = np.where(live, typical / (v + 1e-3 * typical), 0)
        belief = evidence / (evidence + 1)
        fused = 1 - np.prod(1 / (evidence + 1), axis=0)
        combined = 2 * (belief / belief.sum(axis=0) * g).sum(axis=0) * fused / fused.mean()
        close(update["encoder"][m]["kernel"], batch["inputs"].T.astype(np.float64) @ combined)
        close(update["head"][m]["kernel"], arrays["rows"]["head"][m]["kernel"].sum(axis=0))
