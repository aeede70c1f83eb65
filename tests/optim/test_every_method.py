"""What holds for every registered method beyond `check_combiner`: inside Optax, over seeds at once, given nonsense."""

from __future__ import annotations

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from testing.methods import cases_of, maker

from mmjax.optim import METHODS, monitor
from mmjax.testing import problems

K = 3
PROBLEM = problems.conflicting(K, "encoders")
LIKE = PROBLEM.arrays()


@lru_cache
def combiner(name):
    return optax.with_extra_args_support(maker(name, next(iter(cases_of(name).values())).options)(K))


def extra_arguments(problem):
    """All that any method asks for."""
    arrays = problem.arrays()
    features = {m: arrays["batch"]["start"][m] for m in problem.modalities}
    return {
        "values": arrays["values"],
        "key": arrays["key"],
        "labels": arrays["labels"],
        "unimodal_logits": arrays["unimodal_logits"],
        "last_layer": problems.last_layers(problem.names, arrays, features),
        "validation_values": 1.1 * arrays["values"],
        "shapley_losses": arrays["values"][1:],
        "kappa": np.full(K - 1, 0.9, np.float32),
        "touching": problem.touching,
        "groups": problem.groups,
    }


STATIC = ("touching", "groups")


def step(tx, problem):
    """(gradients, state, params, the arrays among the extra arguments) -> (updates, state)."""
    static = {name: extra_arguments(problem)[name] for name in STATIC}
    return lambda rows, state, params, arrays: tx.update(rows, state, params, **arrays, **static)


def arrays_of(problem):
    return {name: value for name, value in extra_arguments(problem).items() if name not in STATIC}


# one of each kind in `make test`, all of them in `make soak`
OF_EACH_KIND = {"joint", "stch", "dwa", "mgda", "pcgrad", "nash_mtl", "graddrop", "rlw", "ogm_ge", "agm", "bogc"}
IN_TURN = [name if name in OF_EACH_KIND else pytest.param(name, marks=pytest.mark.soak) for name in METHODS]


@pytest.mark.parametrize("name", IN_TURN)
def test_in_front_of_optax_and_over_seeds(name):
    """MultiSteps, apply_if_finite and partition behind it, a rate in the state, two runs in one program; compiled once."""
    labels = {"encoder": "a", "fusion": "b", "head": "b"}
    tx = optax.chain(
        combiner(name),
        optax.MultiSteps(optax.adam(1e-2), 2).gradient_transformation(),
        optax.apply_if_finite(optax.inject_hyperparams(optax.sgd)(learning_rate=0.1), 3),
        optax.partition({"a": optax.sgd(0.1), "b": optax.adam(0.1)}, labels),
    )
    two = [problems.conflicting(K, "encoders", seed) for seed in (0, 1)]
    params = two[0].arrays()["params"]
    rows = [problem.arrays()["rows"] for problem in two]
    arrays = [arrays_of(problem) for problem in two]
    alone = jax.jit(step(tx, PROBLEM))
    together = jax.jit(jax.vmap(step(tx, PROBLEM), in_axes=(0, 0, None, 0)))
    stack = lambda trees: jax.tree.map(lambda *x: jnp.stack(x), *trees)  # noqa: E731
    states = [tx.init(params), tx.init(params)]
    many = stack(states)
    for _ in range(2):
        found, many = together(stack(rows), many, params, stack(arrays))
        for i in (0, 1):
            updates, states[i] = alone(rows[i], states[i], params, arrays[i])
            close = lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=2e-3, atol=1e-4)  # noqa: E731
            jax.tree.map(close, found, updates)
            jax.tree.map(close, many, states[i])  # after the first step MultiSteps holds the combiner's update
    assert alone._cache_size() == together._cache_size() == 1
    assert all(np.isfinite(u).all() for u in jax.tree.leaves(updates))
    assert any(np.abs(u).max() > 0 for u in jax.tree.leaves(updates))
    assert states[0][0].weights.shape[0] >= K


