"""Small two- and three-modality problems that the contract's tests share."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

Params = dict[str, Any]

MODALITIES = ("audio", "image")  # "audio" sorts before "fusion": dict order and objective order differ


def make_params(seed: int = 0, modalities: tuple[str, ...] = MODALITIES, features: int = 4, hidden: int = 5) -> Params:
    """Encoders W_m, a fusion head with a hidden layer, one linear head a modality; 3 classes, inputs [B, 6]."""
    keys = iter(jax.random.split(jax.random.key(seed), 4 * len(modalities) + 4))

    def normal(*shape: int) -> jax.Array:
        return 0.5 * jax.random.normal(next(keys), shape)

    return {
        "encoder": {m: {"kernel": normal(6, features)} for m in modalities},
        "fusion": {
            "hidden": normal(features * len(modalities), hidden),
            "kernel": normal(hidden, 3),
            "bias": normal(3),
        },
        "head": {m: {"kernel": normal(features, 3), "bias": normal(3)} for m in modalities},
    }


def make_batch(seed: int = 1, modalities: tuple[str, ...] = MODALITIES, size: int = 8) -> dict[str, Any]:
    keys = jax.random.split(jax.random.key(seed), len(modalities) + 1)
    return {
        "inputs": {m: jax.random.normal(k, (size, 6)) for m, k in zip(modalities, keys[1:], strict=True)},
        "label": jax.random.randint(keys[0], (size,), 0, 3),
    }


def cross_entropy(logits: jax.Array, label: jax.Array) -> jax.Array:
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), label[:, None], axis=1))


def encode(params: Params, batch: dict[str, Any]) -> dict[str, jax.Array]:
    return {m: jnp.tanh(x @ params["encoder"][m]["kernel"]) for m, x in batch["inputs"].items()}


def head_losses_aux(params: Params, features: dict[str, jax.Array], batch: dict[str, Any]) -> tuple[Any, Any]:
    joined = jnp.concatenate([features[m] for m in sorted(features)], axis=-1)
    hidden = jnp.tanh(joined @ params["fusion"]["hidden"])
    last = {"fusion": (hidden, params["fusion"]["kernel"], params["fusion"]["bias"])}
    last |= {m: (z, params["head"][m]["kernel"], params["head"][m]["bias"]) for m, z in features.items()}
    losses = {name: cross_entropy(a @ w + b, batch["label"]) for name, (a, w, b) in last.items()}
    return losses, {"last_layer": last}


def head_losses(params: Params, features: dict[str, jax.Array], batch: dict[str, Any]) -> dict[str, jax.Array]:
    return head_losses_aux(params, features, batch)[0]


def losses_fn(params: Params, batch: dict[str, Any]) -> dict[str, jax.Array]:
    return head_losses(params, encode(params, batch), batch)


def expected_rows(params: Params, batch: dict[str, Any], names: tuple[str, ...]) -> list[Params]:
    """The reference: one plain jax.grad an objective."""
    return [jax.grad(lambda p, n=n: losses_fn(p, batch)[n])(params) for n in names]
