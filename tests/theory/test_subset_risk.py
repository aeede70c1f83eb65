"""The sweep: what it measures, its file, its verdicts, and what bad input gets."""

from __future__ import annotations

import dataclasses
import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax import Config, ModelConfig, TrainConfig
from mmjax.data import Splits, Task, from_arrays, select
from mmjax.generative.config import MRBMConfig
from mmjax.generative.methods import PCDConfig
from mmjax.models import ConcatConfig, MLPConfig, build_model
from mmjax.models.fusion.late import LateConfig
from mmjax.optim import JointConfig
from mmjax.optim.bogc import BogcConfig
from mmjax.optim.gblend import GBlendConfig
from mmjax.theory import (
    Cell,
    LeastSquares,
    LinearHead,
    Overlap,
    StrongWeak,
    Sweep,
    Trained,
    choose_subsets,
    head_risk,
    overlap_risk,
    subset_risk_sweep,
    verdict,
)
from mmjax.theory.learner import samples
from mmjax.train.optimizer import AdamConfig, SGDConfig


@pytest.fixture(scope="module")
def splits() -> Splits:
    return StrongWeak(train_examples=1500, validation_examples=400, test_examples=400).load()


@pytest.fixture(scope="module")
def sweep(splits) -> Sweep:
    return subset_risk_sweep(LeastSquares(), splits, sizes=[300, 20], seeds=6)


