"""Moments of per-objective gradients, entry by entry, by three estimators behind one signature.

`laplace` asks the posterior of each head's last layer, `ema` the steps before this one, `microbatch` the parts of this
batch. An estimator is `init(setting, like) -> state` and `estimate(setting, gradients, state, given) -> (moments, state)`.

Source: BOGC-MML (Guo et al.) for the first; the formulas, and the other two, are our reading (docs/methods.md).
"""

from __future__ import annotations

import numbers
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax import Array

from mmjax.bayes.laplace import (
    Likelihood,
    Posterior,
    check_likelihood,
    check_prior_precision,
    deviations,
    empty_precision,
    posteriors,
    precision,
    prior_posterior,
    sampled_cotangents,
    warn_of_blocks,
)
from mmjax.conditions import any_run
from mmjax.reductions import row_moments

PyTree = Any
LastLayers = Mapping[str, tuple[Array, Array, Array]]
Mean = Literal["gradient", "posterior"]


class Moments(NamedTuple):
    """Mean [T, ...] and variance of a leaf's gradient, T objectives; the variance broadcasts against the mean."""

    mean: Array
    variance: Array


@dataclass(frozen=True)
class Gradients:
    """The gradients of K objectives, leaf by leaf; XLA computes only what an estimator asks for.

    objectives: for each leaf, the numbers (of K, ascending, static) of the T objectives that reach it.
    rows: for each leaf the gradients [T, ...], or with `examples` [T, B, ...], one an example.
    parts: n -> for each leaf [n, T, ...], the gradients of n equal parts of the global batch.
    pull_back: {objective: [S, B, D']} at the last layers' inputs -> for each leaf T arrays [S, B, ...], not put together:
    nothing in BOGC is larger; None: not at this level.
    last_layer: () -> the last layers, as in `Given`; ValueError where the losses do not tell them. None: not at this level.
    axis_name: the devices' axis that the examples are spread over.
    """

    objectives: tuple[tuple[int, ...], ...]
    rows: tuple[Array, ...]
    parts: Callable[[int], tuple[Array, ...]]
    examples: bool = False
    pull_back: Callable[[Mapping[str, Array]], tuple[tuple[Array, ...], ...]] | None = None
    last_layer: Callable[[], LastLayers] | None = None
    axis_name: str | None = None

    def over_examples(self, x: Array) -> Array:
        """Return the mean over examples of x [T, B, ...], [T, ...]; of gradients at parameters, x itself."""
        return self.over_devices(jnp.mean(x, axis=1)) if self.examples else x

    def over_devices(self, x: Array) -> Array:
        """Return the mean over devices."""
        return x if self.axis_name is None else jax.lax.pmean(x, self.axis_name)


@dataclass(frozen=True)
class Setting:
    """What is static. layers: {objective: (D', C)} of the last layers, in the objectives' order; num_examples: N."""

    layers: Mapping[str, tuple[int, int]] | None = None
    num_examples: int | None = None


@dataclass(frozen=True)
class Given:
    """What a step hands over besides gradients.

    active: bool [K]; count: int32, the step; last_layer: {objective: (inputs [B, D'], kernel [D', C], bias [C])}; loss:
    logits [B, C] -> scalar, this device's share, or {objective: such a function}, or else labels, whose mean cross-entropy
    is taken; key; refresh: bool scalar, whether to take the posterior anew now, or None; there: {objective: bool [B]}, the
    examples that an objective is about, for those that are not about all.
    """

    active: Array
    count: Array
    last_layer: LastLayers | None = None
    loss: Callable[[Array], Array] | Mapping[str, Callable[[Array], Array]] | None = None
    labels: Array | None = None
    key: Array | None = None
    refresh: Array | None = None
    there: Mapping[str, Array] = field(default_factory=dict)


