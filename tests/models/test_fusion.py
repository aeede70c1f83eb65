"""Every fusion head: known answers, absent modalities, padding, what its gradients reach, mistakes."""

from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.bayes import combine_opinions, expected_probability, opinion
from mmjax.data import Task
from mmjax.evaluation.metrics import late_fusion, probabilities
from mmjax.models import FUSIONS, Head, MultiModal
from mmjax.models.fusion.inputs import FillAbsent, check_present, prepare

OPTIONS = {
    "concat": {"hidden": (6,)},
    "sum": {"width": 6},
    "gated": {"width": 6},
    "film": {"width": 6},
    "multiplicative": {"width": 5},
    "tensor": {"project": 3, "hidden": (6,)},
    "low_rank_tensor": {"rank": 3, "width": 5},
    "cross_attention": {"width": 8, "heads": 2},
    "bottleneck": {"width": 8, "heads": 2, "bottlenecks": 2},
    "late": {},
    "product": {},
    "uncertainty_weighted": {},
    "evidential": {},
}
BILATERAL = ("film", "multiplicative")
TWO = (*BILATERAL, "bottleneck")  # the bottleneck takes any number; two compile faster
LATE = ("late", "product", "uncertainty_weighted", "evidential")
B, C = 5, 3


class Pass(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        return x


def features_for(kind, seed=0):
    """Two vectors and, between them, four tokens of which some are padding; the first two for the heads in TWO."""
    keys = jax.random.split(jax.random.key(seed), 3)
    tokens = jax.random.normal(keys[1], (B, 4, 4))
    tokens *= (jnp.arange(4) < jnp.array([4, 2, 3, 1, 4])[:, None])[..., None]
    made = {"a": jax.random.normal(keys[0], (B, 3)), "b": tokens, "c": jax.random.normal(keys[2], (B, 2))}
    return {m: made[m] for m in ("a", "b")} if kind in TWO else made


def model_for(kind, names, **options):
    config = FUSIONS[kind](**(OPTIONS[kind] | options))
    if hasattr(config, "validate"):
        config.validate()
    return MultiModal(
        encoders={m: Pass() for m in names},
        fusion=config.build(C, dtype=jnp.float32),
        heads={m: Head(C, (16,)) for m in names},
    )


class Case:
    """A head in a model without encoders, with random parameters; two programs: logits, and gradients at a mask."""

    def __init__(self, kind, features=None, **options):
        self.features = features_for(kind) if features is None else features
        self.model = model_for(kind, self.features, **options)
        shapes = jax.eval_shape(self.model.init, jax.random.key(1), self.features)
        rng = np.random.default_rng(0)
        # drawn here: compiling every initialiser would take longer than all that is tested
        self.variables = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(x.dtype) / x.shape[0] ** 0.5, shapes)
        self._decide = jax.jit(partial(self.model.apply, method="decide"))
        quick = {"xla_backend_optimization_level": 0}
        self._gradients = jax.jit(jax.grad(self._loss, argnums=(0, 1)), compiler_options=quick)
        self.out = self.decide()
        self.params = self.variables["params"].get("fusion", {})

    def decide(self, features=None, present=None):
        return self._decide(self.variables, self.features if features is None else features, present=present)

    def _loss(self, params, features, present):
        out = self.model.apply({**self.variables, "params": params}, features, False, present, method="decide")
        return jnp.sum(jnp.sin(out.logits))

    def gradients(self, features, present):
        """Of a function of the fused logits, for parameters and features."""
        return self._gradients(self.variables["params"], features, present)

    def class_of(self, modality, params):
        """How what a modality's class token says changes with the features of a; `params` replaces some of the head's."""

        @jax.jit
        def token(params, a):
            seen = self.model.fusion.apply(
                {"params": params},
                self.features | {"a": a},
                False,
                capture_intermediates=True,
                mutable=["intermediates"],
            )[1]
            return seen["intermediates"][f"norm_{modality}"]["__call__"][0]

        before, after = (token(self.params | params, self.features["a"] + shift) for shift in (0, 1))
        return np.asarray(after - before)

    @property
    def vectors(self):
        return {m: np.asarray(mean_of_real(z), np.float64) for m, z in self.features.items()}


def mean_of_real(z):
    if z.ndim == 2:
        return z
    real = np.any(np.asarray(z) != 0, -1)
    return np.stack([row[keep].mean(0) for row, keep in zip(np.asarray(z, np.float64), real, strict=True)])