def numbers(kind: str, n: int = 240) -> Splits:
    """Two modalities that each say something of the label, for any task."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, n, 3))
    score = a[:, 0] + b[:, 0]
    label = {
        "classification": (score > 0).astype(np.int32),
        "multilabel": np.stack([a[:, 0] > 0, score > 0], axis=1).astype(np.float32),
        "regression": score[:, None].astype(np.float32),
    }[kind]
    split = np.repeat([0, 1, 2], [n // 2, n // 4, n // 4])
    return from_arrays({"a": a, "b": b}, label, split=split, task=kind)


CONFIG = Config(
    data=StrongWeak(),
    model=ModelConfig(encoders={"a": MLPConfig(width=4, depth=1)}, fusion=ConcatConfig(hidden=())),
    method=JointConfig(),
    optimizer=AdamConfig(learning_rate=1e-2),
    train=TrainConfig(epochs=1, batch_size=16),
)


def trained(**options) -> Trained:
    return Trained(CONFIG, **{"min_steps": 30, "refit_steps": 20} | options)


# -- subsets and samples -----------------------------------------------------------------------------------------------


def test_subsets():
    assert len(choose_subsets(["all"], "abcd")) == 15
    assert choose_subsets(["leave-one-out"], "abc") == (
        ("a",), ("b",), ("c",), ("a", "b"), ("a", "c"), ("b", "c"), ("a", "b", "c"),
    )  # fmt: skip
    assert choose_subsets(["b+a", "a+b"], "ab") == (("a", "b"),)
    assert choose_subsets(["leave-one-out"], "a") == (("a",),)


@pytest.mark.parametrize(
    ("wanted", "message"),
    (
        (["audio+imag"], r"subset 'audio\+imag' names 'imag', which the data do not hold; did you mean 'image'\?"),
        (["al"], "did you mean 'all'"),
        (["audio+audio"], "names a modality twice"),
        ([], "subsets is empty"),
    ),
)
def test_subsets_refused(wanted, message):
    with pytest.raises(ValueError, match=message):
        choose_subsets(wanted, ["audio", "image"])


def test_samples_are_nested_and_the_seeds_own():
    small, large = samples([0, 1], 50, 10), samples([0, 1], 50, 50)
    np.testing.assert_array_equal(large[:, :10], small)
    assert not np.array_equal(small[0], small[1])
    assert all(len(set(row)) == 50 for row in large)


# -- least squares -----------------------------------------------------------------------------------------------------


def test_least_squares_is_numpys_seed_by_seed(splits):
    """Seeds side by side, against each alone and by NumPy: trained and refitted."""
    for n in (20, 300):  # fewer and more examples than inputs
        together = LeastSquares().predict(splits, ("strong", "weak"), n, [0, 1, 2])
        x, x_refit, x_test = (np.concatenate([p.inputs["strong"], p.inputs["weak"]], axis=1).astype(float)
                              for p in (splits.train, splits.validation, splits.test))  # fmt: skip
        for k, rows in enumerate(samples([0, 1, 2], len(splits.train), n)):
            y = splits.train.label[rows]
            w = np.linalg.lstsq(x[rows] - x[rows].mean(axis=0), y - y.mean())[0]
            own = (x_test - x[rows].mean(axis=0)) @ w + y.mean()
            np.testing.assert_allclose(together.trained[k], own, atol=1e-4)
            z, z_test = (np.concatenate([v @ w, np.ones((len(v), 1))], axis=1) for v in (x_refit, x_test))
            refitted = z_test @ np.linalg.lstsq(z, splits.validation.label)[0]
            np.testing.assert_allclose(together.refitted[k], refitted, atol=1e-4)


@pytest.mark.parametrize("kind", ("classification", "multilabel", "regression"))
def test_least_squares_for_every_task(kind):
    sweep = subset_risk_sweep(LeastSquares(), numbers(kind), sizes=[50], seeds=3)
    both, alone = sweep.cell(("a", "b"), 50), sweep.cell(("b",), 50)
    assert np.mean(both.risk) < np.mean(alone.risk)
    assert np.mean(both.score) > np.mean(alone.score)
    assert sweep.score == {"classification": "accuracy", "multilabel": "map", "regression": "r2"}[kind]


def test_overlap_reaches_the_population_risk_and_gamma():
    data = Overlap(w=0.5, dim=10, k=3, train_examples=4000, validation_examples=2000, test_examples=4000)
    sweep = subset_risk_sweep(LeastSquares(), data.load(), sizes=[2000], seeds=3, subsets=["x1", "x1+x2+x3"])
    assert np.mean(sweep.cell(("x1",), 2000).risk) == pytest.approx(overlap_risk(2, 0.5, 10), rel=0.05)
    assert np.mean(sweep.cell(("x1", "x2", "x3"), 2000).risk) < 1e-6
    found = sweep.compare(("x1", "x2", "x3"), ("x1",), 2000)
    assert found.gamma.mean == pytest.approx(-overlap_risk(2, 0.5, 10), rel=0.05)
    np.testing.assert_allclose(sweep.quality(("x1",), 2000, oracle_risk=0.0), overlap_risk(2, 0.5, 10), rtol=0.05)
    with pytest.warns(UserWarning, match=r"oracle_risk = 9 lies above a measured risk of"):
        sweep.quality(("x1",), 2000, oracle_risk=9.0)


# -- comparisons and verdicts ------------------------------------------------------------------------------------------


def test_the_reversal_shows_in_the_sweep(sweep):
    small, large = sweep.additions("weak")
    assert (small.n, small.larger, small.smaller) == (20, ("strong", "weak"), ("strong",))
    assert small.gap.low > 0
    assert small.gamma.low > 0
    assert large.gap.high < 0
    for point in (small, large):
        split = point.split
        assert split.gap == pytest.approx(split.gamma + split.head_gap_m - split.head_gap_n, abs=1e-12)
        assert split.gap == pytest.approx(point.gap.mean)
        assert split.gamma == pytest.approx(point.gamma.mean)
    said = verdict(sweep, "weak")
    assert said.startswith("Adding weak to strong lowers the test risk by 0.")
    assert "so most of it is a better representation" in said
    assert "it helps from n = 300 on, at n = 20 it raised the risk by" in said
    assert "it helps at every size run, from n = 20 on" in verdict(sweep, "strong")


def made_up(*gaps: tuple[float, float], gammas: tuple[float, ...] = ()) -> Sweep:
    """A sweep of a and a+b: a gap at each size, by its mean and its spread over 10 seeds."""
    spread = np.linspace(-1, 1, 10)
    cells = []
    for k, (mean, width) in enumerate(gaps):
        gamma = gammas[k] if gammas else mean
        for subset, risk, head in ((("a",), 2.0, 1.5), (("a", "b"), 2.0 + mean, 1.5 + gamma)):
            moving = (width if "b" in subset else 0.0) * spread
            cells.append(Cell(subset, 10 * (k + 1), tuple(risk + moving), (0.5,) * 10, tuple(head + moving / 10),
                              (risk,) * 5, (head,) * 5, 0.0))  # fmt: skip
    return Sweep(Task("classification", 2), ("a", "b"), "nats", tuple(cells))


@pytest.mark.parametrize(
    ("sweep", "said"),
    (
        (made_up((-0.5, 0.1)), "lowers the test risk by 0.500 ± 0.048 nats at n = 10; γ = −0.5000 ± 0.0048, so most"),
        (made_up((-0.5, 0.1), gammas=(-0.1,)), "so about 20% of it is a better representation, the rest a head"),
        (made_up((-0.5, 0.1), gammas=(0.0,)), "cannot be told from 0, so a better representation is not shown"),
        (made_up((-0.5, 0.1), gammas=(0.3,)), "the representation is worse, the gain is the head's alone"),
        (made_up((0.5, 0.1)), "does not help yet: it raises the test risk by 0.500 ± 0.048 nats at n = 10; γ = 0.5000"),
        (made_up((0.5, 0.1)), ": the representation is worse; no"),
        (made_up((0.5, 0.1), gammas=(-0.3,)), ": the representation is better, it is the head trained along with it"),
        (made_up((0.5, 0.1), gammas=(0.0,)), "cannot be told from 0; no"),
        (made_up((0.5, 0.1)), "no other size was run."),
        (made_up((0.5, 0.1), (0.01, 0.1)), "the sweep shows no size from which it does, and allows no est"),
        # -0.1 + 5/n at n = 10, 20, 30: below 0 from n = 50 on
        (made_up((0.4, 0.01), (0.15, 0.01), (0.2 / 3, 0.01)), "extrapolated by a + b/n, it would from about n = 50 on."),
        (made_up((0.4, 0.01), (0.3, 0.01), (0.2, 0.01)), "allows no estimate"),  # a line in n, not in 1/n
        (made_up((0.6, 0.01), (0.35, 0.01), (0.8 / 3, 0.01)), "allows no estimate"),  # 0.1 + 5/n stays above 0
        (made_up((-0.01, 0.1)), "Whether adding b to a helps cannot be told at n = 10: the test risk changes by −0.010"),
        (made_up((-0.5, 0.1), (0.5, 0.1)), "it lowered it at n = 10 only"),
        (made_up((-0.5, 0.1), (-0.01, 0.1), (-0.5, 0.1)), "from n = 30 on, at n = 20 that could not be told (−0.010"),
        (made_up((0.0, 0.1), (-0.4, 0.1), (-0.5, 0.1)), "it helps from n = 20 on"),
    ),
)  # fmt: skip
def test_a_verdict_claims_no_more_than_its_interval(sweep, said):
    assert said in verdict(sweep, "b")


def test_a_verdict_needs_the_pair(sweep):
    part = subset_risk_sweep(LeastSquares(), StrongWeak(train_examples=100, validation_examples=50,
                             test_examples=50).load(), sizes=[20], seeds=2, subsets=["strong", "weak"])  # fmt: skip
    assert verdict(part, "weak") == (
        "Whether adding weak helps cannot be told: no two subsets were run that differ by weak alone."
    )
    with pytest.raises(ValueError, match="modality 'week' is not of this sweep"):
        verdict(sweep, "week")


def test_evaluation_examples_count_in_the_interval():
    """Identical seeds leave the evaluation's own uncertainty."""
    cells = [
        Cell(s, 10, (r,) * 4, (0.5,) * 4, (r,) * 4, tuple(r + d * np.arange(-2, 3)), (r,) * 5, 0.0)
        for s, r, d in ((("a",), 2.0, 0.0), (("a", "b"), 1.9, 0.2))
    ]
    gap = Sweep(Task("regression", 1), ("a", "b"), "squared error", tuple(cells)).compare(("a", "b"), ("a",), 10).gap
    assert gap.half == pytest.approx(2.776 * 0.2 * np.sqrt(2.5) / np.sqrt(5), rel=1e-3)
    assert gap.high > 0


