"""BOGC with one thing wrong."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mmjax.bayes.moments import ema
from mmjax.config import Layout
from mmjax.optim import bogc
from mmjax.testing import problems
from testing import known_answers
from testing.mutants.kit import Mutant, after, edited, on_rows


def make_bogc(k):
    return bogc(ema(0.9), level="parameters", num_objectives=k)


def with_variance(change):
    """K -> BOGC on change(variance) of the moving moments."""
    estimator = ema(0.9)

    def estimate(*arguments):
        moments, state = estimator.estimate(*arguments)
        return tuple(m._replace(variance=change(m.variance)) for m in moments), state

    changed = estimator._replace(estimate=estimate)
    return lambda k: bogc(changed, level="parameters", num_objectives=k)


def at_features(function):
    """K -> BOGC, or what is made of it, at the features of two modalities, with known variances."""
    layout = Layout(
        features={"audio": (problems.WIDTH,), "gaze": (problems.WIDTH,)},
        last_layer=dict.fromkeys(("fusion", "audio", "gaze"), (problems.WIDTH, problems.CLASSES)),
    )
    return lambda k: function(known_answers.known_variances(), layout=layout, num_objectives=k)


def weighed_by(new):
    """BOGC with another expression for the evidence."""
    arguments = "variance, live, normalizer=normalizer, temperature=temperature, axis_name=axis"
    call = f"precision_evidence(\n                {arguments}\n            )"
    return edited(bogc, call, new)


PER_OBJECTIVE = "jax.vmap(precision_evidence)(*jnp.broadcast_arrays(variance, live))"
PER_EXAMPLE = "jax.vmap(precision_evidence, 1, 1)(*jnp.broadcast_arrays(variance, live))"

CHECK = known_answers.bogc_of_two_steps
MUTANTS = {
    "bogc: dead entries have an opinion": Mutant(
        lambda k: edited(bogc, "live = (s > 0) & as_rows", "live = (s >= 0) & as_rows")(
            ema(0.9), level="parameters", num_objectives=k
        ),
        CHECK,
        make_bogc,
    ),
    "bogc: zero variance counted as certainty": Mutant(
        lambda k: weighed_by("jnp.where(live, jnp.mean(variance, where=live) / (variance + 1e-30), 0)")(
            ema(0.9), level="parameters", num_objectives=k
        ),
        CHECK,
        make_bogc,
    ),
    "bogc: variance taken for precision": Mutant(with_variance(lambda v: 1 / (v + 1e-6)), CHECK, make_bogc),
    "bogc: standard deviation for variance": Mutant(with_variance(jnp.sqrt), CHECK, make_bogc),
    "bogc: equal evidence": Mutant(with_variance(jnp.ones_like), CHECK, make_bogc),
    "bogc: without conservatism": Mutant(
        lambda k: bogc(ema(0.9), level="parameters", num_objectives=k, conservatism=False), CHECK, make_bogc
    ),
    "bogc: mean for sum": Mutant(
        after(make_bogc, lambda u, s: (jax.tree.map(lambda x: x / 2, u), s)), CHECK, make_bogc
    ),
    "bogc: gradients accumulated": Mutant(on_rows(make_bogc, lambda rows: jnp.cumsum(rows, axis=0)), CHECK, make_bogc),
    "bogc: typical variance by the median": Mutant(
        lambda k: bogc(ema(0.9), level="parameters", num_objectives=k, normalizer="median"), CHECK, make_bogc
    ),
    "bogc: typical variance of each objective by itself": Mutant(
        lambda k: weighed_by(PER_OBJECTIVE)(ema(0.9), level="parameters", num_objectives=k), CHECK, make_bogc
    ),
    "bogc, features: typical variance of each example by itself": Mutant(
        at_features(weighed_by(PER_EXAMPLE)), known_answers.bogc_at_the_features, at_features(bogc)
    ),
    "bogc, features: one variance for all examples": Mutant(
        at_features(weighed_by("precision_evidence(jnp.mean(variance, axis=1, keepdims=True), live)")),
        known_answers.bogc_at_the_features,
        at_features(bogc),
    ),
    "bogc, features: a sum for K objectives, of which two reach a modality": Mutant(
        at_features(edited(bogc, "weights * jnp.sum(held)", "weights * k")),
        known_answers.bogc_at_the_features,
        at_features(bogc),
    ),
}