@pytest.fixture(scope="module")
def case():
    made: dict[str, Case] = {}

    def get(kind):
        if kind not in made:
            made[kind] = Case(kind)
        return made[kind]

    return get


def test_options_cover_every_fusion():
    assert set(OPTIONS) == set(FUSIONS) and all(cls().name == kind for kind, cls in FUSIONS.items())


@pytest.mark.parametrize("kind", FUSIONS)
def test_absent_modalities(case, kind):
    """All present is bit for bit no mask; an absent one is ignored whatever it holds; rows do not mix."""
    c = case(kind)
    m = len(c.features)
    everything = jnp.ones((B, m), bool)
    np.testing.assert_array_equal(c.decide(present=everything).logits, c.out.logits)
    present = jnp.stack([jnp.roll(jnp.arange(m) > 0, i) for i in range(B)]).at[0].set(True)
    got = c.decide(present=present).logits
    names = sorted(c.features)

    def poisoned(value):
        return {
            n: jnp.where(present[:, i].reshape(-1, *[1] * (c.features[n].ndim - 1)), c.features[n], value)
            for i, n in enumerate(names)
        }

    np.testing.assert_array_equal(c.decide(poisoned(jnp.nan), present).logits, got)
    assert np.isfinite(got).all()
    np.testing.assert_array_equal(got[0], c.out.logits[0])
    assert (np.abs(got[1:] - c.out.logits[1:]).max(axis=1) > 1e-4).all()  # what is missing makes a difference
    gradient = c.gradients(poisoned(jnp.nan), present)[1]
    for i, n in enumerate(names):
        size = np.abs(np.asarray(gradient[n])).reshape(B, -1).max(axis=1)
        np.testing.assert_array_equal(size > 0, present[:, i])
    order = jnp.array([3, 0, 4, 2, 1])
    turned = c.decide({n: z[order] for n, z in c.features.items()}, present[order]).logits
    np.testing.assert_allclose(turned, got[order], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", FUSIONS)
def test_every_parameter_is_trained_and_the_last_layer_is_the_last(case, kind):
    c = case(kind)
    gradient = c.gradients(c.features, jnp.ones((B, len(c.features)), bool))[0]
    heads = {} if kind not in LATE else {n: g for n, g in gradient.items() if n.startswith("heads_")}
    for path, g in jax.tree_util.tree_leaves_with_path(gradient.get("fusion", heads)):
        # the key's bias shifts all scores of a query alike; with one layer below it a last bottleneck reaches nothing
        assert np.abs(g).max() > (0 if "['key']['bias']" not in jax.tree_util.keystr(path) else -1), path
    last = c.out.last_layer.get("fusion")
    assert (last is None) == (kind == "evidential")
    if last is not None:
        np.testing.assert_allclose(last.inputs @ last.kernel + last.bias, c.out.logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["cross_attention", "bottleneck"])
def test_padding_tokens_are_not_seen(case, kind):
    """A row whose last tokens are padding gives what the shorter sequence gives."""
    c = case(kind)
    row = {m: z[1:2] for m, z in c.features.items()}  # two real tokens
    short = {**row, "b": row["b"][:, :2]}
    np.testing.assert_allclose(c.decide(short).logits, c.out.logits[1:2], rtol=1e-4, atol=1e-6)


def dense(x, p):
    return x @ np.asarray(p["kernel"], np.float64) + np.asarray(p.get("bias", 0.0), np.float64)


def relu(x):
    return np.maximum(x, 0)


def close(logits, expected):
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


def test_concat_sum_and_gated_by_their_formulas(case):
    c = case("concat")
    joined = np.concatenate(list(c.vectors.values()), axis=1)
    close(c.out.logits, dense(relu(dense(joined, c.params["head"]["dense_0"])), c.params["head"]["last"]))
    c = case("sum")
    total = sum(dense(z, c.params[f"project_{m}"]) for m, z in c.vectors.items())
    close(c.out.logits, dense(relu(total), c.params["head"]["last"]))
    c = case("gated")
    logits = dense(np.concatenate(list(c.vectors.values()), axis=1), c.params["gate"]).reshape(B, 3, 6)
    gates = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    mapped = [np.tanh(dense(z, c.params[f"project_{m}"])) for m, z in c.vectors.items()]
    fused = sum(gates[:, i] * x for i, x in enumerate(mapped))
    close(c.out.logits, dense(fused, c.params["head"]["last"]))


def test_a_partial_sum_keeps_its_scale(case):
    c = case("sum")
    part = c.decide(present=jnp.array([[True, False, True]] * B))
    total = sum(dense(c.vectors[m], c.params[f"project_{m}"]) for m in "ac") * 3 / 2
    close(part.logits, dense(relu(total), c.params["head"]["last"]))


def test_film_and_multiplicative_by_their_formulas(case):
    c = case("film")
    gamma, beta = np.split(dense(c.vectors["b"], c.params["modulation"]), 2, axis=1)
    close(
        c.out.logits,
        dense(relu((1 + gamma) * dense(c.vectors["a"], c.params["project"]) + beta), c.params["head"]["last"]),
    )
    c = case("multiplicative")
    x, z = c.vectors["a"], c.vectors["b"]
    tensor = np.asarray(c.params["product"]["kernel"], np.float64).reshape(3, 4, 5)
    product = np.einsum("bi,ijk,bj->bk", x, tensor, z)
    linear = dense(x, c.params["linear_a"]) + dense(z, c.params["linear_b"])
    close(c.out.logits, dense(relu(product + linear), c.params["head"]["last"]))


def only(c, modality):
    return jnp.zeros((B, len(c.features)), bool).at[:, sorted(c.features).index(modality)].set(True)


@pytest.mark.parametrize("kind", ["cross_attention", "bottleneck", *LATE])
def test_with_one_modality_left_the_others_might_not_exist(case, kind):
    c = case(kind)
    alone = {"a": c.features["a"]}
    model = MultiModal({"a": Pass()}, c.model.fusion, {"a": Head(C, (16,))})
    expected = jax.jit(partial(model.apply, method="decide"))(c.variables, alone)
    np.testing.assert_allclose(c.decide(present=only(c, "a")).logits, expected.logits, rtol=1e-4, atol=1e-5)


def test_what_stands_for_the_absent_by_the_formulas(case):
    c = case("gated")
    kept = np.tanh(dense(c.vectors["a"], c.params["project_a"]))  # its gate is 1
    close(c.decide(present=only(c, "a")).logits, dense(kept, c.params["head"]["last"]))
    c = case("film")
    last = c.params["head"]["last"]
    close(c.decide(present=only(c, "a")).logits, dense(relu(dense(c.vectors["a"], c.params["project"])), last))
    beta = np.split(dense(c.vectors["b"], c.params["modulation"]), 2, axis=1)[1]
    close(c.decide(present=only(c, "b")).logits, dense(relu(beta), last))
    c = case("tensor")
    units = {m: np.zeros((B, 3)) for m in c.vectors} | {"b": relu(dense(c.vectors["b"], c.params["project_b"]))}
    hidden = relu(dense(outer(units.values()), c.params["head"]["dense_0"]))
    close(c.decide(present=only(c, "b")).logits, dense(hidden, c.params["head"]["last"]))


def test_film_conditioning_is_chosen_by_name():
    features = features_for("film")
    shapes = {
        who: jax.eval_shape(model_for("film", features, conditioning=who).init, jax.random.key(0), features)
        for who in (None, "a", "b")
    }
    sizes = {who: s["params"]["fusion"]["modulation"]["kernel"].shape for who, s in shapes.items()}
    assert sizes == {None: (4, 12), "b": (4, 12), "a": (3, 12)}


def outer(vectors):
    product = np.ones((B, 1))
    for z in vectors:
        product = np.einsum("bi,bj->bij", product, np.c_[z, np.ones(B)]).reshape(B, -1)
    return product


def test_tensor_fusion_by_its_formula(case):
    c = case("tensor")
    product = outer(relu(dense(z, c.params[f"project_{m}"])) for m, z in c.vectors.items())
    close(c.out.logits, dense(relu(dense(product, c.params["head"]["dense_0"])), c.params["head"]["last"]))


def test_low_rank_tensor_fusion_is_a_tensor_layer_of_that_rank(case):
    c = case("low_rank_tensor")
    r, k = 3, 5
    full = np.zeros((4 * 5 * 3, k))
    for i in range(r):
        factors = []
        for m in c.features:
            p = c.params[f"factor_{m}"]
            whole = np.concatenate([p["kernel"], np.asarray(p["bias"])[None]]).astype(np.float64)
            factors.append(whole.reshape(-1, r, k)[:, i])
        term = np.einsum("xk,yk,zk->xyzk", *factors).reshape(-1, k)
        full += float(c.params["rank_weights"][i]) * term
    fused = relu(outer(c.vectors.values()) @ full + np.asarray(c.params["bias"]))
    close(c.out.logits, dense(fused, c.params["head"]["last"]))


def test_published_size_of_low_rank_tensor_fusion():
    module = FUSIONS["low_rank_tensor"]().build(10, dtype=jnp.float32)
    features = {"image": jnp.zeros((1, 48)), "audio": jnp.zeros((1, 192))}
    params = jax.eval_shape(partial(module.init, train=False), jax.random.key(0), features)["params"]
    assert sum(p.size for p in jax.tree.leaves(params)) == 40 * 120 * (49 + 193) + 40 + 120 + 120 * 10 + 10


def test_low_rank_tensor_fusion_costs_what_its_formula_says():
    batch, sizes, rank, width = 64, (48, 192), 40, 120
    module = FUSIONS["low_rank_tensor"]().build(C, dtype=jnp.float32)
    features = {m: jax.ShapeDtypeStruct((batch, d), jnp.float32) for m, d in zip("ab", sizes, strict=True)}
    variables = jax.eval_shape(partial(module.init, train=False), jax.random.key(0), features)
    forward = jax.jit(lambda v, z: module.apply(v, z, False).logits).lower(variables, features).compile()
    terms = batch * rank * width
    formula = 2 * terms * sum(d + 1 for d in sizes) + terms + 2 * terms + 2 * batch * width * C
    assert forward.cost_analysis()["flops"] <= 1.3 * formula


def test_bottlenecks_are_the_only_way_between_modalities(case):
    """Where a's first block adds nothing, its bottleneck says nothing of a, and the others' class tokens hear nothing."""
    c = case("bottleneck")
    assert np.abs(c.class_of("b", {})).max() > 1e-4
    silent = {"block_0_a": jax.tree.map(np.zeros_like, c.params["block_0_a"])}
    assert np.abs(c.class_of("b", silent)).max() == 0


def test_late_fusion_is_the_mean_of_log_probabilities(case):
    c = case("late")
    task = Task("classification", C)
    expected = probabilities(task, late_fusion(task, c.out.by_objective))
    np.testing.assert_allclose(probabilities(task, c.out.logits), expected, rtol=1e-5)


def test_uncertainty_weighted_and_evidential_by_their_formulas(case):
    c = case("uncertainty_weighted")
    logits = {m: np.asarray(z, np.float64) for m, z in c.out.unimodal_logits.items()}
    close(c.out.logits, sum(np.log(np.exp(z).sum(1, keepdims=True)) / 10 * z for z in logits.values()))
    c = case("evidential")
    opinions = [opinion(jax.nn.softplus(c.out.unimodal_logits[m])) for m in sorted(c.features)]
    np.testing.assert_allclose(
        jax.nn.softmax(c.out.logits), expected_probability(combine_opinions(opinions)), rtol=1e-5
    )


def test_the_weights_of_uncertainty_carry_no_gradient(case):
    c = case("uncertainty_weighted")
    decisions = {"a": c.model.heads["a"].apply({"params": c.variables["params"]["heads_a"]}, c.features["a"], False)}

    def fused(z):
        return jnp.sum(c.model.fusion.apply({}, {"a": decisions["a"]._replace(logits=z)}, False).logits)

    z = decisions["a"].logits
    close(jax.grad(fused)(z), np.broadcast_to(jax.nn.logsumexp(z, axis=1, keepdims=True) / 10, z.shape))


@pytest.mark.parametrize("kind", LATE)
def test_heads_of_a_late_fusion_are_no_probes(case, kind):
    """Under probe_heads the fusion loss still reaches the heads and the features, the uni-modal losses nothing."""
    c = case(kind)
    model = c.model.clone(probe_heads=True)

    def gradients(name):
        def loss(params, z):
            out = model.apply({"params": params}, z, method="decide")
            return jnp.sum(jnp.sin(out.by_objective[name]))

        return jax.jit(jax.grad(loss, argnums=(0, 1)))(c.variables["params"], c.features)

    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(gradients("fusion")))
    assert all(np.abs(g).max() == 0 for g in jax.tree.leaves(gradients("a")))