@dataclass(frozen=True)
class Survey:
    """How a pass over the whole training set renews an estimator's state.

    start: setting -> carry; add: (carry, last layers, {objective: weight [B]}) -> carry; finish: (setting, carry, state) ->
    state.
    """

    start: Callable[[Setting], PyTree]
    add: Callable[[PyTree, LastLayers, Mapping[str, Array]], PyTree]
    finish: Callable[[Setting, PyTree, PyTree], PyTree]


class Estimator(NamedTuple):
    """A way of estimating moments.

    init: (setting, like) -> state; like: for each leaf an array [K, ...] without examples. estimate: (setting, gradients,
    state, given) -> (a `Moments` a leaf, state). levels: where it can be used. survey: a pass over the training set that
    it profits from. diagnostics: state -> {name: [K]}. needs_layers: whether it must know the last layers.
    """

    name: str
    init: Callable[[Setting, Sequence[Array]], PyTree]
    estimate: Callable[[Setting, Gradients, PyTree, Given], tuple[tuple[Moments, ...], PyTree]]
    levels: tuple[str, ...] = ("features", "parameters")
    survey: Survey | None = None
    diagnostics: Callable[[PyTree], dict[str, Array]] = lambda state: {}
    needs_layers: bool = False


# -- moving average ----------------------------------------------------------------------------------------------------


class EmaState(NamedTuple):
    """count: int32 [K], steps at which each objective was there; mean, variance: for each leaf [K, ...]."""

    count: Array  # type: ignore[assignment]  # hides tuple.count, as in Optax's own states
    mean: tuple[Array, ...]
    variance: tuple[Array, ...]


def ema_rate(decay: float | Array, count: Array) -> Array:
    """Return a_t = (1 − β)/(1 − βᵗ), the weight of the t-th observation in a bias-corrected moving average; 1 at t = 1."""
    t = jnp.maximum(count, 1).astype(jnp.float32)
    # exactly 1 at first: rounding would leave a variance that is noise, and evidence only compares variances
    return jnp.where(t > 1, (1 - decay) / (1 - decay**t), 1.0)


def ema(decay: float = 0.9) -> Estimator:
    """Estimate moments over steps: δ = g − m, m ← m + a_t δ, v ← (1 − a_t)(v + a_t δ²), a_t = (1−β)/(1−βᵗ).

    decay: β in (0, 1). The moments' mean is the current gradient, not m. At the features g is the batch mean. An objective
    that is absent keeps its moments. (E[g²] − E[g]² would in float32 be mostly rounding.)

    Raises:
      ValueError: decay outside (0, 1).
    """
    if not isinstance(decay, jax.core.Tracer) and not 0 < float(decay) < 1:
        raise ValueError(f"decay must be in (0, 1), got {decay}")

    def init(setting: Setting, like: Sequence[Array]) -> EmaState:
        del setting
        mean, variance = (
            tuple(jnp.zeros_like(leaf) for leaf in like) for _ in range(2)
        )  # a state holds no array twice
        return EmaState(jnp.zeros(like[0].shape[0], jnp.int32), mean, variance)

    def estimate(
        setting: Setting, gradients: Gradients, state: EmaState, given: Given
    ) -> tuple[tuple[Moments, ...], EmaState]:
        del setting
        count = state.count + given.active.astype(jnp.int32)
        rate = ema_rate(decay, count)
        moments, means, variances = [], [], []
        for ids, rows, mean, variance in zip(
            gradients.objectives, gradients.rows, state.mean, state.variance, strict=True
        ):
            g, m, v = gradients.over_examples(rows), take_rows(mean, ids), take_rows(variance, ids)
            a, here = (as_rows(take_rows(x, ids), g) for x in (rate, jnp.asarray(given.active)))
            delta = g - m
            m = jnp.where(here, m + a * delta, m)
            v = jnp.where(here, (1 - a) * (v + a * delta**2), v)
            means.append(put_rows(mean, ids, m.astype(mean.dtype)))
            variances.append(put_rows(variance, ids, v.astype(variance.dtype)))
            moments.append(Moments(rows, v[:, None] if gradients.examples else v))
        return tuple(moments), EmaState(count, tuple(means), tuple(variances))

    return Estimator("ema", init, estimate)


