"""Methods against conflicting gradients, each with one thing wrong."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mmjax.optim import cagrad, mmpareto, pcgrad, upgrad
from mmjax.optim.cagrad import cagrad_weights
from mmjax.optim.pcgrad import pcgrad_weights, random_orders
from mmjax.optim.qp import min_norm
from mmjax.optim.upgrad import upgrad_weights
from testing import known_answers
from testing.mutants.gram import per_parameter, weighing_gramian
from testing.mutants.kit import Mutant, after, edited, on_rows


def make_pcgrad(k):
    return pcgrad(num_objectives=k)


def make_upgrad(k):
    return upgrad(num_objectives=k)


def make_cagrad(k):
    return cagrad(0.5, num_objectives=k)


def make_mmpareto(k):
    return mmpareto(num_objectives=k)


def accumulated(rows):
    """Each objective's gradient with those before it, as left behind by backward passes without a reset between."""
    return jnp.cumsum(rows, axis=0)


def _one_order(gram, key):
    """Every objective meets the others in the same order."""
    k = gram.matrix.shape[0]
    return pcgrad_weights(gram, jnp.tile(random_orders(key, k)[:1], (k, 1)))


def _on_updated_rows(gram, key):
    """Each objective in turn is projected off the others as projected so far."""
    k = gram.matrix.shape[0]
    rows = jnp.eye(k)
    for own in range(k):
        for other in range(k):
            if other != own:
                product = rows[own] @ gram.matrix @ rows[other]
                length = rows[other] @ gram.matrix @ rows[other]
                rows = rows.at[own].add(-jnp.minimum(product, 0) / length * rows[other])
    return jnp.sum(rows, axis=0)


def _onto_agreement(gram, key):
    """Projects where the gradients agree."""
    flipped = gram._replace(matrix=2 * jnp.diag(jnp.diagonal(gram.matrix)) - gram.matrix)
    k = gram.matrix.shape[0]
    return pcgrad_weights(flipped, jnp.tile(jnp.arange(k), (k, 1)))


def keyed(weigh):
    """K -> the combiner of weigh(Gramian, key) -> weights; without a key one is made up."""
    from mmjax.optim.gramian import gram_method

    return lambda k: gram_method(
        lambda gram, key: weigh(gram, jax.random.key(0) if key is None else key), num_objectives=k
    )


def _of_unit_gradients(gram):
    """The projections of g_k/‖g_k‖."""
    return upgrad_weights(gram._replace(matrix=gram.cosines))


def _mean_projected(gram):
    """The projection of the mean gradient, not the mean of the projections."""
    k = gram.norms.shape[0]
    flags = jnp.ones(k, bool)

    def body(_, v):  # projected gradient on v >= mean
        step = 1 / jnp.trace(gram.matrix)
        return jnp.where(flags, jnp.maximum(v - step * (gram.matrix @ v), gram.mean), 0)

    return jax.lax.fori_loop(0, 2000, body, gram.mean)


def _cagrad(change):
    """The weights of ḡ + change(pull), pull = c ‖ḡ‖ w/‖g_w‖."""
    return weighing_gramian(lambda gram: gram.mean + change(cagrad_weights(gram, 0.5) - gram.mean))


def _cagrad_of_min_norm(gram):
    """g_w the shortest vector of the hull, as in MGDA."""
    w = min_norm(gram.matrix, gram.active)
    length = jnp.sqrt(w @ gram.matrix @ w)
    return gram.mean + 0.5 * jnp.sqrt(gram.mean @ gram.matrix @ gram.mean) * w / length


MUTANTS = {
    "pcgrad: the plain sum": Mutant(
        weighing_gramian(lambda gram: gram.mean * gram.norms.shape[0]),
        known_answers.pcgrad_of_two_gradients,
        make_pcgrad,
    ),
    "pcgrad: mean for sum": Mutant(
        after(make_pcgrad, lambda u, s: (jax.tree.map(lambda x: x / 2, u), s)),
        known_answers.pcgrad_of_two_gradients,
        make_pcgrad,
    ),
    "pcgrad: off what agrees": Mutant(keyed(_onto_agreement), known_answers.pcgrad_of_two_gradients, make_pcgrad),
    "pcgrad: per parameter": Mutant(per_parameter(make_pcgrad), known_answers.pcgrad_of_two_gradients, make_pcgrad),
    "pcgrad: gradients accumulated": Mutant(
        on_rows(make_pcgrad, accumulated), known_answers.pcgrad_of_two_gradients, make_pcgrad
    ),
    "pcgrad: on rows that were projected before": Mutant(
        keyed(_on_updated_rows), known_answers.pcgrad_draws_independent_orders, make_pcgrad
    ),
    "pcgrad: one order for all": Mutant(keyed(_one_order), known_answers.pcgrad_draws_independent_orders, make_pcgrad),
    "upgrad: no projection": Mutant(
        weighing_gramian(lambda gram: gram.mean), known_answers.upgrad_projects_each_gradient, make_upgrad
    ),
    "upgrad: of unit gradients": Mutant(
        weighing_gramian(_of_unit_gradients), known_answers.upgrad_projects_each_gradient, make_upgrad
    ),
    "upgrad: projection of the mean": Mutant(
        weighing_gramian(_mean_projected), known_answers.upgrad_projects_each_gradient, make_upgrad
    ),
    "upgrad: sum for mean": Mutant(
        lambda k: upgrad(scale="sum", num_objectives=k), known_answers.upgrad_projects_each_gradient, make_upgrad
    ),
    "upgrad: per parameter": Mutant(
        per_parameter(make_upgrad), known_answers.upgrad_projects_each_gradient, make_upgrad
    ),
    "cagrad: the mean": Mutant(
        lambda k: cagrad(0.0, num_objectives=k), known_answers.cagrad_is_the_best_in_its_ball, make_cagrad
    ),
    "cagrad: pulled away": Mutant(
        _cagrad(lambda pull: -pull), known_answers.cagrad_is_the_best_in_its_ball, make_cagrad
    ),
    "cagrad: the shortest vector's direction": Mutant(
        weighing_gramian(_cagrad_of_min_norm), known_answers.cagrad_is_the_best_in_its_ball, make_cagrad
    ),
    "cagrad: half the radius": Mutant(
        _cagrad(lambda pull: pull / 2), known_answers.cagrad_is_the_best_in_its_ball, make_cagrad
    ),
    "cagrad: divided by 1 + c²": Mutant(
        after(make_cagrad, lambda u, s: (jax.tree.map(lambda x: x / 1.25, u), s)),
        known_answers.cagrad_is_the_best_in_its_ball,
        make_cagrad,
    ),
    "mmpareto: gradients accumulated": Mutant(
        on_rows(make_mmpareto, accumulated), known_answers.mmpareto_restores_the_step, make_mmpareto
    ),
    "mmpareto: the step not restored": Mutant(
        lambda k: edited(mmpareto, "jnp.maximum(1, summed / jnp.where(vanishes, 1, combined)) * gamma", "gamma")(
            num_objectives=k
        ),
        known_answers.mmpareto_restores_the_step,
        make_mmpareto,
    ),
    "mmpareto: mean for sum": Mutant(
        lambda k: edited(mmpareto, "2 * factor * w), acts", "factor * w), acts")(num_objectives=k),
        known_answers.mmpareto_restores_the_step,
        make_mmpareto,
    ),
    "mmpareto: the fusion taken from the last index": Mutant(
        on_rows(make_mmpareto, lambda rows: jnp.roll(rows, 1, axis=0)),
        known_answers.mmpareto_restores_the_step,
        make_mmpareto,
    ),
}
