"""Quality of representations: known answers of the linear case, the identity, and what bad input gets."""

from __future__ import annotations

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from mmjax.data import Task
from mmjax.theory import (
    LeastSquares,
    LinearHead,
    Overlap,
    StrongWeak,
    eta_linear,
    head_risk,
    latent_representation_quality,
    least_squares,
    mean_interval,
    overlap_modalities,
    quality_gap,
    rademacher_linear,
    risk_decomposition,
    strong_weak_gammas,
    subset_risk_sweep,
    theorem1_bound,
)
from mmjax.theory.intervals import student_quantile
from mmjax.theory.overlap import overlap_risk


@pytest.fixture(scope="module")
def problem():
    """A linear truth in 6 dimensions: a_star, beta_star, a covariance that is not the identity."""
    rng = np.random.default_rng(0)
    root = rng.normal(size=(6, 6))
    return rng.normal(size=(6, 3)), rng.normal(size=(3, 2)), root @ root.T


# -- eta ---------------------------------------------------------------------------------------------------------------


def test_eta_is_the_formula(problem):
    a_star, beta_star, sigma = problem
    a = np.random.default_rng(1).normal(size=(5, 6, 2))  # five at once
    inner = [
        a_star.T @ sigma @ a_star - a_star.T @ sigma @ x @ np.linalg.pinv(x.T @ sigma @ x) @ x.T @ sigma @ a_star
        for x in a
    ]
    expected = [np.trace(beta_star.T @ m @ beta_star) for m in inner]
    np.testing.assert_allclose(eta_linear(a, *problem), expected, rtol=1e-10)


def test_eta_is_what_least_squares_loses(problem):
    a_star, beta_star, sigma = problem
    a = np.random.default_rng(2).normal(size=(6, 2))
    # a sample whose second moments are exactly sigma, noise orthogonal to it: population and sample are one
    n = 40
    q, _ = np.linalg.qr(np.random.default_rng(3).normal(size=(n, 7)))
    x = np.sqrt(n) * q[:, :6] @ np.linalg.cholesky(sigma).T
    noise = 1.5 * np.sqrt(n) * q[:, 6:]
    y = x @ a_star @ beta_star + noise
    residual = y - (x @ a) @ np.linalg.lstsq(x @ a, y)[0]
    risk, oracle = np.mean(np.sum(residual**2, axis=1)), np.mean(np.sum((noise * [1, 1]) ** 2, axis=1))
    np.testing.assert_allclose(eta_linear(a, *problem), risk - oracle, rtol=1e-10)


def test_eta_vanishes_at_the_truth_and_sees_only_the_span(problem):
    a_star, beta_star, _ = problem
    scale = np.sum((a_star @ beta_star) ** 2)
    assert 0 <= eta_linear(a_star, *problem) < 1e-20 * scale
    rng = np.random.default_rng(4)
    a = rng.normal(size=(6, 2))
    np.testing.assert_allclose(eta_linear(a @ rng.normal(size=(2, 2)), *problem), eta_linear(a, *problem), rtol=1e-9)
    # a repeated column adds nothing, a zero representation knows nothing
    np.testing.assert_allclose(eta_linear(a[:, [0, 1, 0]], *problem), eta_linear(a, *problem), rtol=1e-9)
    np.testing.assert_allclose(
        eta_linear(np.zeros((6, 2)), *problem), np.trace(beta_star.T @ a_star.T @ problem[2] @ a_star @ beta_star)
    )


def test_eta_does_not_grow_over_nested_subsets_at_the_population(problem):
    # modalities of two inputs each; the best representation of a subset is all of its inputs
    etas = [float(eta_linear(np.eye(6)[:, :width], *problem)) for width in (2, 4, 6)]
    assert etas[0] > etas[1] > etas[2]
    assert etas[2] < 1e-10 * etas[0]


@pytest.mark.parametrize(
    ("change", "message"),
    (
        ({"a": np.ones((5, 2))}, "shapes do not fit"),
        ({"beta_star": np.ones((4, 1))}, "shapes do not fit"),
        ({"sigma": -np.eye(6)}, "sigma must be a covariance"),
        ({"sigma": np.triu(np.ones((6, 6)))}, "sigma must be a covariance"),
        ({"a": np.full((6, 2), np.nan)}, "a must be finite"),
        ({"a_star": np.ones(6)}, "a_star has shape"),
    ),
)
def test_eta_refuses(problem, change, message):
    given = {"a": np.ones((6, 2)), "a_star": problem[0], "beta_star": problem[1], "sigma": problem[2]} | change
    with pytest.raises(ValueError, match=message):
        eta_linear(**given)