# -- parts of the batch ------------------------------------------------------------------------------------------------


def microbatch(parts: int = 4) -> Estimator:
    """Estimate moments over `parts` >= 2 equal, contiguous parts of the global batch: mean and sample variance (ddof 1).

    At the features the variance is that of the parts' means, and the mean the gradient of each example. It has no state.

    Raises:
      ValueError: fewer than two parts.
    """
    if not isinstance(parts, numbers.Integral) or parts < 2:
        raise ValueError(f"parts must be an integer >= 2 (a variance needs two micro-batches), got {parts!r}")

    def estimate(
        setting: Setting, gradients: Gradients, state: PyTree, given: Given
    ) -> tuple[tuple[Moments, ...], PyTree]:
        del setting, given
        moments = []
        for rows, each in zip(gradients.rows, gradients.parts(int(parts)), strict=True):
            mean, variance = row_moments(each)
            moments.append(Moments(rows, variance[:, None]) if gradients.examples else Moments(mean, variance))
        return tuple(moments), state

    return Estimator("microbatch", lambda setting, like: (), estimate)


# -- posterior of the last layer -----------------------------------------------------------------------------------------


class LaplaceState(NamedTuple):
    """posteriors: {objective: Posterior}; trace: float32 [K], the trace of each one's covariance, from the last draws."""

    posteriors: dict[str, Posterior]
    trace: Array


