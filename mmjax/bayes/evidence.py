"""Subjective opinions from evidence, and the reduced Dempster rule that fuses them.

Source: BOGC-MML (Guo et al.) for the use of a reduced rule; the formulas here are our reading (docs/methods.md). The
K-class rule is Dempster's for mass functions whose focal elements are the single classes and the whole frame.

Nothing here computes 1 - conflict: at large evidence the conflict rounds to 1 and the rule would divide by 0. The
products that are left are summed instead; all of them are positive.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike


class BinaryOpinion(NamedTuple):
    """Belief and uncertainty about one statement, arrays of one shape in [0, 1]; they sum to 1."""

    belief: Array
    uncertainty: Array


class Opinion(NamedTuple):
    """Beliefs [..., C] in C exclusive classes and the uncertainty [...] left over; together they sum to 1."""

    belief: Array
    uncertainty: Array


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
    source (b = 0, u = 1) changes nothing. Finite in float32 for evidence up to 1e30, full conflict included.

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
