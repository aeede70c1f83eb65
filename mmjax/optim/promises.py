"""What a combiner may promise about its update; `mmjax.testing.check_combiner` holds it to what it declares."""

from __future__ import annotations

from enum import StrEnum


class Promise(StrEnum):
    """A property that some combiners have and others lack: A(J) is the update made of the gradients J (rows g_k).

    A method declares its promises in its `MethodConfig`. A promise may hold for some options only; those are named here.
    What every combiner owes (finite and of the right shape at any common scale, lazy as stacked, absent objectives
    without opinion, ...) is no promise: `check_combiner` checks it always.

    >>> from mmjax.optim import METHODS
    >>> Promise.NON_CONFLICTING in METHODS["upgrad"].promises
    True
    """

    IDENTITY_FOR_ONE = "identity_for_one"
    """With one objective the update is its gradient: A(g) = g. Not so: cagrad, nash_mtl, uncertainty."""

    PERMUTATION_EQUIVARIANT = "permutation_equivariant"
    """The modalities' order does not matter: permuting objectives 1..M, their losses and all that belongs to them leaves
    the update as it is and permutes the weights. Objective 0 stays the fusion. Random methods: in distribution over
    `key`, that is in the mean over many keys."""

    STATIONARY = "stationary"
    """Where a convex combination of the gradients with all weights positive vanishes, the update is 0: mgda, upgrad."""

    NON_CONFLICTING = "non_conflicting"
    """No objective gets worse, to first order: J A(J) >= 0. mgda, upgrad; nash_mtl where its equation has a solution."""

    UNIFORM_WHEN_BALANCED = "uniform_when_balanced"
    """Equal losses and orthogonal gradients of equal norm: A(J) = Σ_k g_k, also at every step of a run of such problems.
    mimo with penalty = M; mgda, upgrad, imtl_g and aligned_mtl with scale="sum"; bogc where the evidence is equal, too, as
    at the first step of running moments."""

    LINEAR_UNDER_SCALING = "linear_under_scaling"
    """With the losses held fixed, A(diag(c) J) is linear in c > 0: a shorter gradient has that much less influence, and
    changes nothing else. joint, uniform, mimo, pcgrad, upgrad; not mgda, whose weights grow as a gradient shrinks."""


__all__ = ["Promise"]