# -- least squares -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ((30, 7), (7, 30), (12, 12)))
def test_least_squares_is_the_one_of_smallest_norm(shape):
    rng = np.random.default_rng(5)
    x, y = rng.normal(size=shape), rng.normal(size=(shape[0], 2))
    x[:, -1] = x[:, 0]  # rank-deficient too
    with jax.enable_x64(True):
        ours = np.asarray(least_squares(jnp.asarray(x), jnp.asarray(y)))
    np.testing.assert_allclose(ours, np.linalg.lstsq(x, y)[0], atol=1e-8)


def test_least_squares_wants_float64():
    with pytest.raises(ValueError, match="float64"):
        least_squares(jnp.ones((2, 2)), jnp.ones((2, 1)))


# -- head risk ---------------------------------------------------------------------------------------------------------


def test_head_risk_of_a_linear_head_is_its_closed_form():
    rng = np.random.default_rng(6)
    z, y = rng.normal(size=(60, 3)), rng.normal(size=(60, 2))
    fit, evaluation = np.arange(40), np.arange(40, 60)
    with_offset = np.concatenate([z, np.ones((60, 1))], axis=1)
    beta = np.linalg.lstsq(with_offset[fit], y[fit])[0]
    expected = np.mean(np.sum((y[evaluation] - with_offset[evaluation] @ beta) ** 2, axis=1))
    measured = head_risk(LinearHead(Task("regression", 2)), z, y, fit=fit, evaluation=evaluation)
    np.testing.assert_allclose(measured, expected, rtol=1e-5)


def test_a_head_on_features_far_from_zero_loses_no_digits():
    z = np.random.default_rng(0).normal(size=(200, 1))
    far = (z + 1e6).astype(np.float32)
    y = far - np.float32(1e6)
    measured = head_risk(LinearHead(Task("regression", 1)), far, y, fit=np.arange(100), evaluation=np.arange(100, 200))
    assert measured < 1e-6


def test_head_risk_of_cross_entropy_is_invariant_to_the_features_scale():
    rng = np.random.default_rng(7)
    label = rng.integers(0, 3, 300)
    z = np.eye(3)[label] * 2 + rng.normal(size=(300, 3))
    head, split = LinearHead(Task("classification", 3)), {"fit": np.arange(200), "evaluation": np.arange(200, 300)}
    risk = head_risk(head, z, label, **split)
    assert 0.3 < risk < 0.7  # chance is log 3 = 1.1
    np.testing.assert_allclose(head_risk(head, 1000 * z + 50, label, **split), risk, rtol=1e-3)
    # labels apart, each a problem of its own
    many = np.stack([label == 0, label == 1], axis=1).astype(np.float32)
    assert 0.2 < head_risk(LinearHead(Task("multilabel", 2)), z, many, **split) < 0.5


@pytest.mark.parametrize(
    ("change", "message"),
    (
        ({"evaluation": [3, 2, 9]}, r"fit and evaluation share 2 examples, the first is 2"),
        ({"evaluation": [10]}, r"evaluation points at example 10 of 10"),
        ({"fit": []}, r"fit must be indices"),
        ({"label": np.ones((9, 1))}, r"features has 10 examples, but label has 9"),
        ({"features": np.full((10, 2), np.nan)}, r"features must be finite"),
    ),
)
def test_head_risk_refuses(change, message):
    given = {"features": np.ones((10, 2)), "label": np.ones((10, 1)), "fit": [0, 1, 2, 3], "evaluation": [5, 6]}
    with pytest.raises(ValueError, match=message):
        head_risk(LinearHead(Task("regression", 1)), **given | change)


# -- quality, gap, identity --------------------------------------------------------------------------------------------