# -- trained learners --------------------------------------------------------------------------------------------------


def test_seeds_side_by_side_equal_those_one_after_another():
    data, seeds = numbers("classification"), [3, 4]
    together = trained().predict(data, ("a", "b"), 40, seeds)
    in_turn = trained(seed_axis="map").predict(data, ("a", "b"), 40, seeds)
    assert not np.allclose(together.trained[0], together.trained[1])
    np.testing.assert_allclose(together.trained, in_turn.trained, atol=2e-5)
    np.testing.assert_allclose(together.refitted, in_turn.refitted, atol=1e-3)
    alone = trained().predict(data, ("a", "b"), 40, seeds[1:])
    np.testing.assert_allclose(together.trained[1], alone.trained[0], atol=2e-5)


@pytest.mark.parametrize("kind", ("multilabel", "regression"))
def test_a_configuration_learns_every_task(kind):
    # enough examples that the probabilities of unseen ones are not extreme
    data, learner = numbers(kind, n=960), trained(min_steps=150 if kind == "regression" else 60)
    found = learner.predict(data, ("a", "b"), 400, [0, 1])
    trained_risks, refitted_risks = (
        np.asarray(learner.risks(data.test.task, jnp.asarray(x), jnp.asarray(data.test.label))).mean(axis=1)
        for x in found
    )
    chance = np.log(2) if kind == "multilabel" else np.mean(data.test.label**2)
    assert (trained_risks < 0.8 * chance).all()
    # refitting starts at the trained head, and keeps it unless another one does better on examples held back
    assert (refitted_risks < trained_risks + 0.1).all()
    if kind == "regression":  # the squared error has no half
        np.testing.assert_allclose(
            trained_risks, np.mean((found.trained - data.test.label) ** 2, axis=(1, 2)), rtol=1e-4
        )


