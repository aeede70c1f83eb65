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


class Posterior(NamedTuple):
    """Factor of a precision: lower Cholesky L of Λ + jitter I, [P, P] dense or [C, D+1, D+1] by blocks; jitter scalar.

    >>> x, w, b = jnp.ones((5, 2)), jnp.zeros((2, 3)), jnp.zeros(3)
    >>> found = posterior(precision(x, w, b), prior_precision=1.0)
    >>> found.factor.shape, float(found.jitter)
    ((9, 9), 0.0)
    """

    factor: Array
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

    >>> float(posterior(jnp.zeros((2, 2)), 4.0).factor[0, 0])
    2.0
    """
    check_prior_precision(prior_precision)
    eye = jnp.eye(precision_sum.shape[-1], dtype=precision_sum.dtype)
    whole = precision_sum + prior_precision * eye
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
    return Posterior(factor, jitter)


def zero_after(x: Array) -> Array:
    """Return a scalar 0 that is known only once x is: what it is added to has to wait for x.

    XLA's batched LAPACK kernels on CPU (under vmap, or by blocks) wait for the very threads that they run on: of two at
    once on two cores neither ever ends. So one has to need the outcome of the other.

    >>> float(zero_after(jnp.array([3.0, jnp.nan]))), float(zero_after(jnp.array([jnp.nan])))
    (0.0, 0.0)
    """
    return jnp.fmin(jnp.abs(x.ravel()[0]), 0)  # the compiler does not see that this is 0; fmin passes over a NaN


def posteriors(precision_sums: Mapping[str, Array], prior_precision: float | Array) -> dict[str, Posterior]:
    """Return each one's `posterior`, {name: Posterior}, decomposed one after another.

    See `zero_after` for why.

    >>> sorted(posteriors({"a": jnp.eye(2), "b": jnp.eye(3)}, 1.0))
    ['a', 'b']
    """
    found: dict[str, Posterior] = {}
    after = jnp.zeros((), jnp.float32)
    for name, total in precision_sums.items():
        found[name] = posterior(total, prior_precision + after)
        after = zero_after(found[name].factor)
    # and draws of the first wait for the last decomposition
    return {name: made._replace(factor=made.factor + after) for name, made in found.items()}


def prior_posterior(inputs: int, outputs: int, prior_precision: float | Array, likelihood: Likelihood) -> Posterior:
    """Return the posterior before any data, N(Ŵ, I/τ), of a layer of these sizes."""
    empty = empty_precision(inputs, outputs, likelihood)
    factor = jnp.broadcast_to(jnp.sqrt(prior_precision) * jnp.eye(empty.shape[-1]), empty.shape)
    return Posterior(factor.astype(jnp.float32), jnp.zeros((), jnp.float32))


def _warn_of_jitter(jitter: Array) -> None:
    if jitter > 0:
        message = (
            "a Laplace posterior is not positive definite in float32: at least 1e-6 of the mean of its diagonal is added to "
            "the diagonal; a larger prior_precision avoids it"
        )
        warnings.warn(message, UserWarning, stacklevel=1)


def deviations(posterior: Posterior, key: Array, samples: int, after: float | Array = 0.0) -> Array:
    """Return draws of W − Ŵ from the posterior: [S, P] from a dense factor, [S, C, D+1] from one by blocks.

    The draws are L⁻ᵀ ε with standard normal ε, so that their covariance is (L Lᵀ)⁻¹. after: `zero_after` of what must
    come first: the draws of another posterior in the same program.
    """
    factor = posterior.factor
    noise = jax.random.normal(key, (*factor.shape[:-1], samples), factor.dtype) + after
    solved = jax.scipy.linalg.solve_triangular(factor, noise, lower=True, trans=1)
    return jnp.moveaxis(solved, -1, 0)


def sample_weights(
    posterior: Posterior, kernel: Array, bias: Array, key: Array, samples: int, after: float | Array = 0.0
) -> Array:
    """Return draws of the last layer's weights, [S, C, D+1], the bias in the last column.

    kernel: [D, C]; bias: [C]; after: see `deviations`.

    >>> x, kernel, bias = jnp.eye(2), jnp.ones((2, 3)), jnp.zeros(3)
    >>> sure = posterior(precision(x, kernel, bias), prior_precision=1e12)  # no doubt at all
    >>> draws = sample_weights(sure, kernel, bias, jax.random.key(0), samples=5)
    >>> draws.shape, bool(jnp.allclose(draws, jnp.array([1.0, 1.0, 0.0]), atol=1e-4))
    ((5, 3, 3), True)
    """
    centre = jnp.concatenate([kernel.T, bias[:, None]], axis=1).astype(posterior.factor.dtype)
    return centre + deviations(posterior, key, samples, after).reshape(samples, *centre.shape)


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
    after: float | Array = 0.0,
) -> Array:
    """Return the mean of the samples' probabilities, [N, C]: Monte Carlo estimates of the predictive distribution.

    inputs: [N, D], at the last layer; kernel: [D, C]; bias: [C]. With a wide posterior they are less certain than the
    probabilities at its centre. after: see `deviations`.

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
    logits = sampled_logits(inputs, sample_weights(posterior, kernel, bias, key, samples, after))
    return jnp.mean(jax.nn.softmax(logits) if likelihood == "softmax" else jax.nn.sigmoid(logits), axis=0)


def extended(inputs: Array) -> Array:
    """Return inputs [N, D] with a 1 appended, [N, D+1], in float32 at least."""
    inputs = inputs.astype(jnp.promote_types(inputs.dtype, jnp.float32))
    return jnp.concatenate([inputs, jnp.ones_like(inputs[:, :1])], axis=1)


def _logits(inputs: Array, kernel: Array, bias: Array) -> Array:
    return inputs.astype(jnp.promote_types(inputs.dtype, jnp.float32)) @ kernel + bias