def test_a_learned_token_or_the_training_mean_stands_in_for_the_absent():
    features = {"a": jnp.array([[1.0, 2.0], [3.0, 6.0], [9.0, 9.0]]), "b": jnp.ones((3, 1))}
    present = jnp.array([[True, True], [True, True], [False, True]])
    masked = {"a": jnp.where(present[:, :1], features["a"], 0), "b": features["b"]}
    token = FillAbsent("token")
    variables = token.init(jax.random.key(0), masked, present, True)
    filled = token.apply(variables, masked, present, True)
    np.testing.assert_array_equal(filled["a"][2], variables["params"]["absent_a"])
    np.testing.assert_array_equal(filled["a"][:2], features["a"][:2])
    mean = FillAbsent("mean")
    variables = mean.init(jax.random.key(0), masked, present, True)
    filled, after = mean.apply(variables, masked, present, True, mutable=["batch_stats"])
    np.testing.assert_allclose(after["batch_stats"]["mean_a"], 0.1 * np.array([2.0, 4.0]), rtol=1e-6)
    np.testing.assert_array_equal(filled["a"][2], after["batch_stats"]["mean_a"])
    nobody = mean.apply(after, masked, present.at[:, 0].set(False), True, mutable=["batch_stats"])[1]
    np.testing.assert_array_equal(nobody["batch_stats"]["mean_a"], after["batch_stats"]["mean_a"])
    split = jax.pmap(
        lambda z, p: FillAbsent("mean", "d").apply(variables, z, p, True, mutable=["batch_stats"])[1],
        axis_name="d",
        devices=jax.devices()[:3],
    )(jax.tree.map(lambda x: x[:, None], masked), present[:, None])
    np.testing.assert_allclose(split["batch_stats"]["mean_a"][1], after["batch_stats"]["mean_a"], rtol=1e-6)