def test_refitting_finds_a_better_head_where_there_is_one():
    """One step leaves the trained head hardly trained; the refitted one is fitted to the same encoder."""
    data = numbers("classification", 480)
    cell = subset_risk_sweep(trained(min_steps=1, refit_steps=300), data, sizes=[16], seeds=2, subsets=["a+b"]).cell(
        ("a", "b"), 16
    )
    assert np.mean(cell.head_risk) < np.mean(cell.risk) - 0.1


def test_an_absent_modality_is_zeros_in_its_place():
    """The class of heads is the same for every subset: what a smaller head can do, the whole one does on zeros."""
    config = ModelConfig(encoders={"a": MLPConfig(width=3)}, fusion=ConcatConfig(hidden=(5,)))
    small, whole = build_model(config, ("a",), 2), build_model(config, ("a", "b"), 2)
    x = {"a": jnp.ones((4, 3)), "b": jnp.ones((4, 3))}
    params = small.init(jax.random.key(0), {"a": x["a"]})["params"]
    full = whole.init(jax.random.key(1), x)["params"]
    kernel = (
        jnp.zeros_like(full["fusion"]["head"]["dense_0"]["kernel"])
        .at[:3]
        .set(params["fusion"]["head"]["dense_0"]["kernel"])
    )
    head = {**params["fusion"]["head"], "dense_0": {**params["fusion"]["head"]["dense_0"], "kernel": kernel}}
    z = small.apply({"params": params}, {"a": x["a"]}, method="encode")
    one = small.apply({"params": params}, z, method="decide").logits
    other = whole.apply(
        {"params": {**full, "fusion": {"head": head}}}, {**z, "b": jnp.zeros((4, 128))}, method="decide"
    ).logits
    np.testing.assert_allclose(one, other, rtol=1e-6)


def test_a_loss_that_is_not_finite_is_told():
    data = numbers("regression")
    hot = Trained(dataclasses.replace(CONFIG, optimizer=AdamConfig(learning_rate=1e30)), min_steps=30, refit_steps=10)
    with pytest.raises(ValueError, match=r"a, n = 20, seed 0: a loss or the gradient is not finite at step 1;"):
        hot.predict(data, ("a",), 20, [0, 1])


@pytest.mark.parametrize("optimizer", [SGDConfig(learning_rate=3e38), AdamConfig(learning_rate=1e25)])
def test_a_last_step_too_large_is_told(optimizer):
    data = numbers("regression")
    one = dataclasses.replace(CONFIG, optimizer=optimizer, train=dataclasses.replace(CONFIG.train, epochs=0.01))
    hot = Trained(one, min_steps=1, refit_steps=10)
    with pytest.raises(
        ValueError, match=r"a, n = 20, seed 0: the model, or what it says of the test split, is not finite"
    ):
        hot.predict(data, ("a",), 20, [0, 1])


# -- the file ----------------------------------------------------------------------------------------------------------


def test_a_sweep_goes_on_from_its_file(splits, tmp_path):
    path, ran = tmp_path / "deep" / "sweep.jsonl", []
    options = {"sizes": [20, 50], "seeds": 2, "path": path, "on_cell": lambda cell, done, total: ran.append(cell)}
    whole = subset_risk_sweep(LeastSquares(), splits, **options)
    lines = path.read_text().splitlines(keepends=True)
    assert len(lines) == 1 + 6
    path.write_text("".join(lines[:4]) + lines[4][:30])  # cut off in the middle of a line
    again = subset_risk_sweep(LeastSquares(), splits, **options)
    same = [dataclasses.replace(cell, seconds=0.0) for cell in whole.cells]
    assert [dataclasses.replace(cell, seconds=0.0) for cell in again.cells] == same
    assert again.cells[:3] == whole.cells[:3]  # not run again: the very seconds are there
    assert again.cells[3].seconds != whole.cells[3].seconds
    assert len(path.read_text().splitlines()) == 7
    more = subset_risk_sweep(LeastSquares(), splits, **options | {"sizes": [20, 50, 70]})
    assert more.sizes == (20, 50, 70)
    assert all(set(json.loads(line)) >= {"subset", "n", "risk"} for line in path.read_text().splitlines()[1:])


