"""Methods that even out gradients' scales, each with one thing wrong."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mmjax.optim import aligned_mtl, imtl_g, nash_mtl
from mmjax.optim.imtl_g import imtl_g_weights
from mmjax.optim.nash_mtl import nash_mtl_weights
from testing import known_answers
from testing.mutants.gram import per_parameter, weighing_gramian
from testing.mutants.kit import Mutant, after


def make_imtl_g(k):
    return imtl_g(num_objectives=k)


def make_nash(k):
    return nash_mtl(num_objectives=k)


def make_aligned(k):
    return aligned_mtl(num_objectives=k)


def _equal_products(gram):
    """u·g_k the same for all k, not u·g_k/‖g_k‖."""
    raw = jnp.linalg.solve(gram.matrix, jnp.ones_like(gram.norms))
    return raw / jnp.sum(raw)


def _not_normalised(gram):
    """G⁻¹ d, whatever it sums to."""
    return jnp.linalg.solve(gram.matrix, gram.norms)


def _nash_of_unit_gradients(gram):
    """β in place of α = β/‖g‖."""
    return nash_mtl_weights(gram) * gram.norms * jnp.sqrt(gram.trace)


def _nash_without_inverse(gram):
    """G α = 1."""
    return jnp.linalg.solve(gram.matrix * gram.trace, jnp.ones_like(gram.norms))


def _aligned(stretch):
    """V diag(stretch(λ)) Vᵀ 1/K."""

    def weigh(gram):
        values, vectors = jnp.linalg.eigh(gram.matrix)
        return vectors @ (stretch(values) * (gram.mean @ vectors))

    return weighing_gramian(weigh)


MUTANTS = {
    "imtl_g: equal products": Mutant(
        weighing_gramian(_equal_products), known_answers.imtl_g_projects_equally, make_imtl_g
    ),
    "imtl_g: weights that do not sum to 1": Mutant(
        weighing_gramian(_not_normalised), known_answers.imtl_g_projects_equally, make_imtl_g
    ),
    "imtl_g: the weights in reverse order": Mutant(
        weighing_gramian(lambda gram: jnp.flip(imtl_g_weights(gram))),
        known_answers.imtl_g_projects_equally,
        make_imtl_g,
    ),
    "imtl_g: sum for mean": Mutant(
        lambda k: imtl_g(scale="sum", num_objectives=k), known_answers.imtl_g_projects_equally, make_imtl_g
    ),
    "imtl_g: per parameter": Mutant(per_parameter(make_imtl_g), known_answers.imtl_g_projects_equally, make_imtl_g),
    "nash_mtl: of unit gradients": Mutant(
        weighing_gramian(_nash_of_unit_gradients), known_answers.nash_mtl_solves_its_equation, make_nash
    ),
    "nash_mtl: G α = 1": Mutant(
        weighing_gramian(_nash_without_inverse), known_answers.nash_mtl_solves_its_equation, make_nash
    ),
    "nash_mtl: norm 1": Mutant(
        lambda k: nash_mtl(1.0, num_objectives=k), known_answers.nash_mtl_solves_its_equation, make_nash
    ),
    "nash_mtl: mean for sum": Mutant(
        after(make_nash, lambda u, s: (jax.tree.map(lambda x: x / 2, u), s)),
        known_answers.nash_mtl_solves_its_equation,
        make_nash,
    ),
    "aligned_mtl: not aligned": Mutant(
        weighing_gramian(lambda gram: gram.mean),
        known_answers.aligned_mtl_is_the_nearest_orthogonal_system,
        make_aligned,
    ),
    "aligned_mtl: by eigenvalues, not their roots": Mutant(
        _aligned(lambda values: values[0] / values),
        known_answers.aligned_mtl_is_the_nearest_orthogonal_system,
        make_aligned,
    ),
    "aligned_mtl: of the greatest length": Mutant(
        _aligned(lambda values: jnp.sqrt(values[-1] / values)),
        known_answers.aligned_mtl_is_the_nearest_orthogonal_system,
        make_aligned,
    ),
    "aligned_mtl: sum for mean": Mutant(
        lambda k: aligned_mtl(scale="sum", num_objectives=k),
        known_answers.aligned_mtl_is_the_nearest_orthogonal_system,
        make_aligned,
    ),
}