@pytest.mark.parametrize("kind", ["concat", "multiplicative", "tensor", "low_rank_tensor"])
def test_stand_ins_reach_the_heads_that_need_one(kind):
    features = features_for(kind)
    model = model_for(kind, features, absent="token")
    shapes = jax.eval_shape(model.init, jax.random.key(0), features)
    assert shapes["params"]["fusion"]["fill"]["absent_a"].shape == (3,)
    model = model_for(kind, features, absent="mean")
    assert "batch_stats" in jax.eval_shape(model.init, jax.random.key(0), features)


def test_mistakes_are_named():
    def init(kind, features, present=None):
        model = model_for(kind, features)
        return jax.eval_shape(partial(model.init, present=present), jax.random.key(0), features)

    three = features_for("concat")
    for kind in BILATERAL:
        with pytest.raises(ValueError, match=r"exactly 2 modalities, got 3: \['a', 'b', 'c'\]"):
            init(kind, three)
    with pytest.raises(ValueError, match=r"features of 'c' must be \[5, D\] or \[5, T, D\], got \(5, 2, 2, 1\)"):
        prepare(three | {"c": jnp.ones((5, 2, 2, 1))}, None)
    with pytest.raises(ValueError, match=r"present must be bool \[5, 3\].*got bool \(5, 2\)"):
        init("sum", three, jnp.ones((5, 2), bool))
    with pytest.raises(ValueError, match="example 1 without any modality"):
        check_present(jnp.array([[True, False], [False, False]]), 2, 2)
    with pytest.raises(ValueError, match="conditioning must be one of"):
        features = features_for("film")
        jax.eval_shape(model_for("film", features, conditioning="z").init, jax.random.key(0), features)
    with pytest.raises(ValueError, match="low_rank_tensor"):
        model = model_for("tensor", three, project=200)
        jax.eval_shape(model.init, jax.random.key(0), three)
    for kind, options, what in (
        ("sum", {"width": 0}, "width"),
        ("gated", {"hidden": (0,)}, "hidden"),
        ("concat", {"absent": "nothing"}, "absent"),
        ("tensor", {"project": -1}, "project"),
        ("low_rank_tensor", {"rank": 0}, "rank"),
        ("cross_attention", {"width": 10, "heads": 4}, "heads"),
        ("bottleneck", {"layers": 1}, "layers"),
        ("bottleneck", {"dropout": 1.0}, "dropout"),
    ):
        with pytest.raises(ValueError, match=f"fusion option {what} must be"):
            FUSIONS[kind](**options).validate()