def test_a_file_of_another_sweep_is_refused(splits, tmp_path):
    options = {"sizes": [20], "subsets": ["strong"], "path": tmp_path / "sweep.jsonl"}
    subset_risk_sweep(LeastSquares(), splits, seeds=2, **options)
    before = (tmp_path / "sweep.jsonl").read_text()
    with pytest.raises(ValueError, match="holds another sweep: seeds is 2 there and 3 here"):
        subset_risk_sweep(LeastSquares(), splits, seeds=3, **options)
    other = StrongWeak(train_examples=1500, validation_examples=400, test_examples=400, seed=1).load()
    with pytest.raises(ValueError, match=r"holds another sweep: data.train.labels"):
        subset_risk_sweep(LeastSquares(), other, seeds=2, **options)
    inputs = {m: x[::-1].copy() for m, x in splits.train.inputs.items()}  # the same labels
    turned = Splits(dataclasses.replace(splits.train, inputs=inputs), splits.validation, splits.test)
    with pytest.raises(ValueError, match=r"holds another sweep: data.train.inputs.strong"):
        subset_risk_sweep(LeastSquares(), turned, seeds=2, **options)
    with pytest.raises(ValueError, match="holds another sweep: learner"):
        subset_risk_sweep(trained(), splits, seeds=2, **options)
    assert (tmp_path / "sweep.jsonl").read_text() == before


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    (
        ({"subsets": ["strong+week"]}, r"names 'week', which the data do not hold; did you mean 'weak'\?"),
        ({"sizes": [20, 2000]}, "sizes holds 2000, but the training split has 1500 examples"),
        ({"sizes": [0]}, "sizes must hold sample sizes of at least 1"),
        ({"sizes": []}, "sizes must hold sample sizes of at least 1"),
        ({"seeds": 1}, "seeds must be at least 2, for a band needs a spread over seeds; got 1"),
        ({"seeds": 0, "band": False}, "seeds must be at least 1; got 0"),
        ({"seeds": 2.5}, "seeds must hold integers, got 2.5"),
        ({"sizes": 50}, "sizes must be a sequence of integers, got 50"),
        ({"sizes": [10.5]}, "sizes must hold integers, got 10.5"),
        ({"sizes": ["10"]}, "sizes must hold integers, got '10'"),
        ({"subsets": "all"}, r"subsets must be a sequence of names, such as \['all'\]"),
        ({"subsets": [("strong", "weak")]}, r"subsets must hold names, such as 'audio\+image'; got \('strong'"),
    ),
)
def test_a_sweep_refuses(splits, options, message):
    with pytest.raises(ValueError, match=message):
        subset_risk_sweep(LeastSquares(), splits, **{"sizes": [20], "seeds": 2} | options)


def test_without_a_band_one_seed_will_do(splits):
    sweep = subset_risk_sweep(LeastSquares(), splits, sizes=[20], seeds=1, band=False, subsets=["strong"])
    assert len(sweep.cells[0].risk) == 1
    with pytest.raises(ValueError, match="at least 2 seeds, got 1"):
        sweep.cells[0].risk_interval  # noqa: B018


@pytest.mark.parametrize(("name", "value"), (("min_steps", 0), ("refit_steps", 0), ("seed_axis", "both")))
def test_a_learner_refuses(name, value):
    with pytest.raises(ValueError, match=f"{name} must be"):
        trained(**{name: value})


