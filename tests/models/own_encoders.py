"""Encoders as a user would write them, found by import path."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.models import NnxEncoder


class Linear(nn.Module):
    width: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, train):
        return nn.Dense(self.width, dtype=self.dtype)(x)


def initialise(key, x, width=3):
    return {"w": jax.random.normal(key, (x.shape[-1], width))}


def function(params, x, train, rngs, width=3):
    y = jnp.tanh(x @ params["w"])
    if "dropout" in rngs:
        y = y * jax.random.bernoulli(rngs["dropout"], 0.5, y.shape)
    return y


class Net(nnx.Module):
    def __init__(self, width, rngs):
        self.linear = nnx.Linear(4, width, rngs=rngs)
        self.norm = nnx.BatchNorm(width, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x, train):
        x = self.norm(self.linear(x), use_running_average=not train)
        return nnx.relu(self.dropout(x, deterministic=not train))


def nnx_net(width=3):
    return NnxEncoder(lambda rngs: Net(width, rngs))


def flat(params, x, train, rngs):
    return x.reshape(-1)


def wrong_width(params, x, train, rngs):
    return x[:, :2] @ params["w"]


def pair(params, x, train, rngs):
    return x, x


def nothing(key, x):
    return {}


NUMBER = 3
