"""BOGC with one thing wrong."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mmjax.bayes.moments import ema
from mmjax.optim import bogc
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


CHECK = known_answers.bogc_of_two_steps
MUTANTS = {
    "bogc: zero variance counted as certainty": Mutant(
        lambda k: edited(bogc, "live = (s > 0) & as_rows", "live = (s >= 0) & as_rows")(
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
}