def test_quality_needs_an_oracle_and_says_so():
    with pytest.raises(ValueError, match=r"oracle_risk is None.*use quality_gap"):
        latent_representation_quality([1.0], oracle_risk=None)
    with pytest.warns(UserWarning, match=r"oracle_risk = 1.5 lies above a measured risk of 1.25"):
        assert latent_representation_quality([2.0, 1.25], oracle_risk=1.5).tolist() == [0.5, -0.25]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        latent_representation_quality([2.0, 1.5], oracle_risk=1.5)


def test_quality_gap_is_negative_when_the_larger_set_is_better():
    assert quality_gap(1.0, 3.0) == -2
    with pytest.raises(ValueError, match="shape"):
        quality_gap([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="head_risk_n must be finite"):
        quality_gap([1.0], [np.nan])


def test_the_identity_with_exact_risks(problem):
    """Every term by its own closed form: trained pairs of two subsets, their infima through eta, the gap from risks."""
    a_star, beta_star, sigma = problem
    truth, noise = a_star @ beta_star, 0.7
    rng = np.random.default_rng(8)

    def risk(w):
        return noise + np.trace((w - truth).T @ sigma @ (w - truth))

    terms = {}
    for name, width in (("m", 6), ("n", 3)):
        a = np.pad(rng.normal(size=(width, 2)), ((0, 6 - width), (0, 0)))
        terms[f"risk_{name}"] = risk(a @ rng.normal(size=(2, 2)))
        best = np.linalg.solve(a.T @ sigma @ a, a.T @ sigma @ truth)
        terms[f"head_risk_{name}"] = risk(a @ best)
        terms[f"eta_{name}"] = float(eta_linear(a, *problem))
    gamma = terms.pop("eta_m") - terms.pop("eta_n")
    split = risk_decomposition(**terms, gamma=gamma)
    scale = max(map(abs, terms.values()))
    assert abs(split.gap - (split.gamma + split.head_gap_m - split.head_gap_n)) < 1e-10 * scale
    assert split.head_gap_m > 0
    assert split.head_gap_n > 0
    with pytest.raises(ValueError, match="does not fit the risks"):
        risk_decomposition(**terms, gamma=gamma + 1e-6 * scale)
    with pytest.raises(ValueError, match="risk_m must be finite"):
        risk_decomposition(**terms | {"risk_m": np.inf})


# -- bounds ------------------------------------------------------------------------------------------------------------


def test_rademacher_bounds_the_supremum_of_linear_classes():
    x = np.random.default_rng(9).normal(size=(50, 4))
    bound = rademacher_linear(x, 3.0)
    np.testing.assert_allclose(bound, 3 * np.linalg.norm(x) / 50)
    signs = np.random.default_rng(10).choice([-1.0, 1.0], size=(4000, 50))
    # the supremum over |a| <= B of mean_i s_i a.x_i is B |mean_i s_i x_i|
    complexity = np.mean(3.0 * np.linalg.norm(signs @ x / 50, axis=1))
    assert 0.8 * bound < complexity <= bound
    with pytest.raises(ValueError, match="norm_bound must be finite and above 0, got 0"):
        rademacher_linear(x, 0)
    with pytest.raises(ValueError, match="sample"):
        rademacher_linear(x[0], 1.0)


def test_the_terms_of_the_bound():
    terms = theorem1_bound(-0.3, 0.02, 400, lipschitz=2.0, loss_bound=3.0, delta=0.1)
    assert terms.complexity == pytest.approx(8 * 2 * 0.02)
    assert terms.sampling == pytest.approx(4 * 3 / 20)
    assert terms.confidence == pytest.approx(2 * 3 * np.sqrt(2 * np.log(20) / 400))
    assert terms.total == pytest.approx(-0.3 + 0.32 + 0.6 + terms.confidence)
    assert terms.dominant == "confidence"


@pytest.mark.parametrize(
    ("name", "value"),
    (
        ("delta", 0.0),
        ("delta", 1.0),
        ("n", 0),
        ("lipschitz", 0.0),
        ("loss_bound", -1.0),
        ("rademacher", -0.1),
        ("rademacher", np.inf),
        ("loss_bound", np.inf),
        ("gamma", np.nan),
    ),
)
def test_the_bound_refuses(name, value):
    given = {"gamma": 0.0, "rademacher": 0.1, "n": 10, "lipschitz": 1.0, "loss_bound": 1.0, "delta": 0.1}
    with pytest.raises(ValueError, match=f"{name} must be"):
        theorem1_bound(**given | {name: value})


# -- the two synthetic studies -----------------------------------------------------------------------------------------


def test_overlapping_modalities_have_the_moments_they_promise():
    xs, y = overlap_modalities(jax.random.key(0), 20_000, w=0.3, dim=2, k=3)
    np.testing.assert_allclose(y, sum(np.asarray(x) for x in xs), rtol=1e-5, atol=1e-5)
    both = np.cov(np.concatenate(xs, axis=1).T)
    np.testing.assert_allclose(np.diag(both)[2:], 0.7**2 + 0.3**2, atol=0.02)
    np.testing.assert_allclose(both[0, 2], 0.3, atol=0.02)
    np.testing.assert_allclose(both[2, 4], 0.09, atol=0.02)
    np.testing.assert_allclose(both[0, 3], 0.0, atol=0.02)


@pytest.mark.parametrize(("name", "value"), (("n", 0), ("n", 5.5), ("w", 1.5), ("dim", 0), ("k", 0)))
def test_overlap_refuses(name, value):
    given = {"n": 5, "w": 0.5, "dim": 2, "k": 2} | {name: value}
    with pytest.raises(ValueError, match=f"{name} must be"):
        overlap_modalities(jax.random.key(0), **given)


@pytest.mark.filterwarnings("ignore:samples of 16000")
@pytest.mark.parametrize("w", (0.5, 0.0))
def test_the_population_formula(w):
    """16,000 examples to fit, 4,000 to evaluate; every subset with the first modality."""
    splits = Overlap(w=w, validation_examples=500).load()
    subsets = ["x1", "x1+x2", "x1+x2+x3", "x1+x2+x3+x4"]
    found = subset_risk_sweep(LeastSquares(), splits, sizes=[16_000], seeds=1, band=False, subsets=subsets)
    for count, cell in enumerate(found.cells, start=1):
        assert cell.risk[0] == pytest.approx(overlap_risk(4 - count, w), rel=0.03, abs=1e-4)


def test_reversal_at_small_n():
    for n, expected in ((20, 1.0), (60, 0.96), (100, 0.09), (300, 0.0)):
        gammas = strong_weak_gammas(jax.random.key(2), n, 400)
        assert np.mean(gammas > 0) == pytest.approx(expected, abs=0.05)


def test_the_sources_load():
    splits = StrongWeak(train_examples=50, validation_examples=20, test_examples=10).load()
    assert {m: x.shape for m, x in splits.train.inputs.items()} == {"strong": (50, 5), "weak": (50, 40)}
    splits = Overlap(modalities=("x1", "x3"), dim=4, train_examples=6, validation_examples=5, test_examples=4).load()
    assert splits.test.modalities == ("x1", "x3")
    assert not np.array_equal(splits.train.label[:4], splits.test.label)
    for source in (StrongWeak(test_examples=0), Overlap(validation_examples=0)):
        with pytest.raises(ValueError, match="must be at least 1"):
            source.load()


# -- intervals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("degrees", (1, 2, 4.5, 9, 49, 1e5))
def test_student_quantiles(degrees):
    for level in (0.8, 0.95, 0.99):
        assert student_quantile(level, degrees) == pytest.approx(stats.t.ppf((1 + level) / 2, degrees), rel=1e-4)


def test_an_interval_covers_what_it_should():
    """Seeds and evaluation examples both vary; the truth is 0."""
    rng = np.random.default_rng(11)
    covered = 0
    for _ in range(1000):
        table = rng.normal(size=(5, 1)) + 2 * rng.normal(size=(1, 20)) + rng.normal(size=(5, 20))
        interval = mean_interval(table.mean(axis=1), table.mean(axis=0))
        covered += interval.low <= 0 <= interval.high
    assert 930 <= covered <= 985
    alone = mean_interval([1.0, 2.0, 4.0])
    low, high = stats.t.interval(0.95, 2, np.mean([1, 2, 4]), stats.sem([1, 2, 4]))
    np.testing.assert_allclose((alone.low, alone.high), (low, high), rtol=1e-4)
    assert mean_interval([1.0, 1.0]).half == 0
    with pytest.raises(ValueError, match="at least 2 seeds, got 1"):
        mean_interval([1.0])
