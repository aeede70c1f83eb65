"""ogm, ogm_ge and agm, each with one thing wrong."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mmjax.optim import agm, ogm, ogm_ge
from mmjax.optim.agm import leads, modulation
from testing import known_answers
from testing.methods import shares_of_logits
from testing.mutants.kit import Mutant, after, breaks, edited, on_rows, with_options


def make_ogm(k):
    return ogm(0.5, num_objectives=k)


def make_ogm_ge(k):
    return ogm_ge(0.5, num_objectives=k)


def make_agm(k):
    return agm(num_objectives=k)


def _swapped(extra):
    """Each modality's logits are those of another."""
    logits = extra["unimodal_logits"]
    return extra | {"unimodal_logits": dict(zip(logits, reversed(logits.values()), strict=True))}


def _relabelled(extra):
    """Heads are taken for encoders."""
    swap = {"encoder": "head", "head": "encoder"}
    groups = jax.tree.map(
        lambda g: "/".join([swap.get(g.split("/")[0], g.split("/")[0]), *g.split("/")[1:]]), extra["groups"]
    )
    return extra | {"groups": groups}


def _forgetful(u, s):
    """Keeps the last loss in place of the mean."""
    return u, s._replace(seen=jnp.zeros_like(s.seen))


def _unclipped(losses, reference, alpha):
    count = len(losses)
    r = lambda c: jnp.exp(count / (count - 1) * (jnp.mean(c) - c))  # noqa: E731
    return jnp.exp(alpha * (r(jnp.asarray(reference)) - r(jnp.asarray(losses))))


def _without_m(losses, reference, alpha):
    r = lambda c: jnp.exp(jnp.clip(jnp.mean(c) - c, -10, 10))  # noqa: E731
    return jnp.exp(jnp.clip(alpha * (r(jnp.asarray(reference)) - r(jnp.asarray(losses))), -10, 10))


MUTANTS = {
    "ogm: slows the one behind": Mutant(with_options(_swapped, make_ogm), known_answers.ogm_slows_the_leader, make_ogm),
    "ogm: slows the heads": Mutant(with_options(_relabelled, make_ogm), known_answers.ogm_slows_the_leader, make_ogm),
    "ogm: scores of the wrong class": Mutant(
        with_options(lambda extra: extra | {"labels": (extra["labels"] + 1) % 3}, make_ogm),
        known_answers.ogm_slows_the_leader,
        make_ogm,
    ),
    "ogm: another strength": Mutant(
        lambda k: ogm(0.05, num_objectives=k), known_answers.ogm_slows_the_leader, make_ogm
    ),
    "ogm: gradients accumulated": Mutant(
        on_rows(make_ogm, lambda rows: jnp.cumsum(rows, axis=0)), breaks("uniform_when_balanced"), make_ogm
    ),
    "ogm_ge: no noise": Mutant(make_ogm, breaks("randomness", random=True), make_ogm_ge),
    "ogm_ge: noise on the heads": Mutant(
        with_options(_relabelled, make_ogm_ge), known_answers.ogm_ge_adds_noise_of_the_gradients_spread, make_ogm_ge
    ),
    "ogm_ge: noise of the scaled gradient": Mutant(
        lambda k: edited(ogm_ge, "jnp.std(wide)", "jnp.std(new)")(0.5, num_objectives=k),
        known_answers.ogm_ge_adds_noise_of_the_gradients_spread,
        make_ogm_ge,
    ),
    "ogm_ge: one key for all steps": Mutant(
        with_options(lambda extra: extra | {"key": jax.random.key(0)}, make_ogm_ge),
        breaks("randomness", random=True),
        make_ogm_ge,
    ),
    "agm: the sign flipped": Mutant(
        lambda losses, reference, alpha: modulation(losses, reference, -alpha),
        known_answers.agm_slows_who_is_further_ahead_than_usual,
        modulation,
    ),
    "agm: losses and reference exchanged": Mutant(
        lambda losses, reference, alpha: modulation(reference, losses, alpha),
        known_answers.agm_slows_who_is_further_ahead_than_usual,
        modulation,
    ),
    "agm: against the mean of all, not its own past": Mutant(
        lambda losses, reference, alpha: jnp.exp(alpha * (1 - leads(jnp.asarray(losses)))),
        known_answers.agm_slows_who_is_further_ahead_than_usual,
        modulation,
    ),
    "agm: exponents not clipped": Mutant(
        _unclipped, known_answers.agm_slows_who_is_further_ahead_than_usual, modulation
    ),
    "agm: without M/(M−1)": Mutant(_without_m, known_answers.agm_slows_who_is_further_ahead_than_usual, modulation),
    "agm: the last loss for the running mean": Mutant(
        after(make_agm, _forgetful), known_answers.agm_keeps_running_means, make_agm
    ),
    "agm: the update scaled by the factors' mean": Mutant(
        after(make_agm, lambda u, s: (jax.tree.map(lambda x: x * jnp.mean(s.weights), u), s)),
        breaks("uniform_when_balanced", extra=shares_of_logits),
        make_agm,
    ),
}
