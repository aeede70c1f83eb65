"""The reduced Dempster rule against brute force over sets of classes, and the properties it must have."""

from __future__ import annotations

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.bayes import (
    BinaryOpinion,
    Opinion,
    binary_opinion,
    combine_binary,
    combine_opinions,
    evidence,
    expected_probability,
    opinion,
)

FEW = settings(max_examples=25, deadline=None)


@st.composite
def evidences(draw):
    """Evidence float32 [sources, C], over many scales, zeros among it."""
    sources, classes = draw(st.integers(1, 4)), draw(st.integers(2, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    e = 10 ** rng.uniform(-3, 3, (sources, classes)) * (rng.random((sources, classes)) < 0.8)
    return e.astype(np.float32)


def full_dempster(evidence: np.ndarray) -> tuple[list[float], float]:
    """Dempster's rule on sets, in Python floats: masses of intersections, the empty set discarded."""
    classes = evidence.shape[1]
    frame = frozenset(range(classes))

    def mass(row):
        strength = float(row.astype(np.float64).sum()) + classes
        return {frozenset([i]): float(e) / strength for i, e in enumerate(row)} | {frame: classes / strength}

    fused = mass(evidence[0])
    for row in evidence[1:]:
        joined: dict[frozenset, float] = {}
        for (a, x), (b, y) in product(fused.items(), mass(row).items()):
            joined[a & b] = joined.get(a & b, 0.0) + x * y
        kept = {s: m for s, m in joined.items() if s}
        fused = {s: m / sum(kept.values()) for s, m in kept.items()}
    return [fused.get(frozenset([i]), 0.0) for i in range(classes)], fused[frame]


def opinions_of(evidence):
    return [opinion(row) for row in jnp.asarray(evidence)]


@FEW
@given(evidences())
def test_reduced_rule_is_full_dempster_on_singletons_and_the_frame(evidence):
    fused = combine_opinions(opinions_of(evidence))
    belief, uncertainty = full_dempster(evidence)
    np.testing.assert_allclose(fused.belief, belief, rtol=2e-5, atol=1e-9)
    np.testing.assert_allclose(fused.uncertainty, uncertainty, rtol=2e-5)


@FEW
@given(evidences(), st.randoms(use_true_random=False))
def test_commutative_associative_and_vacuous_neutral(evidence, random):
    sources = opinions_of(evidence)
    fused = combine_opinions(sources)
    shuffled = list(sources)
    random.shuffle(shuffled)
    nested = shuffled[0] if len(shuffled) == 1 else combine_opinions([shuffled[0], combine_opinions(shuffled[1:])])
    vacuous = opinion(jnp.zeros(evidence.shape[1]))
    for other in (combine_opinions(shuffled), nested, combine_opinions([vacuous, *sources, vacuous])):
        for a, b in zip(fused, other, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(jnp.sum(fused.belief) + fused.uncertainty, 1, rtol=1e-6)


@FEW
@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=5))
def test_binary_rule_is_the_product_of_uncertainties(evidence):
    fused = combine_binary([binary_opinion(jnp.float32(e)) for e in evidence])
    uncertainty = float(np.prod([1 / (np.float64(np.float32(e)) + 1) for e in evidence]))
    np.testing.assert_allclose(fused.uncertainty, uncertainty, rtol=1e-5)
    belief = -np.expm1(-np.sum(np.log1p(np.float32(evidence).astype(np.float64))))
    np.testing.assert_allclose(fused.belief, belief, rtol=1e-5, atol=1e-37)  # 1 - u would lose every digit at 1e-9


def test_binary_rule_is_dempster_without_disbelief():
    """Masses on {yes} and {yes, no} only: brute force over the four products."""
    b1, b2 = 0.3, 0.9
    masses = {"yes": b1 * b2 + b1 * (1 - b2) + (1 - b1) * b2, "either": (1 - b1) * (1 - b2)}
    fused = combine_binary([BinaryOpinion(jnp.float32(b), jnp.float32(1 - b)) for b in (b1, b2)])
    np.testing.assert_allclose(fused, [masses["yes"], masses["either"]], rtol=1e-6)


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e12, 1e30])
def test_extreme_evidence_and_full_conflict_stay_finite(size):
    e = jnp.array([[size, 0, 0], [0, size, 0], [0, size, 0]], jnp.float32)

    def probability(e):
        return expected_probability(combine_opinions([opinion(row) for row in e]))

    p = probability(e)
    assert np.isfinite(p).all() and abs(float(jnp.sum(p)) - 1) < 1e-5
    assert p[1] >= p[0] >= p[2]  # two sources against one
    assert np.isfinite(jax.jacobian(probability)(jnp.minimum(e, 1e12))).all()
    two = combine_opinions(opinions_of(e[:2]))
    np.testing.assert_allclose(two.belief[0], two.belief[1], rtol=1e-6)
    assert np.isfinite(combine_binary([binary_opinion(e), binary_opinion(e)]).belief).all()


def test_three_sources_in_full_conflict_in_any_order():
    a, b, c = opinions_of(1e18 * jnp.eye(4)[:3])
    third = jnp.array([1, 1, 1, 0]) / 3
    for fused in (
        combine_opinions([a, b, c]),
        combine_opinions([c, a, b]),
        combine_opinions([combine_opinions([a, b]), combine_opinions([c, c])]),
    ):
        assert np.isfinite(fused.belief).all()
    np.testing.assert_allclose(combine_opinions([a, b, c]).belief, third, rtol=1e-5)
    np.testing.assert_allclose(combine_opinions([c, combine_opinions([b, a])]).belief, third, rtol=1e-5)


