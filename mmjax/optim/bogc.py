"""BOGC: each entry of each objective's gradient weighs by how certain it is (Bayesian-oriented gradient calibration)."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax
from jax import Array

from mmjax.bayes import moments as bayes_moments
from mmjax.bayes.evidence import Normalizer, calibrate, precision_evidence
from mmjax.bayes.moments import Estimator, Given, Setting, as_rows, ema_rate, put_rows, take_rows
from mmjax.config import Layout, MethodConfig, MethodContext
from mmjax.method import Refresh
from mmjax.objectives import modality_of, objective_names
from mmjax.optim.bogc_account import account_of, named_accounts, overall_weights
from mmjax.optim.bogc_levels import at_features, at_parameters, widened
from mmjax.optim.gradients import check_like_params, count_objectives
from mmjax.optim.options import check_active, check_num_objectives, check_positive
from mmjax.optim.promises import Promise
from mmjax.optim.record import WeightRecord, empty_record, recorded
from mmjax.reductions import means_where, sum_rows

PyTree = Any
Level = Literal["features", "parameters"]
Kind = Literal["laplace", "ema", "microbatch"]

SQUARES_DECAY = 0.9
"""Of the running E[g²] that tells live entries from dead ones."""

_OWN_OPTIONS: dict[str, tuple[str, ...]] = {
    "laplace": ("prior_precision", "samples", "mean", "per_example", "refresh_epochs"),
    "ema": ("decay",),
    "microbatch": ("parts",),
}
"""Options of `BogcConfig` that only one estimator has."""

REFRESH_EVERY = 100
"""Steps between posteriors taken from a batch, where `moments="laplace"` is given by name."""


class BogcState(NamedTuple):
    """State of `bogc`.

    count: int32, steps; seen: int32 [K], steps at which each objective was there; moments: the estimator's own; squares:
    running E[g²], a tree of [K, ...] like the parameters or {modality: [K, *features]}; diagnostics: {name: scalar} of the
    last step (see `bogc`).

    >>> tx, params = bogc("ema", level="parameters", num_objectives=2), {"w": jnp.zeros(2)}
    >>> _, state = tx.update({"w": jnp.ones((2, 2))}, tx.init(params), params)
    >>> int(state.count), state.weights.tolist(), sorted(state.diagnostics)[0]
    (1, [1.0, 1.0], 'bogc/evidence/w/0')
    """

    count: Array  # type: ignore[assignment]  # hides tuple.count, as in Optax's own states
    seen: Array
    moments: PyTree
    squares: PyTree
    diagnostics: dict[str, Array]
    record: WeightRecord

    @property
    def weights(self) -> Array:
        """The last weights n_d w_kd, [K]: the mean over entries, of the leaves where the objective has an opinion."""
        return self.record.weights


def bogc(
    moments: Estimator | Kind = "laplace",
    *,
    level: Level = "features",
    conservatism: bool = True,
    normalizer: Normalizer = "harmonic",
    temperature: float | Array = 1.0,
    relative: bool = False,
    num_examples: int | None = None,
    layout: Layout | None = None,
    num_objectives: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Weigh every entry d of the gradients by its evidence: g_d = n_d Σ_k w_kd m_kd · c_d.

    Mean m and variance v of each entry come from `moments`. Its evidence is its precision over the typical one of its leaf,
    e = (v̄ + tiny)/(v + ε v̄ + tiny); that is an opinion with belief b = e/(e+1) and uncertainty u = 1/(e+1);
    w_kd = b_kd / Σ_j b_jd, n_d is how many objectives reach the entry. With `conservatism`, c_d is the fused belief
    1 − Π_k u_kd (reduced Dempster rule) over its mean in the leaf: bold where evidence is high, careful where it is not.
    Equal evidence everywhere is `uniform`. An objective that does not reach a leaf, is absent (`active` False), or whose
    running E[g²] is 0 (a dead unit) has no opinion.

    moments: "laplace", "ema", "microbatch" with default options ("laplace" takes its posterior from the batch at hand every
      `REFRESH_EVERY` steps), or an estimator of `mmjax.bayes.moments` (`laplace()` takes it when `refresh` says so only).
    level: "features" weighs the gradients at the features (lazy gradients made with `encode`; parameters behind the features
      get the sum), "parameters" every parameter's (lazy or stacked; the state holds up to 3K copies of the parameters).
    normalizer: what v̄ is, the "harmonic" mean of the precisions (the mean of v) or its "median".
    temperature: T > 0: e^(1/T), above 1 nearer to uniform.
    relative: divide each objective's variance by its mean E[g²] in the leaf, so that short gradients are not certain
      because they are short.
    num_examples: size of the training set (laplace). layout: sizes of features and last layers (level features, laplace).
    num_objectives: K, where no layout tells it.

    Extra arguments of update: `active` bool[K]; `touching` for stacked gradients; `present` bool [B, M], columns by sorted
    modality: at the features an example has an opinion only on the modalities that it has; for laplace `key`, and `labels`
    or `logit_loss` (logits -> scalar, the loss with its smoothing and weights, or {objective: such a function} where they
    differ), and `refresh`, a bool scalar: take the posterior anew from this batch. For laplace the aux of losses_fn names
    the last layers; the argument `last_layer`, the same, may be left out. docs/own_loop.md has a loop with it. Under vmap a
    step pays for posteriors when one of the runs is due.

    The state's `diagnostics` tell for each layer (a modality's features; a module's parameters) the mean evidence and mean
    weight n_d w_kd of each objective, the share of entries held back (c_d below ½), and the posteriors' traces.

    Raises:
      ValueError: an option out of range; a level that the gradients or the estimator cannot serve; sizes that are missing or
        differ from the gradients'; an extra argument that the estimator needs and did not get.

    Source: BOGC-MML (Guo et al., "Multi-Modal Learning with Bayesian-Oriented Gradient Calibration"); its abstract leaves
    most formulas open, these are our reading (docs/methods.md).

    >>> tx = bogc("ema", level="parameters", num_objectives=2, conservatism=False)
    >>> params = {"w": jnp.zeros(2)}
    >>> steady, noisy = jnp.array([1.0, 1.0]), jnp.array([1.0, -1.0])
    >>> state = tx.init(params)
    >>> for sign in (1.0, -1.0):
    ...     grads = {"w": jnp.stack([steady, sign * noisy])}
    ...     updates, state = tx.update(grads, state, params)
    >>> [round(float(w), 1) for w in state.weights]  # the first objective's gradient never changed
    [1.5, 0.5]
    """
    if level not in get_args(Level):
        raise ValueError(f"level must be one of {', '.join(get_args(Level))}; got {level!r}")
    if normalizer not in get_args(Normalizer):
        raise ValueError(f"normalizer must be one of {', '.join(get_args(Normalizer))}; got {normalizer!r}")
    check_positive("temperature", temperature)
    check_num_objectives(num_objectives)
    estimator, called = _estimator(moments)
    if level not in estimator.levels:
        raise ValueError(f"moments={called!r} serve level {' or '.join(estimator.levels)}, not level={level!r}")
    if layout is None and (level == "features" or estimator.needs_layers):
        raise ValueError(
            "bogc sizes its state by layout: give layout=mmjax.config.Layout(features={modality: shape}, "
            "last_layer={objective: (inputs, outputs)})"
        )
    if num_examples is not None and num_examples < 1:
        raise ValueError(f"num_examples must be at least 1, got {num_examples}")
    names = _names(layout, num_objectives)
    k = len(names)
    setting = _setting(layout, num_examples)

    def shapes(params: PyTree) -> PyTree:
        if level == "features":
            assert layout is not None
            dtype = widened(jnp.result_type(*jax.tree.leaves(params)))  # as features are, as a rule
            return {m: jnp.zeros((k, *shape), dtype) for m, shape in layout.features.items()}
        return jax.tree.map(lambda p: jnp.zeros((k, *jnp.shape(p)), widened(jnp.result_type(p))), params)

    def init(params: PyTree) -> BogcState:
        squares = shapes(params)
        own = estimator.init(setting, jax.tree.leaves(shapes(params)))
        empty = {
            name: jnp.zeros((), jnp.float32) for name in named_accounts(squares, names, estimator.diagnostics(own))
        }
        seen = jnp.zeros(k, jnp.int32)
        return BogcState(jnp.zeros((), jnp.int32), seen, own, squares, empty, empty_record(k))

    def update(
        grads: Any,
        state: BogcState,
        params: PyTree = None,
        *,
        touching: PyTree = None,
        active: Any = None,
        present: Any = None,
        last_layer: Any = None,
        labels: Any = None,
        logit_loss: Any = None,
        key: Any = None,
        refresh: Any = None,
        **extra_args: Any,
    ) -> tuple[PyTree, BogcState]:
        del extra_args
        check_like_params(grads, params)
        if count_objectives(grads) != k:
            raise ValueError(
                f"{count_objectives(grads)} objectives came, but bogc was made for {k}: {', '.join(names)}"
            )
        flags = check_active(active, k)
        here = jnp.ones(k, bool) if flags is None else flags
        located = at_features(grads, layout, here) if level == "features" else at_parameters(grads, k, touching)
        gradients = located.gradients
        if present is not None and present.shape[1:] != (k - 1,):
            raise ValueError(f"present must be [B, {k - 1}], a column a modality; got shape {present.shape}")
        there = {} if present is None else {name: present[:, i] for i, name in enumerate(names[1:])}
        given = Given(here, state.count, last_layer, logit_loss, labels, key, refresh, there)
        estimates, own = estimator.estimate(setting, gradients, state.moments, given)

        seen = state.seen + here.astype(jnp.int32)
        rate = ema_rate(SQUARES_DECAY, seen)
        old, structure = jax.tree.flatten(state.squares)
        squares, combined, accounts = [], [], []
        for leaf, (ids, estimate, before) in enumerate(zip(gradients.objectives, estimates, old, strict=True)):
            held = take_rows(here, ids)
            mean = jnp.where(as_rows(held, estimate.mean), estimate.mean, 0)
            square = gradients.over_examples(mean**2)
            s = take_rows(before, ids)
            s = jnp.where(as_rows(held, s), s + as_rows(take_rows(rate, ids), s) * (square - s), s)
            squares.append(put_rows(before, ids, s.astype(before.dtype)))  # a state keeps its types, whatever comes
            live = (s > 0) & as_rows(held, s)
            variance = estimate.variance / _mean_squares(s, live, estimate.variance) if relative else estimate.variance
            if gradients.examples:
                live = live[:, None]
                modality = modality_of(sorted(state.squares)[leaf])
                if modality in there:  # a leaf is a modality's features
                    live = live & as_rows(there[modality], mean[0])
            axis = gradients.axis_name
            evidence = precision_evidence(
                variance, live, normalizer=normalizer, temperature=temperature, axis_name=axis
            )
            weights, boldness = calibrate(evidence, live, held, conservatism=conservatism, axis_name=axis)
            weights = weights * jnp.sum(held)
            combined.append(sum_rows(weights * mean) * boldness)
            accounts.append(account_of(ids, evidence, live, weights, boldness, s.size // len(ids), axis))
        told = named_accounts(state.squares, names, estimator.diagnostics(own), accounts)
        new_state = BogcState(
            optax.safe_increment(state.count),
            seen,
            own,
            jax.tree.unflatten(structure, squares),
            told,
            recorded(state.record, jnp.where(here, overall_weights(accounts, k), 0)),
        )
        return located.assemble(combined), new_state

    return optax.GradientTransformationExtraArgs(init, update)


def bogc_survey(estimator: Estimator, every: int, *, num_examples: int, layout: Layout) -> Refresh | None:
    """Return the pass over the training set that renews the estimator's part of a `BogcState`, if it profits from one."""
    survey = estimator.survey
    if survey is None:
        return None
    setting = _setting(layout, num_examples)
    return Refresh(
        every=every,
        start=lambda state: survey.start(setting),
        add=lambda carry, outputs, label, weight: survey.add(
            carry, outputs.last_layer, {name: outputs.weight_of(name, weight) for name in outputs.last_layer}
        ),
        finish=lambda carry, state: state._replace(moments=survey.finish(setting, carry, state.moments)),
    )


def _estimator(moments: Estimator | str) -> tuple[Estimator, str]:
    if isinstance(moments, Estimator):
        return moments, moments.name
    if moments not in get_args(Kind):
        raise ValueError(f"moments must be an estimator or one of {', '.join(get_args(Kind))}; got {moments!r}")
    if moments == "laplace":  # by name there is no pass over the training set: from batches, or it would never see data
        return bayes_moments.laplace(refresh_every=REFRESH_EVERY), moments
    return getattr(bayes_moments, moments)(), moments


def _names(layout: Layout | None, num_objectives: int | None) -> tuple[str, ...]:
    """Return the objectives' names in order; their numbers where no layout names them."""
    if layout is None:
        if num_objectives is None:
            raise ValueError("bogc sizes its state by the number of objectives: give num_objectives, or layout")
        return tuple(str(k) for k in range(num_objectives))
    names = objective_names(layout.last_layer)
    if num_objectives not in (None, len(names)):
        raise ValueError(f"num_objectives = {num_objectives}, but the layout has {len(names)} objectives: {names}")
    return names


def _setting(layout: Layout | None, num_examples: int | None) -> Setting:
    if layout is None:
        return Setting(None, num_examples)
    return Setting({n: layout.last_layer[n] for n in objective_names(layout.last_layer)}, num_examples)


def _mean_squares(squares: Array, live: Array, like: Array) -> Array:
    """Return each objective's mean E[g²] over a leaf's live entries, [T, 1, ...]; 1 where it has none."""
    mean = means_where(list(zip(squares, jnp.broadcast_to(live, squares.shape), strict=True)))
    return as_rows(jnp.where(mean > 0, mean, 1), like)


@dataclass(frozen=True, kw_only=True)
class BogcConfig(MethodConfig):
    """Every entry of each gradient weighs by its evidence: certain ones more, uncertain ones less.

    Example:
    >>> BogcConfig(moments="ema", level="parameters").moments
    'ema'
    """

    name: str = "bogc"
    moments: Kind = "laplace"
    """Where mean and variance of a gradient's entries come from: the last layer's posterior (laplace, at the features), the
    steps before (ema), or parts of the batch (microbatch)."""
    level: Level = "features"
    """Where gradients are weighed: at the features, or at every parameter (ema and microbatch)."""
    conservatism: bool = True
    """Bolder steps where the fused belief is above its mean, more careful ones where it is below."""
    normalizer: Normalizer = "harmonic"
    """What precisions are compared with: their harmonic mean, or their median."""
    temperature: float = 1.0
    """Exponent 1/T on the evidence, T > 0; large: uniform."""
    relative: bool = False
    """Divide each objective's variances by its mean squared gradient first."""
    prior_precision: float | None = None
    """laplace: τ > 0 of the prior on the last layer; None: a tenth of the number of training examples."""
    samples: int = 64
    """laplace: draws a step, at least 16. On small models they cost many times the rest of the step."""
    mean: bayes_moments.Mean = "gradient"
    """laplace: what is weighed, the ordinary gradient or the mean of the posterior's."""
    per_example: bool = True
    """laplace: weigh in each example by its own variances, or in all by their mean."""
    refresh_epochs: float = 6.0
    """laplace: epochs between passes over the training split that take the posterior anew, > 0."""
    decay: float = 0.9
    """ema: β in (0, 1)."""
    parts: int = 4
    """microbatch: equal parts of a batch, at least 2."""

    kind: ClassVar[Literal["value", "gradient", "balance"]] = "gradient"
    backward_passes: ClassVar[str] = "1 at the features, 2 at the parameters"
    source: ClassVar[str] = "Guo et al., Multi-Modal Learning with Bayesian-Oriented Gradient Calibration"
    reading: ClassVar[Literal["paper", "our reading"]] = "our reading"
    promises: ClassVar[frozenset[Promise]] = frozenset(
        {
            Promise.IDENTITY_FOR_ONE,  # without conservatism
            Promise.PERMUTATION_EQUIVARIANT,
            Promise.UNIFORM_WHEN_BALANCED,  # where the evidence is: ema at its first step
        }
    )

    def validate(self) -> None:
        """Raise ValueError for an option out of range."""
        check_positive("method.refresh_epochs", self.refresh_epochs)
        check_positive("method.temperature", self.temperature)
        for kind in get_args(Kind):
            try:
                self._estimator(kind, "softmax")
            except ValueError as error:  # names the option, as it is called here, too
                raise ValueError(f"method.{error}") from None
        for kind, name in ((kind, name) for kind, names in _OWN_OPTIONS.items() for name in names):
            if kind != self.moments and getattr(self, name) != getattr(type(self), name):  # the default
                warnings.warn(
                    f"method.{name} is an option of moments={kind!r}; with moments={self.moments!r} it does nothing",
                    UserWarning,
                    stacklevel=2,
                )
        if self.level not in self._estimator(self.moments, "softmax").levels:
            raise ValueError(f"method.moments={self.moments!r} has no level={self.level!r}: take level='features'")

    def _estimator(self, kind: str, likelihood: Literal["softmax", "sigmoid"]) -> Estimator:
        if kind == "ema":
            return bayes_moments.ema(self.decay)
        if kind == "microbatch":
            return bayes_moments.microbatch(self.parts)
        return bayes_moments.laplace(
            samples=self.samples,
            prior_precision=self.prior_precision,
            mean=self.mean,
            per_example=self.per_example,
            likelihood=likelihood,
        )

    def _for_task(self, context: MethodContext) -> Estimator:
        if self.moments == "laplace" and context.task.kind == "regression":
            raise ValueError("method.moments='laplace' is for classification and multi-label; take ema or microbatch")
        return self._estimator(self.moments, "sigmoid" if context.task.kind == "multilabel" else "softmax")

    def build(self, context: MethodContext) -> optax.GradientTransformationExtraArgs:
        """Make `bogc` for the context. Raises ValueError if the batch does not divide into `parts`."""
        if self.moments == "microbatch" and context.batch_size % self.parts:
            raise ValueError(
                f"train.batch_size = {context.batch_size} does not divide into method.parts = {self.parts} equal parts"
            )
        return bogc(
            self._for_task(context),
            level=self.level,
            conservatism=self.conservatism,
            normalizer=self.normalizer,
            temperature=self.temperature,
            relative=self.relative,
            num_examples=context.num_examples,
            layout=context.layout,
            num_objectives=len(context.names),
        )

    def refresh(self, context: MethodContext) -> Refresh | None:
        """Return the pass that takes the posterior anew; None for the other estimators."""
        every = max(1, math.ceil(self.refresh_epochs * context.steps_per_epoch))
        estimator = self._for_task(context)
        return bogc_survey(estimator, every, num_examples=context.num_examples, layout=context.layout)
