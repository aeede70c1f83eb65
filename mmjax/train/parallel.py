"""Two routes over several devices from the same pure step: jit with a sharded batch, and pmap."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

PyTree = Any
AXIS = "data"


@dataclass(frozen=True)
class Route:
    """How a step runs on `devices`: "jit" (a Mesh, the batch sharded over it, the state replicated) or "pmap"."""

    kind: Literal["jit", "pmap"]
    devices: tuple[jax.Device, ...]

    @property
    def axis_name(self) -> str | None:
        """Name of the axis that the step reduces over itself; None under jit, which does so unasked."""
        return AXIS if self.kind == "pmap" else None

    @cached_property
    def mesh(self) -> Mesh:
        """The devices as a one-axis mesh."""
        return jax.make_mesh((len(self.devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=self.devices)

    @cached_property
    def replicated(self) -> NamedSharding:
        """The whole array on every device."""
        return NamedSharding(self.mesh, PartitionSpec())

    @cached_property
    def sharded(self) -> NamedSharding:
        """The first axis split over the devices."""
        return NamedSharding(self.mesh, PartitionSpec(AXIS))

    def place_state(self, state: PyTree) -> PyTree:
        """Put a state on every device, as the compiled step takes it."""
        state = jax.device_put(state, self.replicated)
        if self.kind == "jit":
            return state
        n = len(self.devices)
        return jax.jit(lambda s: jax.tree.map(lambda x: jnp.stack([x] * n), s), out_shardings=self.sharded)(state)

    def local_state(self, state: PyTree) -> PyTree:
        """Return one copy of a placed state, replicated: to evaluate, to save."""
        if self.kind == "jit":
            return state
        return jax.jit(lambda s: jax.tree.map(lambda x: x[0], s), out_shardings=self.replicated)(state)

    def place_batch(self, batch: PyTree) -> PyTree:
        """Make a batch of host arrays what the compiled programs take: under jit itself, under pmap [devices, ...].

        The arrays stay on the host: the programs put each device's part there faster than `jax.device_put` does.
        """
        if self.kind == "jit":
            return batch
        n = len(self.devices)
        return jax.tree.map(lambda x: x.reshape(n, x.shape[0] // n, *x.shape[1:]), batch)

    def compile(
        self, function: Callable[..., Any], state: PyTree, batch: PyTree, *, donate: bool
    ) -> Callable[..., Any]:
        """Compile function(state, batch) ahead of its first call; every output comes out replicated.

        The batch, and nothing else, may come from the host at a call.
        """
        donated = (0,) if donate else ()
        if self.kind == "pmap":
            mapped = jax.pmap(function, axis_name=AXIS, devices=self.devices, donate_argnums=donated)
            program = mapped.lower(state, batch).compile()
        else:
            placed = partial(jax.jit, in_shardings=(self.replicated, self.sharded), out_shardings=self.replicated)
            program = placed(function, donate_argnums=donated).lower(state, batch).compile()

        def call(state: PyTree, batch: PyTree) -> Any:
            with jax.transfer_guard_host_to_device("allow"):
                return program(state, batch)

        return call

    def read(self, outputs: PyTree) -> PyTree:
        """Fetch a step's small outputs to the host, one copy."""
        host = jax.device_get(outputs)
        return host if self.kind == "jit" else jax.tree.map(lambda x: x[0], host)


def make_route(kind: Literal["jit", "pmap"], num_devices: int, batch_size: int) -> Route:
    """Choose the devices: `num_devices` of those there, 0 for all.

    Raises:
      ValueError: more devices asked for than there are, or a batch that does not divide evenly over them.
    """
    available = jax.devices()
    if num_devices > len(available):
        raise ValueError(f"train.devices = {num_devices}, but there are only {len(available)}")
    devices = tuple(available[: num_devices or len(available)])
    if batch_size % len(devices):
        raise ValueError(
            f"train.batch_size = {batch_size} does not divide evenly over {len(devices)} devices: "
            f"take a multiple of {len(devices)}, or set train.devices"
        )
    return Route(kind, devices)
