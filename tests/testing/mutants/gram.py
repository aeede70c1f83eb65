"""Methods on the Gramian, each with one thing wrong."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from mmjax.optim import mgda
from mmjax.optim.gradients import stacked
from mmjax.optim.gramian import gram_method
from mmjax.optim.mgda import mgda_weights
from testing import known_answers
from testing.mutants.kit import Mutant, breaks, on_rows


def make_mgda(k):
    return mgda(num_objectives=k)


def weighing_gramian(weigh, **options):
    """K -> the combiner of weigh(Gramian) -> weights."""
    return lambda k: gram_method(lambda gram, key: weigh(gram), num_objectives=k, **options)


def per_parameter(make):
    """K -> the method on each leaf by itself."""

    def mutant(k):
        inner = make(k)

        def update(grads, state, params=None, **extra_args):
            extra_args.pop("touching", None)
            leaves, structure = jax.tree.flatten(stacked(grads))
            found = [inner.update({"leaf": leaf}, state, None, **extra_args) for leaf in leaves]
            return jax.tree.unflatten(structure, [u["leaf"] for u, _ in found]), found[-1][1]

        return optax.GradientTransformationExtraArgs(inner.init, update)

    return mutant


def _unclipped_pair(gram):
    """The shortest affine combination of two, also outside the simplex."""
    (a, b), (_, c) = gram.matrix
    first = (c - b) / (a - 2 * b + c)
    return jnp.stack([first, 1 - first])


MUTANTS = {
    "mgda: mean in place of the shortest": Mutant(
        weighing_gramian(lambda gram: gram.mean), breaks("stationary"), make_mgda
    ),
    "mgda: the weights exchanged": Mutant(
        weighing_gramian(lambda gram: mgda_weights(gram)[::-1]), known_answers.mgda_of_two_gradients, make_mgda
    ),
    "mgda: not clipped to the simplex": Mutant(
        weighing_gramian(_unclipped_pair), known_answers.mgda_of_two_gradients, make_mgda
    ),
    "mgda: weights of normalised gradients": Mutant(
        weighing_gramian(lambda gram: mgda_weights(gram._replace(matrix=gram.cosines))),
        known_answers.mgda_satisfies_kkt,
        make_mgda,
    ),
    "mgda: gradients accumulated": Mutant(
        on_rows(make_mgda, lambda rows: jnp.cumsum(rows, axis=0)), breaks("non_conflicting"), make_mgda
    ),
    "mgda: per parameter": Mutant(per_parameter(make_mgda), known_answers.mgda_of_two_gradients, make_mgda),
    "mgda: also where one objective reaches": Mutant(
        lambda k: mgda(scope="all", num_objectives=k), known_answers.mgda_satisfies_kkt, make_mgda
    ),
    "mgda: sum for mean": Mutant(
        lambda k: mgda(scale="sum", num_objectives=k), known_answers.mgda_satisfies_kkt, make_mgda
    ),
    "mgda: all weight on the longest": Mutant(
        weighing_gramian(lambda gram: (gram.norms == jnp.max(gram.norms)).astype(jnp.float32)),
        breaks("non_conflicting"),
        make_mgda,
    ),
}
