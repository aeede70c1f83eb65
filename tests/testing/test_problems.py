"""The generated problems are what they say, in both forms."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.testing import problems
from mmjax.testing.problems import join_leaves, lazy

CASES = [(1, "dense"), (2, "encoders"), (3, "dense"), (4, "encoders")]


@pytest.mark.parametrize(("k", "structure"), CASES)
def test_lazy_gradients_are_the_chosen_ones(k, structure):
    problem = problems.conflicting(k, structure)
    arrays = problem.arrays()

    def both(arrays):
        values, grads, last_layer = lazy(problem.names, problem.touching, arrays)
        return values, grads.stacked(), grads.features().cotangents, last_layer, grads.features().direct

    values, rows, cotangents, last_layer, direct = jax.jit(both)(arrays)
    np.testing.assert_array_equal(values, problem.values)
    np.testing.assert_allclose(join_leaves(rows), problem.matrix, atol=1e-6)
    assert set(cotangents) == set(problem.modalities)
    assert set(last_layer) == set(problem.names)
    for m in problem.modalities:
        assert last_layer[m].inputs.shape == (problems.EXAMPLES, problems.WIDTH)
        assert cotangents[m].shape == (k, problems.EXAMPLES, problems.WIDTH)
        np.testing.assert_array_equal(direct["encoder"][m]["kernel"], 0)
    grads = lazy(problem.names, problem.touching, arrays)[1]
    assert grads.names == problem.names
    jax.tree.map(np.testing.assert_array_equal, grads.touching, problem.touching)
    parts = grads.parts(2)["fusion"]["kernel"]["fusion"]
    np.testing.assert_allclose(parts.mean(axis=0), arrays["rows"]["fusion"]["kernel"][0], rtol=1e-6)


@pytest.mark.parametrize("structure", ["dense", "encoders"])
@pytest.mark.parametrize("k", [2, 3, 5, 10])
def test_balanced_and_stationary_are_so_on_the_shared_parameters(k, structure):
    problem = problems.balanced(k, structure)
    here = problems.shared(problem)
    for matrix in (problem.matrix[:, here], problem.matrix):
        gram = matrix.astype(np.float64) @ matrix.T
        if structure == "dense" or matrix.shape[1] == here.sum():
            np.testing.assert_allclose(gram, gram[0, 0] * np.eye(k), atol=1e-5)
    assert gram[0, 0] > 1
    assert np.ptp(problem.values) == 0
    rows = problems.stationary(k, structure).matrix[:, here]
    kernel = np.linalg.svd(rows.T)[2][-1] if structure == "dense" else None
    if kernel is not None:
        assert np.all(kernel * kernel[0] > 0)  # one sign: a convex combination, all weights positive
    assert np.linalg.svd(rows)[1][-1] < 1e-5


@pytest.mark.parametrize("structure", ["dense", "encoders"])
def test_permuting_and_permuting_back(structure):
    problem = problems.random(4, structure)
    order = [2, 0, 1]
    moved = problems.permuted(problem, order)
    assert moved.values[1] == problem.values[3]
    weights = np.array([1.0, 0.3, 0.2, 0.7])  # of the moved problem's objectives
    wanted = weights[0] * problem.matrix[0] + sum(weights[1 + i] * problem.matrix[1 + order[i]] for i in range(3))
    np.testing.assert_allclose(problems.permute_back(weights @ moved.matrix, problem, order), wanted, atol=1e-6)
    reached = jax.tree.map(lambda leaf: np.any(leaf != 0, axis=tuple(range(1, leaf.ndim))), moved.rows)
    jax.tree.map(np.testing.assert_array_equal, reached, problem.touching)


def test_absent_and_without():
    problem = problems.absent(problems.random(3, "encoders"), 1)
    assert problem.active.tolist() == [True, False, True]
    rows = problem.rows
    assert np.isnan(rows["encoder"]["audio"]["kernel"][1]).all()
    assert (rows["encoder"]["gaze"]["kernel"][1] == 0).all()  # no opinion stays no opinion
    rest = problems.without(problem, 1)
    assert rest.names == ("fusion", "gaze")
    assert rest.touching["head"]["audio"]["kernel"].tolist() == [False, False]
    assert rest.touching["encoder"]["audio"]["kernel"].tolist() == [True, False]
    assert np.isfinite(rest.matrix).all()


def test_leaves_split_and_join():
    problem = problems.random(5)
    np.testing.assert_array_equal(join_leaves(problem.rows), problem.matrix)
    assert jnp.shape(problem.rows["encoder"]["image"]["kernel"]) == (5, problems.EXAMPLES, problems.WIDTH)
    assert "conflicting" in str(problems.conflicting(2))
