"""stch, uncertainty, dwa, famo and gblend, each with one thing wrong."""

from __future__ import annotations

import sys
from unittest import mock

import jax.numpy as jnp

from mmjax.optim import dwa, famo, gblend, stch, uncertainty
from mmjax.optim.weighing import masked_softmax
from testing import known_answers
from testing.mutants.kit import Mutant, after, breaks, weighing, with_options


def make_stch(k):
    return stch(0.1, num_objectives=k)


def make_summing_stch(k):
    return stch(0.1, scale="sum", num_objectives=k)


def make_uncertainty(k):
    return uncertainty(0.1, num_objectives=k)


def make_dwa(k):
    return dwa(2, 1.0, num_objectives=k)


def make_famo(k):
    return famo(num_objectives=k)


def _backwards_famo(k):
    with mock.patch.object(sys.modules[famo.__module__], "check_positive"):  # which would refuse it
        return famo(-0.025, num_objectives=k)


def make_gblend(k):
    return gblend(1, num_objectives=k)


def _values(change):
    return lambda extra: extra | {"values": change(extra["values"])}


def _validation(change):
    return lambda extra: extra | {"validation_values": change(extra["validation_values"], extra["values"])}


def _memory(**changes):
    """Behind the method: fields of its memory overwritten by change(memory)."""
    return lambda u, s: (u, s._replace(memory=s.memory._replace(**{n: c(s.memory) for n, c in changes.items()})))


def _weighing_as_at_first(make):
    """Learns nothing: the memory is that of the first step."""

    def mutant(k):
        inner = make(k)
        return after(make, lambda u, s: (u, s._replace(memory=inner.init(None).memory)))(k)

    return mutant


MUTANTS = {
    # stch
    "stch: the fusion left out of the maximum": Mutant(
        weighing(lambda v, a: masked_softmax(v / 0.1, a & (jnp.arange(a.size) > 0))),
        known_answers.stch_is_a_smooth_maximum,
        make_stch,
    ),
    "stch: favours the best": Mutant(
        with_options(_values(jnp.negative), make_stch), known_answers.stch_is_a_smooth_maximum, make_stch
    ),
    "stch: exponentials not centred": Mutant(
        weighing(lambda v, a: jnp.where(a, jnp.exp(v / 0.1), 0.0) / jnp.sum(jnp.where(a, jnp.exp(v / 0.1), 0.0))),
        known_answers.stch_is_a_smooth_maximum,
        make_stch,
    ),
    "stch: mean for sum": Mutant(make_stch, breaks("uniform_when_balanced"), make_summing_stch),
    # uncertainty
    "uncertainty: variances climb": Mutant(
        lambda k: after(make_uncertainty, _memory(log_variance=lambda m: -m.log_variance))(k),
        known_answers.uncertainty_learns_variances,
        make_uncertainty,
    ),
    "uncertainty: without the factor ½": Mutant(
        weighing(lambda v, a: a.astype(jnp.float32)), known_answers.uncertainty_learns_variances, make_uncertainty
    ),
    "uncertainty: variances are not learned": Mutant(
        _weighing_as_at_first(make_uncertainty), known_answers.uncertainty_learns_variances, make_uncertainty
    ),
    "uncertainty: one variance for all": Mutant(
        with_options(_values(lambda v: jnp.full_like(v, jnp.mean(v))), make_uncertainty),
        known_answers.uncertainty_learns_variances,
        make_uncertainty,
    ),
    # dwa
    "dwa: weights sum to one": Mutant(weighing(lambda v, a: a / jnp.sum(a)), breaks("uniform_when_balanced"), make_dwa),
    "dwa: the ratio upside down": Mutant(
        with_options(_values(lambda v: 1 / v), make_dwa), known_answers.dwa_compares_windows, make_dwa
    ),
    "dwa: windows of one step": Mutant(
        lambda k: dwa(1, 1.0, num_objectives=k), known_answers.dwa_compares_windows, make_dwa
    ),
    "dwa: temperature forgotten": Mutant(
        lambda k: dwa(2, 2.0, num_objectives=k), known_answers.dwa_compares_windows, make_dwa
    ),
    "dwa: never past the first window": Mutant(
        _weighing_as_at_first(make_dwa), known_answers.dwa_compares_windows, make_dwa
    ),
    # famo
    "famo: the gradient's sign": Mutant(_backwards_famo, known_answers.famo_evens_out_the_rates, make_famo),
    "famo: losses for their logarithms": Mutant(
        weighing(lambda v, a: jnp.where(a, v, 0) / jnp.sum(jnp.where(a, v, 0))),
        known_answers.famo_evens_out_the_rates,
        make_famo,
    ),
    "famo: weights are not learned": Mutant(
        _weighing_as_at_first(make_famo), known_answers.famo_evens_out_the_rates, make_famo
    ),
    "famo: twice the step": Mutant(
        lambda k: famo(0.05, num_objectives=k), known_answers.famo_evens_out_the_rates, make_famo
    ),
    # gblend
    "gblend: training losses for validation losses": Mutant(
        with_options(_validation(lambda val, train: jnp.where(jnp.isnan(val), val, train)), make_gblend),
        known_answers.gblend_prefers_what_generalises,
        make_gblend,
    ),
    "gblend: never estimated": Mutant(
        _weighing_as_at_first(make_gblend), known_answers.gblend_prefers_what_generalises, make_gblend
    ),
    "gblend: weights sum to one": Mutant(
        weighing(lambda v, a: a / jnp.sum(a)),
        breaks("uniform_when_balanced"),
        weighing(lambda v, a: a.astype(jnp.float32)),
    ),
    "gblend: the gap not squared": Mutant(
        with_options(
            _validation(lambda val, train: jnp.where(jnp.isnan(val), val, train + jnp.sqrt(jnp.abs(val - train)))),
            make_gblend,
        ),
        known_answers.gblend_prefers_what_generalises,
        make_gblend,
    ),
}