def laplace(
    *,
    samples: int = 64,
    prior_precision: float | Array | None = None,
    mean: Mean = "gradient",
    per_example: bool = True,
    likelihood: Likelihood = "softmax",
    refresh_every: int | None = None,
) -> Estimator:
    """Estimate moments at the features from the Laplace posterior of each head's last layer (see `mmjax.bayes.laplace`).

    Weights are drawn from the posterior centred at the current ones; each draw's gradient at the last layer's input is
    pulled back to the features, *then* moments are taken, for every example. Between two refreshes the factor is reused.

    samples: S >= 16 draws a step. prior_precision: τ > 0; None: a tenth of the number of training examples. mean:
    "gradient", the ordinary one, or "posterior", the samples'. per_example: False averages the variance over examples, so
    that an entry weighs the same in every example. refresh_every: take the posterior anew every so many steps, from the
    batch at hand times N/B; None: it comes from a pass over the training set (`survey`), or when `Given.refresh` says so.

    Raises:
      ValueError: an option out of range; at init no layers, or neither τ nor the number of examples; at the first step
        without `key`, a loss or last layers, or with layers of other sizes.
    """
    if not isinstance(samples, numbers.Integral) or samples < 16:
        raise ValueError(f"samples must be an integer >= 16, got {samples!r}")
    if prior_precision is not None:
        check_prior_precision(prior_precision)
    if mean not in get_args(Mean):
        raise ValueError(f"mean must be one of {', '.join(get_args(Mean))}; got {mean!r}")
    if refresh_every is not None and (not isinstance(refresh_every, numbers.Integral) or refresh_every < 1):
        raise ValueError(f"refresh_every must be None or an integer >= 1, got {refresh_every!r}")
    check_likelihood(likelihood)

    def prior(setting: Setting) -> float | Array:
        if prior_precision is not None:
            return prior_precision
        if setting.num_examples is None:
            raise ValueError("laplace needs num_examples, the size of the training set, or prior_precision")
        return setting.num_examples / 10

    def layers_of(setting: Setting) -> Mapping[str, tuple[int, int]]:
        if setting.layers is None:
            raise ValueError("laplace needs the sizes of the last layers: give layout, with its last_layer")
        return setting.layers

    def init(setting: Setting, like: Sequence[Array]) -> LaplaceState:
        del like
        layers = layers_of(setting)
        for name, sizes in layers.items():
            warn_of_blocks(name, *sizes, likelihood)
        before = {name: prior_posterior(*sizes, prior(setting), likelihood) for name, sizes in layers.items()}
        return LaplaceState(before, jnp.zeros(len(layers), jnp.float32))

    def start(setting: Setting) -> dict[str, Array]:
        return {name: empty_precision(*sizes, likelihood) for name, sizes in layers_of(setting).items()}

    def add(carry: dict[str, Array], last_layer: LastLayers, weight: Mapping[str, Array]) -> dict[str, Array]:
        return {name: total + precision(*last_layer[name], weight[name], likelihood) for name, total in carry.items()}

    def finish(setting: Setting, carry: dict[str, Array], state: LaplaceState) -> LaplaceState:
        return state._replace(posteriors=posteriors(carry, prior(setting)))

    def renewed(setting: Setting, gradients: Gradients, state: LaplaceState, given: Given) -> LaplaceState:
        """Take the posteriors anew from the batch at hand, where that is due."""
        if given.refresh is not None:
            due = given.refresh
        elif refresh_every is not None:
            due = given.count % refresh_every == 0
        else:
            return state
        if setting.num_examples is None:
            raise ValueError("laplace refreshed from mini-batches needs num_examples, the size of the training set")
        due = jnp.asarray(due, bool)
        examples, last_layer = setting.num_examples, given.last_layer
        assert last_layer is not None

        def anew() -> dict[str, Posterior]:
            totals = {}
            for name in layers_of(setting):
                inputs, kernel, bias = last_layer[name]
                # the training set lacks the modality as often as the batch does
                weight = given.there[name].astype(jnp.float32) if name in given.there else None
                total = precision(inputs, kernel, bias, weight, likelihood) * (examples / inputs.shape[0])
                totals[name] = gradients.over_devices(total)
            made = posteriors(totals, prior(setting))
            for k, name in enumerate(made):
                here = given.active[k]
                # Under vmap this may be another run's turn.
                kept = jax.tree.map(partial(jnp.where, here & due), made[name], state.posteriors[name])
                made[name] = jax.tree.map(lambda x, old: x.astype(old.dtype), kept, state.posteriors[name])
            return made

        return state._replace(posteriors=jax.lax.cond(any_run(due), anew, lambda: state.posteriors))

    def estimate(
        setting: Setting, gradients: Gradients, state: LaplaceState, given: Given
    ) -> tuple[tuple[Moments, ...], LaplaceState]:
        layers = layers_of(setting)
        if gradients.pull_back is None:
            raise ValueError("laplace estimates moments at the features: take level='features'")
        given = _checked(given, gradients, layers, likelihood)
        assert given.last_layer is not None
        assert given.loss is not None
        assert given.key is not None
        state = renewed(setting, gradients, state, given)
        cotangents, traces = {}, []
        for k, name in enumerate(layers):
            inputs, kernel, bias = given.last_layer[name]
            centre = jnp.concatenate([kernel.T, bias[:, None]], axis=1).astype(jnp.float32)
            draws = deviations(state.posteriors[name], jax.random.fold_in(given.key, k), int(samples))
            draws = draws.reshape(int(samples), *centre.shape)
            loss = given.loss[name] if isinstance(given.loss, Mapping) else given.loss
            cotangents[name] = sampled_cotangents(loss, inputs, centre + draws)
            traces.append(jnp.mean(jnp.sum(draws**2, axis=(1, 2))))
        moments = []
        for rows, each in zip(gradients.rows, gradients.pull_back(cotangents), strict=True):
            drawn = [row_moments(samples.astype(rows.dtype)) for samples in each]
            variance = jnp.stack([own.variance for own in drawn])
            variance = variance if per_example else gradients.over_examples(variance)[:, None]
            centre = rows if mean == "gradient" else jnp.stack([own.mean for own in drawn])
            moments.append(Moments(centre, variance))
        return tuple(moments), state._replace(trace=jnp.stack(traces))

    return Estimator(
        "laplace",
        init,
        estimate,
        levels=("features",),
        survey=Survey(start, add, finish),
        diagnostics=lambda state: {"posterior_trace": state.trace},
        needs_layers=True,
    )