def test_what_a_study_cannot_train_is_refused():
    data = numbers("classification")

    def with_(**sections) -> Trained:
        return Trained(dataclasses.replace(CONFIG, **sections))

    with pytest.raises(ValueError, match=r"config.train.skip_nonfinite is not for a study"):
        with_(train=TrainConfig(skip_nonfinite=1))
    with pytest.raises(ValueError, match=r"config.method 'gblend' learns from losses on the validation split"):
        with_(method=GBlendConfig())
    with pytest.raises(ValueError, match=r"model is a MRBMConfig; what is asked for needs a MultiModal"):
        with_(model=MRBMConfig(), method=PCDConfig()).predict(data, ("a", "b"), 16, [0, 1])
    with pytest.raises(ValueError, match=r"model.fusion has no parameters of its own"):
        with_(model=ModelConfig(fusion=LateConfig())).predict(data, ("a",), 16, [0, 1])
    with pytest.raises(ValueError, match=r"config.method 'bogc' passes over the whole training split"):
        with_(method=BogcConfig()).predict(data, ("a", "b"), 16, [0, 1])


def test_overlapping_splits(splits):
    with pytest.raises(ValueError, match="the validation and the test split share 400 examples of 400"):
        subset_risk_sweep(LeastSquares(), Splits(splits.train, splits.test, splits.test), sizes=[20], seeds=2)

    def joined(first, second):
        inputs = {m: np.concatenate([first.inputs[m], second.inputs[m]]) for m in first.modalities}
        return dataclasses.replace(first, inputs=inputs, label=np.concatenate([first.label, second.label]))

    few = dataclasses.replace(
        splits.test, inputs={m: x[:4] for m, x in splits.test.inputs.items()}, label=splits.test.label[:4]
    )
    some = Splits(joined(splits.train, few), splits.validation, splits.test)
    with pytest.warns(
        UserWarning, match=r"the training and the test split share 4 examples of 400 \(the first: example 0"
    ):
        subset_risk_sweep(LeastSquares(), some, sizes=[20], seeds=2, subsets=["strong"])
    # repeated examples do not hide it, nor does another type
    twice = joined(splits.test, splits.test)
    with pytest.raises(ValueError, match="the validation and the test split share 800 examples of 800"):
        subset_risk_sweep(LeastSquares(), Splits(splits.train, twice, twice), sizes=[20], seeds=2)
    wide = {m: np.asarray(x, np.float64) for m, x in splits.test.inputs.items()}
    with pytest.raises(ValueError, match="the validation and the test split share 400 examples of 400"):
        subset_risk_sweep(LeastSquares(), Splits(splits.train, dataclasses.replace(splits.test, inputs=wide), splits.test),
                          sizes=[20], seeds=2)  # fmt: skip
    # four values only: examples recur by chance, within a split too
    coin = np.random.default_rng(0).integers(0, 2, (120, 2))
    discrete = from_arrays({"a": coin[:, :1], "b": coin[:, 1:]}, coin.sum(axis=1), split=np.arange(120) % 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        subset_risk_sweep(LeastSquares(), discrete, sizes=[10], seeds=2, subsets=["a"])


def test_a_test_split_of_one_example_has_no_interval(splits):
    one = dataclasses.replace(
        splits.test, inputs={m: x[:1] for m, x in splits.test.inputs.items()}, label=splits.test.label[:1]
    )
    with pytest.raises(ValueError, match="the test split has 1 example; an interval needs at least 2"):
        subset_risk_sweep(LeastSquares(), Splits(splits.train, splits.validation, one), sizes=[20], seeds=2)


def test_a_cell_s_head_risk_is_that_of_the_linear_head(splits):
    """The learner refits its heads by code of its own, for all seeds at once: the same as `head_risk`."""
    found = subset_risk_sweep(LeastSquares(), splits, sizes=[60], seeds=1, subsets=["strong"], band=False)
    order = samples([0], len(splits.train), 60)[0]
    x, y = (np.asarray(array, np.float64)[order] for array in (splits.train.inputs["strong"], splits.train.label))
    slope = np.linalg.lstsq(x - x.mean(axis=0), y - y.mean(axis=0))[0]
    z = np.concatenate(
        [np.asarray(part.inputs["strong"], np.float64) @ slope for part in (splits.validation, splits.test)]
    )
    label = np.concatenate([splits.validation.label, splits.test.label])
    fit, evaluation = np.split(np.arange(len(z)), [len(splits.validation)])
    measured = head_risk(LinearHead(splits.train.task), z, label, fit=fit, evaluation=evaluation)
    assert found.cell(("strong",), 60).head_risk[0] == pytest.approx(measured, rel=1e-5)


def test_samples_of_most_of_the_pool_are_warned_of(splits):
    with pytest.warns(UserWarning, match="samples of 800 are more than half of the 1500 training examples"):
        subset_risk_sweep(LeastSquares(), select(splits, ["strong"]), sizes=[20, 800], seeds=2)
