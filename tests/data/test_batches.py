"""Batches: the stream of indices, gathering, and evaluation in full."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.data import Batch, Dataset, Task, as_input, batch_indices, evaluation_batches, gather
from mmjax.data.dataset import ArrayLike


def dataset(num_examples: int) -> Dataset:
    """Inputs that name their example, so that a wrong row shows."""
    rows = np.arange(num_examples)
    column = rows[:, None, None] * np.ones((1, 2, 2), int)
    inputs: dict[str, ArrayLike] = {"a": rows[:, None] * np.ones((1, 3)), "b": (column % 256).astype(np.uint8)}
    return Dataset(inputs, rows % 2, Task("classification", 2))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.data())
def test_every_epoch_is_a_permutation_and_nothing_is_dropped(num_examples: int, data: st.DataObject) -> None:
    batch_size = data.draw(st.integers(1, num_examples))
    epochs = 3
    steps = -(-epochs * num_examples // batch_size)
    batches = [batch_indices(7, step, num_examples, batch_size) for step in range(steps)]
    assert all(batch.shape == (batch_size,) and batch.dtype == np.int64 for batch in batches)
    stream = np.concatenate(batches)[: epochs * num_examples].reshape(epochs, num_examples)
    np.testing.assert_array_equal(np.sort(stream, axis=1), np.tile(np.arange(num_examples), (epochs, 1)))
    expected = [np.random.default_rng([7, epoch]).permutation(num_examples) for epoch in range(epochs)]
    np.testing.assert_array_equal(stream, expected)


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    straight = [batch_indices(0, step, 10, 4) for step in range(20)]
    for step in (13, 2, 19, 0):  # out of order, with other streams in between
        batch_indices(1, step, 9, 4)
        np.testing.assert_array_equal(batch_indices(0, step, 10, 4), straight[step])
    assert not np.array_equal(np.concatenate(straight), np.concatenate([batch_indices(1, s, 10, 4) for s in range(20)]))


def test_writing_into_a_batch_leaves_the_stream_alone() -> None:
    first = batch_indices(3, 0, 8, 4)
    kept = first.copy()
    first[:] = 0
    np.testing.assert_array_equal(batch_indices(3, 0, 8, 4), kept)


def test_batch_indices_reject_what_cannot_be() -> None:
    with pytest.raises(ValueError, match=r"batch_size must be in 1..5 .* got 6"):
        batch_indices(0, 0, 5, 6)
    with pytest.raises(ValueError, match="batch_size"):
        batch_indices(0, 0, 5, 0)
    with pytest.raises(ValueError, match="seed=-1"):
        batch_indices(-1, 0, 5, 2)


def test_gather_takes_the_rows_in_the_formats_of_a_step() -> None:
    batch = gather(dataset(300), np.array([299, 0, 7]))
    np.testing.assert_array_equal(batch.inputs["a"][:, 0], [299, 0, 7])
    np.testing.assert_array_equal(batch.inputs["b"][:, 0, 0], [43, 0, 7])
    assert {x.dtype for x in batch.inputs.values()} == {np.dtype(np.float32)}
    assert batch.label.dtype == np.int32 and batch.label.tolist() == [1, 0, 1]
    assert batch.weight.dtype == np.float32 and batch.weight.tolist() == [1, 1, 1]


def test_gather_serves_inputs_made_on_demand_and_float_labels() -> None:
    class Squares:
        shape, dtype = (4, 1), np.dtype(np.float32)

        def __getitem__(self, index: np.ndarray) -> np.ndarray:
            return (np.asarray(index, np.float32) ** 2)[:, None]

    data = Dataset({"a": Squares()}, np.ones((4, 2)), Task("multilabel", 2))
    batch = gather(data, np.array([3, 1]))
    assert batch.inputs["a"].tolist() == [[9.0], [1.0]]
    assert batch.label.dtype == np.float32


def test_signed_integers_stay_integers() -> None:
    assert as_input(np.array([[5, 6]], np.int64)).dtype == np.int32


def test_gather_rejects_an_index_outside() -> None:
    with pytest.raises(IndexError):
        gather(dataset(3), np.array([3]))


@pytest.mark.parametrize(("num_examples", "batch_size"), [(7, 3), (6, 3), (2, 5), (1, 1)])
def test_evaluation_counts_every_example_once_at_one_shape(num_examples: int, batch_size: int) -> None:
    batches = list(evaluation_batches(dataset(num_examples), batch_size))
    assert {batch.inputs["a"].shape for batch in batches} == {(batch_size, 3)}
    assert len(batches) == -(-num_examples // batch_size)
    seen = np.concatenate([batch.inputs["a"][:, 0][batch.weight > 0] for batch in batches])
    np.testing.assert_array_equal(seen, np.arange(num_examples))
    assert sum(batch.weight.sum() for batch in batches) == num_examples


def test_evaluation_rejects_a_batch_size_at_the_call() -> None:
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        evaluation_batches(dataset(3), 0)


def test_a_batch_is_a_pytree() -> None:
    batch = gather(dataset(4), np.array([0, 1]))
    doubled = jax.tree.map(lambda x: 2 * x, batch)
    assert isinstance(doubled, Batch)
    assert len(jax.tree.leaves(batch)) == 4
