"""stch, uncertainty, dwa, famo and gblend, each with one thing wrong."""

from __future__ import annotations

import jax.numpy as jnp

from mmjax.optim import dwa, famo, gblend, stch, uncertainty
from mmjax.optim.weighing import masked_softmax
from testing import known_answers
from testing.mutants.kit import Mutant, breaks, edited, weighing, with_options


def make_stch(k):
    return stch(0.1, num_objectives=k)


def make_summing_stch(k):
    return stch(0.1, scale="sum", num_objectives=k)


def make_uncertainty(k):
    return uncertainty(0.1, num_objectives=k)


def make_dwa(k):
    return dwa(2, 0.5, num_objectives=k)


def make_famo(k):
    return famo(num_objectives=k)


def make_gblend(k):
    return gblend(1, num_objectives=k)


def _values(change):
    return lambda extra: extra | {"values": change(extra["values"])}


def _validation(change):
    return lambda extra: extra | {"validation_values": change(extra["validation_values"], extra["values"])}


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
        lambda k: edited(
            uncertainty,
            "memory.log_variance - learning_rate * direction",
            "memory.log_variance + learning_rate * direction",
        )(0.1, num_objectives=k),
        known_answers.uncertainty_learns_variances,
        make_uncertainty,
    ),
    "uncertainty: without the factor ½": Mutant(
        lambda k: edited(uncertainty, "weights = 0.5 * jnp.exp", "weights = jnp.exp")(0.1, num_objectives=k),
        known_answers.uncertainty_learns_variances,
        make_uncertainty,
    ),
    "uncertainty: variances are not learned": Mutant(
        lambda k: edited(uncertainty, "memory.log_variance - learning_rate * direction", "memory.log_variance")(
            0.1, num_objectives=k
        ),
        known_answers.uncertainty_learns_variances,
        make_uncertainty,
    ),
    "uncertainty: one variance for all": Mutant(
        lambda k: edited(uncertainty, "weights * observed.values", "jnp.mean(weights * observed.values) + 0 * weights")(
            0.1, num_objectives=k
        ),
        known_answers.uncertainty_learns_variances,
        make_uncertainty,
    ),
    "uncertainty: the term ½ s forgotten": Mutant(
        lambda k: edited(uncertainty, "gradient = 0.5 - weights", "gradient = -weights")(0.1, num_objectives=k),
        known_answers.uncertainty_learns_variances,
        make_uncertainty,
    ),
    # dwa
    "dwa: weights sum to one": Mutant(
        lambda k: edited(dwa, "share * jnp.sum(observed.active), DwaMemory", "share, DwaMemory")(
            2, 0.5, num_objectives=k
        ),
        known_answers.dwa_compares_windows,
        make_dwa,
    ),
    "dwa: the ratio upside down": Mutant(
        lambda k: edited(
            dwa,
            "memory.last / jnp.where(comparable, memory.before, 1.0)",
            "memory.before / jnp.where(comparable, memory.last, 1.0)",
        )(2, 0.5, num_objectives=k),
        known_answers.dwa_compares_windows,
        make_dwa,
    ),
    "dwa: windows of one step": Mutant(
        lambda k: edited(dwa, "full = steps >= window", "full = steps >= 1")(2, 0.5, num_objectives=k),
        known_answers.dwa_compares_windows,
        make_dwa,
    ),
    "dwa: temperature forgotten": Mutant(
        lambda k: edited(dwa, "ratio / temperature", "ratio")(2, 0.5, num_objectives=k),
        known_answers.dwa_compares_windows,
        make_dwa,
    ),
    "dwa: never past the first window": Mutant(
        lambda k: edited(dwa, "windows=jnp.minimum(memory.windows + moves, 2)", "windows=memory.windows")(
            2, 0.5, num_objectives=k
        ),
        known_answers.dwa_compares_windows,
        make_dwa,
    ),
    # famo
    "famo: how far each loss fell with the wrong sign": Mutant(
        lambda k: edited(famo, "memory.log_values - log_values, 0.0", "log_values - memory.log_values, 0.0")(
            num_objectives=k
        ),
        known_answers.famo_evens_out_the_rates,
        make_famo,
    ),
    "famo: losses for their logarithms": Mutant(
        lambda k: edited(famo, "log_values = jnp.log(values)", "log_values = values")(num_objectives=k),
        known_answers.famo_evens_out_the_rates,
        make_famo,
    ),
    "famo: weights are not learned": Mutant(
        lambda k: edited(famo, "logits = memory.logits - learning_rate * direction", "logits = memory.logits")(
            num_objectives=k
        ),
        known_answers.famo_evens_out_the_rates,
        make_famo,
    ),
    "famo: what all losses fell is not taken off": Mutant(
        lambda k: edited(famo, "fell - jnp.sum(z * fell)", "fell")(num_objectives=k),
        known_answers.famo_evens_out_the_rates,
        make_famo,
    ),
    # gblend
    "gblend: training losses for validation losses": Mutant(
        with_options(_validation(lambda val, train: jnp.where(jnp.isnan(val), val, train)), make_gblend),
        known_answers.gblend_prefers_what_generalises,
        make_gblend,
    ),
    "gblend: never estimated": Mutant(
        lambda k: edited(gblend, "jnp.where(due & jnp.any(comparable), estimate, memory.estimate)", "memory.estimate")(
            1, num_objectives=k
        ),
        known_answers.gblend_prefers_what_generalises,
        make_gblend,
    ),
    "gblend: weights sum to one": Mutant(
        lambda k: edited(gblend, "active * jnp.sum(observed.active) /", "active /")(1, num_objectives=k),
        known_answers.gblend_prefers_what_generalises,
        make_gblend,
    ),
    "gblend: the gap not squared": Mutant(
        lambda k: edited(gblend, "share = gained / relative**2", "share = gained / relative")(1, num_objectives=k),
        known_answers.gblend_prefers_what_generalises,
        make_gblend,
    ),
}