def test_expected_probability_is_the_dirichlet_mean_and_shapes_carry_a_batch():
    e = jnp.array([[[1.0, 2.0, 0.0], [5.0, 0.0, 0.0]]])
    np.testing.assert_allclose(expected_probability(opinion(e)), (e + 1) / (e.sum(-1, keepdims=True) + 3), rtol=1e-6)
    fused = combine_opinions([opinion(e), opinion(2 * e)])
    assert fused.belief.shape == (1, 2, 3) and fused.uncertainty.shape == (1, 2)


def test_mistakes_are_named():
    for combine in (combine_binary, combine_opinions):
        with pytest.raises(ValueError, match="no source"):
            combine([])
    with pytest.raises(ValueError, match="one shape"):
        combine_opinions([opinion(jnp.ones(2)), opinion(jnp.ones(3))])
    assert isinstance(combine_opinions([opinion(jnp.ones(2))]), Opinion)


def variances():
    """[3, 40] spread over decades, the last row not live, two live variances nothing."""
    v = 10 ** np.random.default_rng(0).uniform(-8, -4, (3, 40)).astype(np.float32)
    v[0, :2] = 0
    live = np.ones((3, 40), bool)
    live[2], live[1, 5] = False, False
    return v, live


precision_evidence = jax.jit(evidence.precision_evidence, static_argnames=("normalizer", "axis_name"))
calibrate = jax.jit(evidence.calibrate, static_argnames=("conservatism", "axis_name"))


def test_evidence_is_precision_over_the_harmonic_mean_precision():
    v, live = variances()
    e = precision_evidence(v, live)
    reference = np.mean(np.asarray(v, np.float64)[np.asarray(live)])
    expected = np.where(live, reference / (np.asarray(v, np.float64) + 1e-3 * reference), 0)
    np.testing.assert_allclose(e, expected, rtol=1e-5)
    assert float(e.max()) <= 1000.1
    # without the ε: precisions over their harmonic mean
    some = np.asarray(live) & (np.asarray(v) > 1e-6)
    harmonic = 1 / np.mean(np.asarray(v, np.float64)[np.asarray(live)])
    np.testing.assert_allclose(e[some], (1 / np.asarray(v)[some]) / harmonic, rtol=2e-2)
    v64 = np.asarray(v, np.float64)
    middle = np.median(v64[np.asarray(live)])
    median = precision_evidence(v, live, normalizer="median")
    np.testing.assert_allclose(median, np.where(live, middle / (v64 + 1e-3 * middle), 0), rtol=1e-5)
    np.testing.assert_allclose(precision_evidence(v, live, temperature=2.0), np.sqrt(expected), rtol=1e-5)


@pytest.mark.parametrize("normalizer", ["harmonic", "median"])
def test_evidence_is_free_of_scale_and_blind_to_what_is_not_live(normalizer):
    v, live = variances()
    e = precision_evidence(v, live, normalizer=normalizer)
    for factor in (1e-8, 1e8):
        np.testing.assert_allclose(
            precision_evidence(np.float32(factor) * v, live, normalizer=normalizer), e, rtol=1e-5
        )
    rubbish = np.where(live, v, np.nan)
    np.testing.assert_array_equal(precision_evidence(rubbish, live, normalizer=normalizer), e)
    np.testing.assert_array_equal(precision_evidence(np.float32(0) * v, live, normalizer=normalizer), live)
    nothing = precision_evidence(v, np.zeros((3, 40), bool), normalizer=normalizer)
    np.testing.assert_array_equal(nothing, np.zeros((3, 40)))


def test_calibration_by_hand():
    e = np.array([[3.0, 1.0, 0.5, 7.0], [1.0, 1.0, 2.0, 9.0]], np.float32)
    live = np.array([[True, True, False, False], [True, True, True, False]])
    made = calibrate(e, live, np.array([True, True]), conservatism=True)
    np.testing.assert_allclose(made.weights, [[0.6, 0.5, 0, 0.5], [0.4, 0.5, 1, 0.5]], rtol=1e-6)
    fused = np.array([1 - 0.25 * 0.5, 0.75, 2 / 3])
    np.testing.assert_allclose(made.boldness, [*(fused / fused.mean()), 1.0], rtol=1e-6)
    plain = calibrate(e, live, np.array([True, True]), conservatism=False)
    np.testing.assert_array_equal(plain.boldness, np.ones(4))
    one = calibrate(e, live & np.array([[True], [False]]), np.array([True, False]), conservatism=False)
    np.testing.assert_array_equal(one.weights, [[1, 1, 1, 1], [0, 0, 0, 0]])  # an absent objective has no share


def test_spread_over_devices_gives_the_same_evidence_and_calibration():
    v, live = variances()

    def both(v, live, axis_name=None):
        e = precision_evidence(v, live, axis_name=axis_name)
        median = precision_evidence(v, live, normalizer="median", axis_name=axis_name)
        made = calibrate(e, live, jnp.ones(3, bool), conservatism=True, axis_name=axis_name)
        return jnp.concatenate([e, median, made.weights, made.boldness[None]])

    split = lambda x: np.moveaxis(x.reshape(3, 8, 5), 1, 0)  # noqa: E731
    got = jax.jit(jax.vmap(lambda a, b: both(a, b, "d"), axis_name="d"))(split(v), split(live))
    np.testing.assert_allclose(np.moveaxis(got, 0, 1).reshape(10, 40), jax.jit(both)(v, live), rtol=1e-5)


def test_an_unknown_normalizer_is_named():
    with pytest.raises(ValueError, match="normalizer must be one of harmonic, median; got 'mean'"):
        precision_evidence(jnp.ones(3), jnp.ones(3, bool), normalizer="mean")
