"""Three known behaviours of BOGC on made-up gradients: short ones are favoured, Adam cancels, drift to uniform.

    python benchmarks/bogc_behaviours.py

Takes seconds on a CPU. docs/methods.md quotes what it prints.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax import Array

from mmjax.bayes.moments import ema
from mmjax.optim import bogc

SIZE = 1000
"""Entries of the one parameter."""


def weight_of_first(rows: Callable[[Array, Array], Array], steps: int, *, relative: bool = False) -> float:
    """Return the first of two objectives' weight, the mean over the last tenth of the steps.

    rows: (key, step) -> gradients [2, SIZE].
    """
    tx = bogc(ema(0.9), level="parameters", num_objectives=2, conservatism=False, relative=relative)
    params = {"w": jnp.zeros(SIZE)}

    def step(state: optax.OptState, t: Array) -> tuple[optax.OptState, Array]:
        grads = {"w": rows(jax.random.fold_in(jax.random.key(0), t), t)}
        state = tx.update(grads, state, params)[1]
        return state, state.weights[0]

    weights = jax.lax.scan(step, tx.init(params), jnp.arange(steps))[1]
    return float(jnp.mean(weights[-(steps // 10) :]))


def short_gradients(scale: float, *, relative: bool = False) -> float:
    """Independent standard normal gradients, the first objective's times `scale`."""
    scales = jnp.array([[scale], [1.0]])
    return weight_of_first(lambda key, t: scales * jax.random.normal(key, (2, SIZE)), 200, relative=relative)


def drift(shrinking_to: float, steps: int = 300) -> float:
    """Gradients of mean 1 with noise of 0.5 and 1, both shrinking evenly to this part of their start."""

    def rows(key: Array, t: Array) -> Array:
        noise = jnp.array([[0.5], [1.0]]) * jax.random.normal(key, (2, SIZE))
        return (1 + noise) * shrinking_to ** (t / steps)

    return weight_of_first(rows, steps)


def moved_by_factors(optimizer: optax.GradientTransformation, steps: int = 200) -> float:
    """Return how far constant factors of 0.1 to 10 move where the optimizer leads, relative to its way without them."""
    factors = jnp.exp(jax.random.uniform(jax.random.key(1), (SIZE,), minval=jnp.log(0.1), maxval=jnp.log(10.0)))

    def end(by: Array) -> Array:
        def step(carry: tuple[Array, optax.OptState], t: Array) -> tuple[tuple[Array, optax.OptState], None]:
            w, state = carry
            noise = jax.random.normal(jax.random.fold_in(jax.random.key(2), t), (SIZE,))
            update, state = optimizer.update(by * (0.3 + noise), state, w)
            return (w + update, state), None

        start = jnp.zeros(SIZE)
        return jax.lax.scan(step, (start, optimizer.init(start)), jnp.arange(steps))[0][0]

    plain = end(jnp.ones(SIZE))
    return float(jnp.linalg.norm(end(factors) - plain) / jnp.linalg.norm(plain))


def main() -> None:
    """Print the three."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    for scale in (1.0, 2.0, 10.0):
        plain, relative = short_gradients(scale), short_gradients(scale, relative=True)
        print(f"gradients {scale:g} times as long: weight {plain:.2f} of 2, with `relative` {relative:.2f}")
    print(f"factors of 0.1 to 10 move the end of SGD by {100 * moved_by_factors(optax.sgd(1e-3)):.0f} %")
    print(f"factors of 0.1 to 10 move the end of Adam by {100 * moved_by_factors(optax.adam(1e-3)):.1g} %")
    for to in (1.0, 1e-4, 1e-8):
        print(f"gradients shrinking to {to:g}: weight {drift(to):.3f} of 2")


if __name__ == "__main__":
    main()
