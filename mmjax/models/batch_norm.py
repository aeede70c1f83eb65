"""Batch statistics of the examples that are there: absent ones have no part in the mean and variance of the others."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array


def statistics_over(here: Array) -> AbstractContextManager[None]:
    """Return a context in which every `nn.BatchNorm` normalises by, and remembers, the statistics of some examples.

    here: bool [B], the examples that count; under the module's `axis_name` this device's, and the statistics are those of
    all devices together. Where none is there the running statistics stand. It reaches every linen module called in the
    context whose input has the B examples first, other people's too; in evaluation nothing changes.

    >>> norm = nn.BatchNorm(use_running_average=False, momentum=0.0)
    >>> x = jnp.array([[1.0], [3.0], [99.0]])
    >>> variables = norm.init(jax.random.key(0), x)
    >>> with statistics_over(jnp.array([True, True, False])):
    ...     y, after = norm.apply(variables, x, mutable=["batch_stats"])
    >>> y[:2].round(3).tolist(), after["batch_stats"]["mean"].tolist()
    ([[-1.0], [1.0]], [2.0])
    """

    def intercept(call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        module = context.module
        if not isinstance(module, nn.BatchNorm) or context.method_name != "__call__":
            return call(*args, **kwargs)
        x = args[0] if args else kwargs["x"]
        running = args[1] if len(args) > 1 else kwargs.get("use_running_average")
        axis = module.axis if isinstance(module.axis, int) else -1
        if (
            nn.merge_param("use_running_average", module.use_running_average, running)
            or module.is_initializing()
            or x.shape[:1] != here.shape
            or axis % x.ndim == 0
        ):
            return call(*args, **kwargs)
        return _normalise(module, x, here, axis % x.ndim)

    return nn.intercept_methods(intercept)


def _normalise(module: nn.BatchNorm, x: Array, here: Array, axis: int) -> Array:
    """Do what `module` does in training, with statistics over the examples that are `here`; axis: the features'."""
    others = tuple(i for i in range(x.ndim) if i != axis)
    shape = [x.shape[i] if i == axis else 1 for i in range(x.ndim)]
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    counted = jnp.where(here.reshape(-1, *[1] * (x.ndim - 1)), wide, 0)
    total, squares = jnp.sum(counted, axis=others), jnp.sum(jnp.square(counted), axis=others)
    count = jnp.sum(here).astype(wide.dtype) * (x.size // (x.shape[0] * x.shape[axis]))
    if module.axis_name is not None:
        total, squares, count = jax.lax.psum((total, squares, count), module.axis_name)
    least = jnp.maximum(count, 1)
    mean = total / least
    variance = jnp.maximum(squares / least - jnp.square(mean), 0)  # rounding may leave less than 0
    for name, value in (("mean", mean), ("var", variance)):
        old: Any = module.get_variable("batch_stats", name)
        new = module.momentum * old + (1 - module.momentum) * value
        module.put_variable("batch_stats", name, jnp.where(count > 0, new, old))
    factor = jax.lax.rsqrt(variance + module.epsilon)
    if module.use_scale:
        factor = factor * module.get_variable("params", "scale")
    y = (wide - mean.reshape(shape)) * factor.reshape(shape)
    if module.use_bias:
        y = y + module.get_variable("params", "bias").reshape(shape)
    return y.astype(x.dtype if module.dtype is None else module.dtype)
