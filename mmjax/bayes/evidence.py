"""Evidence from variances, subjective opinions from evidence, and the reduced Dempster rule that fuses them.

Source: BOGC-MML (Guo et al.) for the use of a reduced rule; the formulas here are our reading (docs/methods.md). The
K-class rule is Dempster's for mass functions whose focal elements are the single classes and the whole frame.

Nothing here computes 1 - conflict: at large evidence the conflict rounds to 1 and the rule would divide by 0. The
products that are left are summed instead; all of them are positive.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from mmjax.reductions import any_row, means_where, sum_rows

Normalizer = Literal["harmonic", "median"]

EPSILON = 1e-3  # of the reference variance: caps evidence at 1000, so that a variance of 0 is no certainty
# far below any variance of gradients that still move anything: makes all-zero variances equal evidence. Variances of its
# own size are equal evidence, too: a factor on all of them changes nothing as long as they stay above about 1e-26.
TINY = 1e-30


class BinaryOpinion(NamedTuple):
    """Belief and uncertainty about one statement, arrays of one shape in [0, 1]; they sum to 1.

    >>> doubtful = binary_opinion(jnp.array(0.25))
    >>> float(doubtful.belief), float(doubtful.uncertainty)
    (0.20000000298023224, 0.800000011920929)
    """

    belief: Array
    uncertainty: Array


class Opinion(NamedTuple):
    """Beliefs [..., C] in C exclusive classes and the uncertainty [...] left over; together they sum to 1.

    >>> said = opinion(jnp.array([2.0, 0.0]))
    >>> said.belief.tolist(), float(said.uncertainty), float(said.belief.sum() + said.uncertainty)
    ([0.5, 0.0], 0.5, 1.0)
    """

    belief: Array
    uncertainty: Array


def precision_evidence(
    variance: ArrayLike,
    live: ArrayLike,
    *,
    normalizer: Normalizer = "harmonic",
    temperature: float | Array = 1.0,
    axis_name: str | None = None,
) -> Array:
    """Return the evidence [K, ...] of gradient entries: their precision over the typical one, e = v̄/(v + ε v̄).

    variance: v >= 0, [K, ...], K objectives; live: bool, broadcast against it: entries that have an opinion at all. The
    others get evidence 0, the vacuous opinion, and count in no mean, whatever their variance holds. v̄ is the mean of v
    over live entries ("harmonic": e is precision over the harmonic mean precision) or their median ("median"); ε = 1e-3.
    One factor on all variances changes nothing (above `TINY`); equal variances, all 0 included, are equal evidence.
    temperature: T > 0; e^(1/T), above 1 a more even evidence. axis_name: devices over which the entries are spread.

    Raises:
      ValueError: an unknown normalizer.

    Source: our reading of BOGC-MML (docs/methods.md). Over the arithmetic mean of precisions a few variances near 0 would
    leave every other entry without evidence.

    >>> evidence = precision_evidence(jnp.array([1.0, 3.0, 9.0]), jnp.array([True, True, False]))
    >>> [round(float(e), 2) for e in evidence]
    [2.0, 0.67, 0.0]
    """
    if normalizer not in get_args(Normalizer):
        raise ValueError(f"normalizer must be one of {', '.join(get_args(Normalizer))}; got {normalizer!r}")
    v = jnp.asarray(variance)
    v, live = jnp.broadcast_arrays(v, jnp.asarray(live, bool))
    if normalizer == "harmonic":
        (reference,) = means_where([(v, live)], axis_name)
    else:
        everywhere = jnp.where(live, v, jnp.nan)
        if axis_name is not None:
            everywhere = jax.lax.all_gather(everywhere, axis_name)
        median = jnp.nanmedian(everywhere)
        reference = jnp.where(jnp.isnan(median), 0, median)  # nothing is live
        if axis_name is not None:
            reference = jax.lax.pmean(reference, axis_name)  # the same already; shard_map wants it said
    evidence = (reference + TINY) / (v + EPSILON * reference + TINY)
    return jnp.where(live, evidence ** (1 / temperature), 0)


class Calibration(NamedTuple):
    """What opinions make of gradients: weights [K, ...], sum 1 over K (or 0 where nothing is there); boldness [...].

    >>> evidence = jnp.array([[3.0], [1.0]])  # of two objectives, on one entry
    >>> made = calibrate(evidence, evidence > 0, jnp.array([True, True]), conservatism=False)
    >>> made.weights.tolist(), made.boldness.tolist()
    ([[0.6000000238418579], [0.4000000059604645]], [1.0])
    """

    weights: Array
    boldness: Array


def calibrate(
    evidence: Array, live: Array, here: Array, *, conservatism: bool, axis_name: str | None = None
) -> Calibration:
    """Return w_k = b_k / Σ_j b_j over live objectives, and the boldness c = b/mean(b) of the fused belief b.

    evidence: [K, ...]; live: bool, broadcast against it; here: bool [K], objectives that are present. Where nothing is
    live those present share equally, and c = 1. conservatism: False makes c = 1 everywhere; True gives entries whose
    fused belief b = 1 − Π_k u_k is above the mean over live entries a bolder step, the others a more careful one.
    axis_name: devices over which the entries are spread.

    Source: our reading of BOGC-MML (docs/methods.md).

    >>> e = jnp.array([[1.0, 1.0], [1.0, 0.0]])
    >>> made = calibrate(e, e > 0, jnp.array([True, True]), conservatism=True)
    >>> made.weights.tolist(), made.boldness.round(3).tolist()
    ([[0.5, 1.0], [0.5, 0.0]], [1.2000000476837158, 0.800000011920929])
    """
    evidence, live = jnp.broadcast_arrays(evidence, live)
    opinions = binary_opinion(jnp.where(live, evidence, 0))
    total = sum_rows(opinions.belief)
    anything = any_row(live)
    present = here.astype(evidence.dtype).reshape(-1, *[1] * (evidence.ndim - 1))
    equally = present / jnp.maximum(jnp.sum(present), 1)
    weights = jnp.where(anything, opinions.belief / jnp.where(anything, total, 1), equally)
    if not conservatism:
        return Calibration(weights, jnp.ones_like(total))
    fused = combine_binary([BinaryOpinion(b, u) for b, u in zip(*opinions, strict=True)]).belief
    (typical,) = means_where([(fused, anything)], axis_name)
    return Calibration(weights, jnp.where(anything, fused / jnp.where(typical > 0, typical, 1), 1))


def binary_opinion(evidence: ArrayLike) -> BinaryOpinion:
    """Return b = e/(e+1), u = 1/(e+1) of evidence e >= 0, any shape. No evidence is the vacuous opinion (0, 1).

    >>> [x.tolist() for x in binary_opinion(jnp.array([0.0, 1.0, 3.0]))]
    [[0.0, 0.5, 0.75], [1.0, 0.5, 0.25]]
    """
    e = jnp.asarray(evidence)
    return BinaryOpinion(e / (e + 1), 1 / (e + 1))


def combine_binary(opinions: Sequence[BinaryOpinion]) -> BinaryOpinion:
    """Return the fused opinion of any number of sources: u = Π u_s, b = 1 - u. There is no conflict to discard.

    b is summed as b¹ + u¹b² + u¹u²b³ ..., which keeps the digits of small beliefs that 1 - u would lose.

    Raises:
      ValueError: no source, or shapes that differ.

    >>> fused = combine_binary([binary_opinion(1.0), binary_opinion(3.0)])
    >>> float(fused.belief), float(fused.uncertainty)
    (0.875, 0.125)
    """
    _check(opinions)
    return reduce(
        lambda a, b: BinaryOpinion(a.belief + a.uncertainty * b.belief, a.uncertainty * b.uncertainty), opinions
    )


def opinion(evidence: ArrayLike) -> Opinion:
    """Return b_i = e_i/S, u = C/S with S = Σ(e_i + 1), of evidence e >= 0 [..., C] for C classes.

    >>> b, u = opinion(jnp.array([2.0, 0.0]))
    >>> b.tolist(), float(u)
    ([0.5, 0.0], 0.5)
    """
    e = jnp.asarray(evidence)
    classes = e.shape[-1]
    strength = jnp.sum(e, axis=-1) + classes
    return Opinion(e / strength[..., None], classes / strength)


def combine_opinions(opinions: Sequence[Opinion]) -> Opinion:
    """Return the fused opinion of any number of sources by the reduced Dempster rule, two at a time.

    n_i = b¹_i b²_i + b¹_i u² + b²_i u¹ and n_u = u¹u², divided by Σ n_i + n_u. Commutative and associative; a vacuous
    source (b = 0, u = 1) changes nothing. In float32 for evidence up to 1e18, full conflict included; beyond, u¹u² is too
    small for a float32, and the order begins to matter.

    Raises:
      ValueError: no source, or shapes that differ.

    >>> fused = combine_opinions([opinion(jnp.array([6.0, 0.0])), opinion(jnp.array([0.0, 0.0]))])
    >>> fused.belief.tolist(), float(fused.uncertainty)
    ([0.75, 0.0], 0.25)
    """
    _check(opinions)
    return reduce(_combine_two, opinions)


def _combine_two(one: Opinion, two: Opinion) -> Opinion:
    u1, u2 = one.uncertainty[..., None], two.uncertainty[..., None]
    belief = one.belief * two.belief + one.belief * u2 + two.belief * u1
    uncertainty = one.uncertainty * two.uncertainty
    total = jnp.sum(belief, axis=-1) + uncertainty
    return Opinion(belief / total[..., None], uncertainty / total)


def expected_probability(source: Opinion) -> Array:
    """Return the mean b_i + u/C of the Dirichlet distribution that an opinion stands for, [..., C]; rows sum to 1.

    It is α_i / S with α = e + 1 of the opinion's evidence.

    >>> expected_probability(opinion(jnp.array([2.0, 0.0]))).tolist()
    [0.75, 0.25]
    """
    return source.belief + source.uncertainty[..., None] / source.belief.shape[-1]


def _check(opinions: Sequence[BinaryOpinion] | Sequence[Opinion]) -> None:
    if not opinions:
        raise ValueError("opinions holds no source; fusing needs at least one")
    shapes = {(source.belief.shape, source.uncertainty.shape) for source in opinions}
    if len(shapes) > 1:
        raise ValueError(f"all opinions must have one shape of belief and uncertainty; got {sorted(shapes)}")
