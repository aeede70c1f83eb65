"""IMTL-G: the combination on which all gradients have equal projections."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import jax.numpy as jnp
import optax
from jax import Array

from mmjax.config import MethodContext
from mmjax.optim.gramian import Gramian, MeanGramConfig, Scope, gram_method
from mmjax.optim.options import Scale, check_choice
from mmjax.optim.promises import Promise
from mmjax.optim.qp import face_system
from mmjax.optim.rows import Level

Negative = Literal["keep", "mean"]
NEGATIVES = ("keep", "mean")


def imtl_g_weights(gram: Gramian, negative: Negative = "keep") -> Array:
    """Return α = G⁺d / (1ᵀG⁺d), d_k = ‖g_k‖, [K]; the mean where 1ᵀG⁺d = 0, and with negative="mean" where it is < 0.

    Where the unit gradients are linearly independent, G α = d is solved on the cosines, C (d α) = 1, so that lengths
    as different as float32 can hold do no harm; else by the pseudo-inverse of G, eigenvalues above λ_max K eps.
    """
    norms, k = gram.norms, gram.norms.shape[0]
    alive = gram.active & (norms > 0)
    cutoff = k * jnp.finfo(norms.dtype).eps
    cosines = face_system(gram.cosines, alive)
    spectrum = jnp.linalg.eigvalsh(cosines)
    regular = spectrum[0] > spectrum[-1] * cutoff
    independent = jnp.linalg.solve(cosines, alive.astype(norms.dtype)) / jnp.where(alive, norms, 1)

    values, vectors = jnp.linalg.eigh(gram.matrix)
    kept = values > values[-1] * cutoff
    inverse = jnp.where(kept, 1 / jnp.where(kept, values, 1), 0)
    general = vectors @ (inverse * (norms @ vectors))

    raw = jnp.where(alive, jnp.where(regular, independent, general), 0)
    total = jnp.sum(raw)
    lost = jnp.abs(total) <= cutoff * jnp.sum(jnp.abs(raw))  # all digits cancelled
    if negative == "mean":
        lost |= total < 0
    return jnp.where(lost, gram.mean, raw / jnp.where(lost, 1, total))


def imtl_g(
    *,
    negative: Negative = "keep",
    scope: Scope = "shared",
    scale: Scale = "mean",
    level: Level = "parameters",
    num_objectives: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Weigh so that the update's projection on every gradient is the same, the weights summing to 1.

    Equal projections exist if the gradients are linearly independent. For two the common value is positive; for three or
    more it may be negative, and then the update makes *every* objective worse.

    negative: "keep": the published formula; "mean": fall back to the mean where the common projection is negative.
    scope: "shared": leaves that two or more objectives reach, the others get Σ_k g_k; "all": every leaf.
    scale: "sum" multiplies the weights by K, so that learning rates compare with those of `uniform`.
    level: "features": equal projections at the features, one encoder backward pass. It needs lazy gradients made with
      `encode`.
    num_objectives: K, for a state of exactly K weights (needed above 16 objectives).
    Extra arguments of update: `active` bool[K], `touching`.

    Raises:
      ValueError: an unknown option; gradients that are not one an objective; no features at level "features".

    Source: Liu et al., "Towards Impartial Multi-task Learning" (2021), the gradient part; in the closed form with the
    pseudo-inverse, which also covers dependent gradients.

    >>> tx = imtl_g()
    >>> params = {"w": jnp.zeros(2)}
    >>> grads = {"w": jnp.array([[1.0, 0.0], [0.0, 3.0]])}
    >>> updates, _ = tx.update(grads, tx.init(params), params)
    >>> [round(float(u), 4) for u in updates["w"]]
    [0.75, 0.75]
    """
    check_choice("negative", negative, NEGATIVES)
    return gram_method(
        lambda gram, key: imtl_g_weights(gram, negative),
        scope=scope,
        scale=scale,
        level=level,
        num_objectives=num_objectives,
    )


@dataclass(frozen=True, kw_only=True)
class ImtlGConfig(MeanGramConfig):
    """The combination on which all gradients have equal projections.

    Example:
    >>> ImtlGConfig(negative="mean").negative
    'mean'
    """

    name: str = "imtl_g"
    negative: Negative = "keep"
    """Where every objective would get worse: keep: the published formula; mean: the mean gradient."""

    source: ClassVar[str] = "Liu et al., Towards Impartial Multi-task Learning, 2021"
    promises: ClassVar[frozenset[Promise]] = frozenset(
        {
            Promise.IDENTITY_FOR_ONE,
            Promise.PERMUTATION_EQUIVARIANT,
            Promise.UNIFORM_WHEN_BALANCED,  # with scale="sum"
        }
    )

    def validate(self) -> None:
        """Raise ValueError for an unknown choice."""
        super().validate()
        check_choice("method.negative", self.negative, NEGATIVES)

    def build(self, context: MethodContext) -> optax.GradientTransformationExtraArgs:
        """Make `imtl_g` for the context's objectives."""
        return imtl_g(negative=self.negative, **self.options(context))