def mean_cross_entropy(labels: Array, likelihood: Likelihood) -> Callable[[Array], Array]:
    """Return logits [B, C] -> scalar: the mean over examples (and labels, for the sigmoid) of the cross-entropy.

    labels: int [B] for the softmax, [B, C] of 0 and 1 for the sigmoid.
    """

    def loss(logits: Array) -> Array:
        if likelihood == "softmax":
            return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1))
        return -jnp.mean(jnp.where(labels > 0, jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)))

    return loss


def _checked(
    given: Given, gradients: Gradients, layers: Mapping[str, tuple[int, int]], likelihood: Likelihood
) -> Given:
    """Return `given` with the last layers and without gradients through it. Raises ValueError for what `laplace` lacks."""
    needs, last_layer = [], given.last_layer
    lacking = ["key"] if given.key is None else []
    lacking += ["labels (or logit_loss)"] if given.loss is None and given.labels is None else []
    if lacking:
        call = ", ".join(f"{name.split()[0]}=..." for name in lacking)
        needs.append(f"the extra argument{'s' * (len(lacking) > 1)} {' and '.join(lacking)}: tx.update(..., {call})")
    if last_layer is None:
        try:
            last_layer = None if gradients.last_layer is None else gradients.last_layer()
        except ValueError as error:  # told with whatever else is lacking
            needs.append(f"last_layer: {error}")
        else:
            needs += [] if last_layer else ["last_layer, {objective: (inputs, kernel, bias)}"]
    if needs:
        raise ValueError(f"laplace needs {'; and '.join(needs)}")
    given = replace(given, last_layer=last_layer)
    loss = given.loss
    if loss is None:
        assert given.labels is not None
        loss = mean_cross_entropy(given.labels, likelihood)
    assert given.last_layer is not None
    found = {name: tuple(kernel.shape) for name, (_, kernel, _) in given.last_layer.items()}
    if found != dict(layers):
        raise ValueError(f"last_layer has kernels of shapes {found}; the layout says {dict(layers)}")
    for name, (inputs, kernel, _) in given.last_layer.items():
        if inputs.ndim != 2 or inputs.shape[1] != kernel.shape[0]:
            raise ValueError(
                f"last_layer[{name!r}] has inputs {inputs.shape} for a kernel {kernel.shape}: [B, D'] expected"
            )
    return replace(given, loss=loss, last_layer=jax.lax.stop_gradient(dict(given.last_layer)))


def take_rows(x: Array, ids: Sequence[int], axis: int = 0) -> Array:
    """Return the rows `ids` (static) of x along an axis; slices, which XLA drops where the row is not needed."""
    if tuple(ids) == tuple(range(x.shape[axis])):
        return x
    return jnp.stack([jax.lax.index_in_dim(x, i, axis, keepdims=False) for i in ids], axis=axis)


def put_rows(x: Array, ids: Sequence[int], rows: Array) -> Array:
    """Return x [K, ...] with its rows `ids` (static) replaced."""
    if tuple(ids) == tuple(range(x.shape[0])):
        return rows
    place = {k: row for row, k in enumerate(ids)}
    return jnp.stack([rows[place[k]] if k in place else x[k] for k in range(x.shape[0])])


def as_rows(x: Array, rows: Array) -> Array:
    """Return x [T] shaped to scale the rows of an array [T, ...]."""
    return x.reshape(-1, *[1] * (rows.ndim - 1))
