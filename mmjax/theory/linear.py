"""The linear case, in closed form: least squares, linear heads, and the quality of a linear representation.

Source: Huang et al., "What Makes Multi-Modal Learning Better than Single (Provably)", the linear case: g(x) = A^T x,
h(z) = beta^T z, squared error without a half, noise uncorrelated with x, Sigma = E[x x^T].
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from numpy.typing import ArrayLike, NDArray

from mmjax.data.dataset import Task
from mmjax.losses import example_losses


def eta_linear(
    a: ArrayLike, a_star: ArrayLike, beta_star: ArrayLike, sigma: ArrayLike
) -> NDArray[np.float64] | np.float64:
    """Return eta(A) = beta*^T [A*^T S A* - A*^T S A (A^T S A)^+ A^T S A*] beta*, with S = Sigma, in float64.

    It is the squared length of what is left of S^(1/2) A* beta* beside the span of S^(1/2) A, and is computed so: never
    negative, and without the square of a condition number. 0 at A*, the same for A and A R with an invertible R.

    a: [..., d, k], one representation or many. a_star: [d, k*]. beta_star: [k*] or [k*, q]; q outputs are summed.
    sigma: [d, d], symmetric and positive semi-definite. Returns [...].

    Raises:
      ValueError: shapes that do not fit, a sigma that is no covariance, values that are not finite.

    >>> a_star = np.array([[1.0], [1.0]])
    >>> bool(eta_linear(a_star, a_star, [2.0], np.eye(2)) < 1e-12)
    True
    >>> round(float(eta_linear([[1.0], [0.0]], a_star, [2.0], np.eye(2))), 12)
    4.0
    """
    a, a_star, sigma = (np.asarray(x, np.float64) for x in (a, a_star, sigma))
    beta_star = np.asarray(beta_star, np.float64)
    beta_star = beta_star[:, None] if beta_star.ndim == 1 else beta_star
    for name, array in (("a", a), ("a_star", a_star), ("beta_star", beta_star), ("sigma", sigma)):
        if array.ndim < 2 or (name != "a" and array.ndim != 2):
            raise ValueError(f"{name} has shape {array.shape}; it must be a matrix")
        if not np.isfinite(array).all():
            raise ValueError(f"{name} must be finite; it holds NaN or infinity")
    d = len(sigma)
    if not (sigma.shape == (d, d) and a.shape[-2] == d and len(a_star) == d and a_star.shape[1] == len(beta_star)):
        raise ValueError(
            f"shapes do not fit: a {a.shape}, a_star {a_star.shape}, beta_star {beta_star.shape}, sigma {sigma.shape}; "
            "expected [..., d, k], [d, k*], [k*, q], [d, d]"
        )
    eps = np.finfo(np.float64).eps
    values, vectors = np.linalg.eigh(sigma)
    scale = np.abs(values).max(initial=0.0)
    if not np.allclose(sigma, sigma.T, rtol=1e-8, atol=1e-8 * scale) or values.min(initial=0.0) < -1e-8 * scale:
        raise ValueError("sigma must be a covariance: symmetric, with no negative eigenvalue")
    root = np.sqrt(np.maximum(values, 0.0))[:, None] * vectors.T  # root^T root = sigma
    target = root @ a_star @ beta_star
    span, singular, _ = np.linalg.svd(root @ a, full_matrices=False)
    cut = singular.max(axis=-1, keepdims=True, initial=0.0) * max(a.shape[-2:]) * eps
    span = span * (singular > cut)[..., None, :]
    rest = target - span @ (np.swapaxes(span, -1, -2) @ target)
    return np.sum(rest**2, axis=(-2, -1))


def least_squares(x: Array, y: Array) -> Array:
    """Return the least-squares solution w [p, q] of x [n, p] w = y [n, q] that has the smallest norm.

    By the eigenvalues of the smaller Gram matrix, those below the rounding of the largest counting as 0. That squares
    the condition number, so x must be float64 (`with jax.enable_x64(True)`). It is for many samples at once under jit
    and vmap, of which QR and SVD are no good: XLA's batched ones take five times as long on CPU, and two that run at
    once wait for each other for ever. So let no other decomposition be independent of this one in the same program.

    Raises:
      ValueError: an x that is not float64.

    >>> with jax.enable_x64(True):
    ...     print(least_squares(jnp.array([[1.0, 1.0]]), jnp.array([[2.0]])).ravel().round(9).tolist())
    [1.0, 1.0]
    """
    if x.dtype != jnp.float64:
        raise ValueError(f"x must be float64 (call under jax.enable_x64(True)), got {x.dtype}")
    n, p = x.shape
    tall = n >= p
    values, vectors = jnp.linalg.eigh(x.T @ x if tall else x @ x.T)
    keep = values > values[-1] * max(n, p) * jnp.finfo(x.dtype).eps
    inverse = jnp.where(keep, 1 / jnp.where(keep, values, 1), 0)[:, None]

    def solve(right: Array) -> Array:
        return vectors @ (inverse * (vectors.T @ right))

    return solve(x.T @ y) if tall else x.T @ solve(y)


def targets(task: Task, label: Array) -> Array:
    """Return what least squares fits, float32 [N, C]: one-hot classes, 0 and 1, or the values.

    >>> targets(Task("classification", 3), jnp.array([2, 0])).tolist()
    [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    """
    if task.kind == "classification":
        return jax.nn.one_hot(label, task.num_outputs)
    return label.reshape(len(label), -1).astype(jnp.float32)


@dataclass(frozen=True)
class LinearHead:
    """Linear heads with an offset, z -> beta^T z + c, as a `HeadClass`.

    regression: least squares (of smallest norm), its loss the squared error summed over outputs, without a half.
    classification and multilabel: cross-entropy in nats (multilabel: mean over labels), minimised by L-BFGS with
    `penalty`/2 |beta|^2, without which separable features have no minimum.

    >>> head = LinearHead(Task("classification", 2))
    >>> z, label = jnp.array([[-2.0], [-1.0], [1.0], [2.0]]), jnp.array([0, 0, 1, 1])
    >>> bool(head.losses(head.fit(z, label), z, label).max() < 0.1)
    True
    """

    task: Task
    penalty: float = 1e-3
    steps: int = 100

    def fit(self, features: Array, label: Array) -> tuple[Array, Array, Array]:
        """Return (beta [D, C], c [C], mean [D]) of z -> beta^T (z - mean) + c: with the mean in c, digits would cancel."""
        if self.task.kind == "regression":
            x, y = (np.asarray(array, np.float64) for array in (features, targets(self.task, label)))
            mean = x.mean(axis=0).astype(np.float32)  # as it will be subtracted
            x = x - mean
            beta = np.linalg.lstsq(x - x.mean(axis=0), y - y.mean(axis=0))[0]
            offset = y.mean(axis=0) - x.mean(axis=0) @ beta
            return jnp.asarray(beta, jnp.float32), jnp.asarray(offset, jnp.float32), jnp.asarray(mean)
        return self._minimise(features, label)

    def _minimise(self, features: Array, label: Array) -> tuple[Array, Array, Array]:
        mean = features.mean(axis=0)
        spread = features.std(axis=0)
        # a feature that never varies says nothing; with a scale of 1 its weight stays 0
        spread = jnp.where(spread > 1e-6 * (jnp.abs(mean) + spread.max()), spread, 1.0)
        z = (features - mean) / spread
        optimizer = optax.lbfgs()
        start = (jnp.zeros((z.shape[1], self.task.num_outputs)), jnp.zeros(self.task.num_outputs))

        def objective(head: tuple[Array, Array]) -> Array:
            loss = example_losses(self.task, z @ head[0] + head[1], label).mean()
            return loss + 0.5 * self.penalty * jnp.sum(head[0] ** 2)

        value_and_grad = optax.value_and_grad_from_state(objective)

        def step(carry: tuple, _: None) -> tuple[tuple, None]:
            head, state = carry
            value, gradient = value_and_grad(head, state=state)
            updates, state = optimizer.update(gradient, state, head, value=value, grad=gradient, value_fn=objective)
            return (optax.apply_updates(head, updates), state), None

        (head, _), _ = jax.lax.scan(step, (start, optimizer.init(start)), length=self.steps)
        return head[0] / spread[:, None], head[1], mean

    def losses(self, parameters: tuple[Array, Array, Array], features: Array, label: Array) -> Array:
        """Return the loss of each example, [N]."""
        beta, offset, mean = parameters
        return example_risks(self.task, (features - mean) @ beta + offset, label)


def example_risks(task: Task, logits: Array, label: Array) -> Array:
    """Return each example's loss as risks are told here: the training loss, but squared error without its half.

    logits: [..., N, C]; label: [N] or [N, L]. Returns [..., N].

    >>> example_risks(Task("regression", 2), jnp.array([[1.0, 2.0]]), jnp.array([[0.0, 0.0]])).tolist()
    [5.0]
    """
    losses = jax.vmap(lambda x: example_losses(task, x, label))(logits.reshape(-1, *logits.shape[-2:]))
    return (2 if task.kind == "regression" else 1) * losses.reshape(logits.shape[:-1])
