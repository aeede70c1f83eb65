"""Laplace approximation of a head's last layer: posterior, samples, predictive probabilities.

The posterior of the weights W [C, D+1] (the last column is the bias) is the normal distribution N(Ŵ, Λ⁻¹), centred at the
weights as they are, with

    Λ = Σ_n J_nᵀ H_n J_n + τ I,    J_n = I_C ⊗ (a_n, 1),    H_n = diag(p_n) − p_n p_nᵀ  or  diag(p_n (1 − p_n)),

the generalised Gauss-Newton matrix of the softmax or sigmoid cross-entropy, summed (not averaged) over examples with
last-layer inputs a_n [D] and probabilities p_n [C], plus a prior precision τ on weights and bias alike. Its side is
C(D+1), classes first. Above `DENSE_LIMIT` only the blocks on the diagonal are kept, one [D+1, D+1] a class; for the
sigmoid the others are 0 and blocks are exact.

Source: BOGC-MML (Guo et al.) for a Laplace approximation of the last layer; form, centre and prior are our reading
(docs/methods.md).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

Likelihood = Literal["softmax", "sigmoid"]

DENSE_LIMIT = 4096
"""Largest side of a dense precision matrix: 64 MiB in float32."""

JITTER = (
    1e-6  # of the mean of the diagonal: the first try; below the rounding of a float32 Cholesky it would do nothing
)
JITTER_STEPS = 6  # each ten times the last: up to a tenth of the mean of the diagonal


STRIP, STRIPS = 128, 8
"""Rows of a root that are multiplied at a time, enough for a matrix unit, and at most how many times: each is compiled."""


class Posterior(NamedTuple):
    """root: R = L⁻¹, L the lower Cholesky factor of Λ + jitter I, so that RᵀR is the covariance; jitter: scalar.

    root is [P, P], or [C, D+1, D+1] by blocks, and lower triangular. It is inverted once, so that a draw is a product.

    >>> x, w, b = jnp.ones((5, 2)), jnp.zeros((2, 3)), jnp.zeros(3)
    >>> found = posterior(precision(x, w, b), prior_precision=1.0)
    >>> found.root.shape, float(found.jitter)
    ((9, 9), 0.0)
    """

    root: Array
    jitter: Array


def check_likelihood(likelihood: str) -> None:
    """Raise ValueError unless the likelihood is softmax or sigmoid."""
    if likelihood not in get_args(Likelihood):
        raise ValueError(f"likelihood must be one of {', '.join(get_args(Likelihood))}; got {likelihood!r}")


def check_prior_precision(value: Any) -> None:
    """Raise ValueError for a concrete τ that is not finite and above 0; what is traced passes."""
    if not isinstance(value, jax.core.Tracer) and not (np.isfinite(value).all() and (np.asarray(value) > 0).all()):
        raise ValueError(f"prior_precision must be a finite number > 0, got {value}")


def is_dense(inputs: int, outputs: int, likelihood: Likelihood = "softmax") -> bool:
    """Return whether the precision of a layer of D = inputs, C = outputs is kept whole: softmax and C(D+1) <= 4096."""
    return likelihood == "softmax" and outputs * (inputs + 1) <= DENSE_LIMIT


def warn_of_blocks(name: str, inputs: int, outputs: int, likelihood: Likelihood = "softmax") -> None:
    """Say so if correlations between classes are left out of the posterior of this layer."""
    side = outputs * (inputs + 1)
    if likelihood == "softmax" and side > DENSE_LIMIT:
        message = (
            f"the Laplace posterior of {name!r} would be {side} x {side}, above the limit of {DENSE_LIMIT}: it is kept by "
            "blocks, one a class, and correlations between classes are left out"
        )
        warnings.warn(message, UserWarning, stacklevel=2)


def empty_precision(inputs: int, outputs: int, likelihood: Likelihood = "softmax") -> Array:
    """Return zeros of the shape that `precision` has: [P, P] with P = C(D+1), or [C, D+1, D+1].

    >>> empty_precision(3, 2).shape, empty_precision(3, 2, "sigmoid").shape
    ((8, 8), (2, 4, 4))
    """
    d = inputs + 1
    side = outputs * d
    return jnp.zeros((side, side) if is_dense(inputs, outputs, likelihood) else (outputs, d, d), jnp.float32)


def precision(
    inputs: Array, kernel: Array, bias: Array, weight: Array | None = None, likelihood: Likelihood = "softmax"
) -> Array:
    """Return Σ_n weight_n J_nᵀ H_n J_n over the examples given, of `empty_precision`'s shape; the prior is not in it.

    inputs: [N, D], what the last layer is applied to; kernel: [D, C]; bias: [C]; weight: [N], 0 for padding (None: 1).
    Sums of several batches add up.

    Raises:
      ValueError: an unknown likelihood.

    >>> x, w, b = jnp.array([[2.0]]), jnp.zeros((1, 2)), jnp.zeros(2)
    >>> precision(x, w, b)[:2].tolist()  # p = ½: ¼ aaᵀ on the diagonal, −¼ aaᵀ beside it, a = (2, 1)
    [[1.0, 0.5, -1.0, -0.5], [0.5, 0.25, -0.5, -0.25]]
    """
    check_likelihood(likelihood)
    a, logits = extended(inputs), _logits(inputs, kernel, bias)
    (n, d), c = a.shape, logits.shape[1]
    log_p = jax.nn.log_softmax(logits) if likelihood == "softmax" else jax.nn.log_sigmoid(logits)
    p = jnp.exp(log_p)
    spread = p * -jnp.expm1(log_p)  # p (1 - p), exact also where p rounds to 1
    weight = jnp.ones(n, a.dtype) if weight is None else weight.astype(a.dtype)
    scaled = (weight[:, None] * spread)[:, :, None] * a[:, None, :]
    blocks = jnp.einsum("nci,nj->cij", scaled, a)
    if not is_dense(d - 1, c, likelihood):
        return blocks
    # Off the diagonal Λ is minus a product of [N, C(D+1)], on it the blocks: nothing cancels, nothing is [N, C, C, D+1].
    rows = (p[:, :, None] * a[:, None, :]).reshape(n, c * d)
    whole = -((weight[:, None] * rows).T @ rows).reshape(c, d, c, d)
    each = jnp.arange(c)
    return whole.at[each, :, each, :].set(blocks).reshape(c * d, c * d)


def posterior(precision_sum: Array, prior_precision: float | Array) -> Posterior:
    """Return the posterior of a precision summed over the training set, with the prior τ = prior_precision added.

    precision_sum: as `precision` returns, [P, P] or [C, D+1, D+1]. Where rounding has left Λ not positive definite in
    float32, a jitter is added to its diagonal: 1e-6 of the diagonal's mean, ten times more until the factor is finite, a
    tenth of it at most; this warns. Numbers that are not finite stay so.

    Raises:
      ValueError: a concrete τ that is not finite and above 0.

    >>> float(posterior(jnp.zeros((2, 2)), 4.0).root[0, 0])
    0.5
    """
    check_prior_precision(prior_precision)
    factor, jitter = jittered_cholesky(precision_sum + prior_precision * _eye(precision_sum))
    root = jax.scipy.linalg.solve_triangular(factor, jnp.broadcast_to(_eye(factor), factor.shape), lower=True)
    return Posterior(root, jitter)


def _eye(like: Array) -> Array:
    return jnp.eye(like.shape[-1], dtype=like.dtype)


def jittered_cholesky(whole: Array) -> tuple[Array, Array]:
    """Return the lower Cholesky factor of a matrix [P, P] or its blocks, and the jitter that it took; see `posterior`.

    >>> factor, jitter = jittered_cholesky(4.0 * jnp.eye(2))
    >>> float(factor[0, 0]), float(jitter)
    (2.0, 0.0)
    """
    eye = _eye(whole)
    scale = jnp.mean(jnp.diagonal(whole, axis1=-2, axis2=-1))

    def jitter_of(tries: Array) -> Array:
        return jnp.where(tries > 0, JITTER * scale * 10.0 ** (tries - 1), 0).astype(whole.dtype)

    def failed(carry: tuple[Array, Array]) -> Array:
        tries, factor = carry
        return ~jnp.all(jnp.isfinite(factor)) & (tries < JITTER_STEPS) & jnp.isfinite(scale)

    def again(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        tries = carry[0] + 1
        return tries, jnp.linalg.cholesky(whole + jitter_of(tries) * eye)

    tries, factor = jax.lax.while_loop(failed, again, (jnp.zeros((), jnp.int32), jnp.linalg.cholesky(whole)))
    jitter = jitter_of(tries)
    # Under vmap both branches run: the callback looks again.
    jax.lax.cond(jitter > 0, lambda j: jax.debug.callback(_warn_of_jitter, j), lambda j: None, jitter)
    return factor, jitter


def posteriors(precision_sums: Mapping[str, Array], prior_precision: float | Array) -> dict[str, Posterior]:
    """Return each one's `posterior`, {name: Posterior}, decomposed one after another.

    XLA's batched LAPACK kernels on CPU (under vmap, or by blocks) wait for the very threads that they run on: of two at
    once on two cores neither ever ends. So each has to need the outcome of the one before.

    >>> sorted(posteriors({"a": jnp.eye(2), "b": jnp.eye(3)}, 1.0))
    ['a', 'b']
    """
    found: dict[str, Posterior] = {}
    after = jnp.zeros((), jnp.float32)
    for name, total in precision_sums.items():
        found[name] = posterior(total, prior_precision + after)
        # 0, which the compiler does not see, known only once this one is; fmin passes over a NaN
        after = jnp.fmin(jnp.abs(found[name].root.ravel()[0]), 0)
    return found


def prior_posterior(inputs: int, outputs: int, prior_precision: float | Array, likelihood: Likelihood) -> Posterior:
    """Return the posterior before any data, N(Ŵ, I/τ), of a layer of these sizes."""
    empty = empty_precision(inputs, outputs, likelihood)
    root = jnp.broadcast_to(jnp.eye(empty.shape[-1]) / jnp.sqrt(prior_precision), empty.shape)
    return Posterior(root.astype(jnp.float32), jnp.zeros((), jnp.float32))


def _warn_of_jitter(jitter: Array) -> None:
    if jitter > 0:
        message = (
            "a Laplace posterior is not positive definite in float32: at least 1e-6 of the mean of its diagonal is added to "
            "the diagonal; a larger prior_precision avoids it"
        )
        warnings.warn(message, UserWarning, stacklevel=1)


def deviations(posterior: Posterior, key: Array, samples: int) -> Array:
    """Return draws of W − Ŵ from the posterior: [S, P] from a dense root, [S, C, D+1] from one by blocks.

    The draws are Rᵀ ε with standard normal ε, so that their covariance is RᵀR.
    """
    root = posterior.root
    *blocks, side = root.shape[:-1]
    total = jnp.zeros((*blocks, samples, 0), root.dtype)
    height = STRIP * -(-side // (STRIP * STRIPS))
    for strip, start in enumerate(range(0, side, height)):  # of rows: what lies above the diagonal is left out
        stop = min(start + height, side)
        # a key a strip: of one noise for all, cut into strips, XLA makes the whole anew for each
        noise = jax.random.normal(jax.random.fold_in(key, strip), (*blocks, samples, stop - start), root.dtype)
        # full precision: some devices multiply in bfloat16 unless they are told not to
        part = jnp.matmul(noise, root[..., start:stop, :stop], precision=jax.lax.Precision.HIGHEST)
        total = jnp.concatenate([total + part[..., :start], part[..., start:]], axis=-1)
    return jnp.moveaxis(total, -2, 0)


def sample_weights(posterior: Posterior, kernel: Array, bias: Array, key: Array, samples: int) -> Array:
    """Return draws of the last layer's weights, [S, C, D+1], the bias in the last column.

    kernel: [D, C]; bias: [C].

    >>> x, kernel, bias = jnp.eye(2), jnp.ones((2, 3)), jnp.zeros(3)
    >>> sure = posterior(precision(x, kernel, bias), prior_precision=1e12)  # no doubt at all
    >>> draws = sample_weights(sure, kernel, bias, jax.random.key(0), samples=5)
    >>> draws.shape, bool(jnp.allclose(draws, jnp.array([1.0, 1.0, 0.0]), atol=1e-4))
    ((5, 3, 3), True)
    """
    centre = jnp.concatenate([kernel.T, bias[:, None]], axis=1).astype(posterior.root.dtype)
    return centre + deviations(posterior, key, samples).reshape(samples, *centre.shape)


def sampled_logits(inputs: Array, weights: Array) -> Array:
    """Return the logits [S, N, C] of inputs [N, D] under draws [S, C, D+1] of the weights."""
    return jnp.einsum("nd,scd->snc", extended(inputs), weights)


def sampled_cotangents(loss: Callable[[Array], Array], inputs: Array, weights: Array) -> Array:
    """Return ∂loss/∂a_n under every draw of the weights, [S, N, D]: γ_ns = W_sᵀ ∂loss/∂logits_ns.

    loss: logits [N, C] -> scalar, with the labels in it; inputs: [N, D]; weights: [S, C, D+1].
    """
    at_logits = jax.vmap(jax.grad(loss))(sampled_logits(inputs, weights))
    return jnp.einsum("snc,scd->snd", at_logits, weights[..., :-1])


def predictive(
    posterior: Posterior,
    inputs: Array,
    kernel: Array,
    bias: Array,
    key: Array,
    *,
    samples: int = 64,
    likelihood: Likelihood = "softmax",
) -> Array:
    """Return the mean of the samples' probabilities, [N, C]: Monte Carlo estimates of the predictive distribution.

    inputs: [N, D], at the last layer; kernel: [D, C]; bias: [C]. With a wide posterior they are less certain than the
    probabilities at its centre.

    Raises:
      ValueError: an unknown likelihood, samples < 1.

    >>> x, kernel, bias = jnp.ones((1, 1)), jnp.array([[2.0, -2.0]]), jnp.zeros(2)
    >>> sure, unsure = (posterior(precision(x, kernel, bias), prior_precision=p) for p in (1e6, 0.1))
    >>> p, q = (predictive(found, x, kernel, bias, jax.random.key(0)) for found in (sure, unsure))
    >>> round(float(p[0, 0]), 2), bool(q[0, 0] < p[0, 0])
    (0.98, True)
    """
    check_likelihood(likelihood)
    if samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}")
    logits = sampled_logits(inputs, sample_weights(posterior, kernel, bias, key, samples))
    return jnp.mean(jax.nn.softmax(logits) if likelihood == "softmax" else jax.nn.sigmoid(logits), axis=0)


def extended(inputs: Array) -> Array:
    """Return inputs [N, D] with a 1 appended, [N, D+1], in float32 at least."""
    inputs = inputs.astype(jnp.promote_types(inputs.dtype, jnp.float32))
    return jnp.concatenate([inputs, jnp.ones_like(inputs[:, :1])], axis=1)


def _logits(inputs: Array, kernel: Array, bias: Array) -> Array:
    return inputs.astype(jnp.promote_types(inputs.dtype, jnp.float32)) @ kernel + bias