@pytest.mark.parametrize(("objective", "bad"), [(0, np.nan), (1, np.nan), (1, np.inf)])
def test_a_gradient_that_is_not_finite_is_seen_in_the_update(objective, bad):
    """Of an objective that steers, with finite losses: no method may hide it. The trainer stops on it."""
    rows = jax.tree.map(np.copy, LIKE["rows"])
    rows["encoder"]["audio"]["kernel"][objective, 0, 0] = bad
    for name in set(METHODS) - ({"joint"} if objective else set()):  # there only the fusion steers
        tx = combiner(name)
        updates, _ = jax.jit(step(tx, PROBLEM))(rows, tx.init(LIKE["params"]), LIKE["params"], arrays_of(PROBLEM))
        assert not np.isfinite(updates["encoder"]["audio"]["kernel"][0, 0]), name


def _without(tree, part):
    return {name: value for name, value in tree.items() if name != part}


NONSENSE = {
    "leading axes disagree": (
        {"rows": LIKE["rows"] | {"fusion": {"kernel": np.zeros((2, 3), np.float32)}}},
        "axes of grads",
    ),
    "single gradients": ({"rows": LIKE["params"]}, "single gradients"),
    "another structure": ({"rows": _without(LIKE["rows"], "head")}, "grads and params differ in structure"),
    "flags of another length": ({"active": np.ones(2, bool)}, r"active must have shape \(3,\)"),
}
FOR_SOME = {
    "losses of another length": ({"values": np.ones(4, np.float32)}, r"values must have shape \(3,\)"),
    "a part of touching": ({"touching": {"fusion": PROBLEM.touching["fusion"]}}, "touching must be a tree like params"),
    "a number for a key": ({"key": 3}, "key must be one key, as from jax.random.key"),
    "two keys": ({"key": jax.random.split(jax.random.key(0))}, r"key must be one key.* got key<fry>\[2\]"),
    "logits of another batch": ({"labels": np.zeros(2, np.int32)}, r"unimodal_logits must be \[B, C\]"),
    "no losses": ({"values": None}, "call update"),
    "no key": ({"key": None}, "call update"),
}
WEIGHS_BY_LOSSES = {"mimo", "stch", "uncertainty", "dwa", "famo", "gblend"}
ON_ROWS = {"mgda", "upgrad", "cagrad", "pcgrad", "imtl_g", "nash_mtl", "aligned_mtl", "mmpareto", "graddrop", "bogc"}
DRAWS = {"pcgrad", "graddrop", "rlw", "ogm_ge"}
USED_BY = {  # a method that does not use an argument takes no notice of it
    "losses of another length": WEIGHS_BY_LOSSES | {"rlw"},
    "a part of touching": ON_ROWS | {"joint"},
    "a number for a key": DRAWS,
    "two keys": DRAWS,
    "logits of another batch": {"ogm", "ogm_ge"},
    "no losses": WEIGHS_BY_LOSSES,
    "no key": DRAWS,
}


def given_nonsense(name, change):
    tx = combiner(name)
    arguments = extra_arguments(PROBLEM) | _without(change, "rows")
    jax.eval_shape(
        lambda: tx.update(change.get("rows", LIKE["rows"]), tx.init(LIKE["params"]), LIKE["params"], **arguments)
    )


@pytest.mark.parametrize("what", NONSENSE)
def test_nonsense_is_named_by_every_method(what):
    change, message = NONSENSE[what]
    for name in METHODS:
        with pytest.raises(ValueError, match=message):
            given_nonsense(name, change)


@pytest.mark.parametrize("what", USED_BY)
def test_nonsense_is_named_by_the_methods_that_use_it_and_by_no_other(what):
    change, message = FOR_SOME[what]
    for name in USED_BY[what]:
        with pytest.raises(ValueError, match=message):
            given_nonsense(name, change)
    for name in set(METHODS) - USED_BY[what]:
        given_nonsense(name, change)


def test_a_monitor_names_nonsense_of_its_own():
    tx = monitor(combiner("uniform"))
    with pytest.raises(ValueError, match=r"values must have shape \(3,\)"):
        tx.update(LIKE["rows"], tx.init(LIKE["params"]), LIKE["params"], values=np.ones(2))
