"""Which objectives reach which parameters, read off the program and never off values.

The gradient of each objective is traced to a jaxpr. A leaf that an objective does not reach comes out of that program
as a literal zero, broadcast to the leaf's shape; this module recognises those literals, through the few primitives that
keep a zero a zero. It errs to one side only: a leaf may be called touched although its gradient is always zero (for
instance when losses were stacked into one vector and indexed again), never the reverse.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

# Primitives whose output is zero wherever all their array inputs are zero, whatever their parameters say.
_ZERO_IN_ZERO_OUT = frozenset(
    """
    broadcast_in_dim convert_element_type reshape squeeze expand_dims transpose neg copy copy_p add_any add sub
    reduce_sum slice concatenate rev stop_gradient pvary pcast psum psum_invariant mul
    """.split()
)


def _sub_jaxpr(eqn: Any) -> Any | None:
    """Return the body of a call-like equation (jit, remat, custom calls), whose inputs are the equation's inputs."""
    for name in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        if name in eqn.params:
            body = eqn.params[name]
            body = getattr(body, "jaxpr", body)
            if len(body.invars) == len(eqn.invars):
                return body
    return None


_CALLS = frozenset(
    """
    jit pjit closed_call core_call remat checkpoint remat2 custom_jvp_call custom_vjp_call
    """.split()
)


def _zero_outputs(jaxpr: Any, zero_inputs: Sequence[bool]) -> list[bool]:
    """Say for each output of `jaxpr` whether it is zero by construction, given which inputs are."""
    zero = {var for var, is_zero in zip(jaxpr.invars, zero_inputs, strict=True) if is_zero}

    def is_zero(atom: Any) -> bool:
        if hasattr(atom, "val"):  # a literal
            return not np.any(np.asarray(atom.val))
        return atom in zero

    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        if name in _CALLS:
            body = _sub_jaxpr(eqn)
            outs = [False] * len(eqn.outvars) if body is None else _zero_outputs(body, [is_zero(v) for v in eqn.invars])
            zero.update(var for var, out in zip(eqn.outvars, outs, strict=True) if out)
        elif name in _ZERO_IN_ZERO_OUT and eqn.invars and all(is_zero(v) for v in eqn.invars):
            zero.update(eqn.outvars)
    return [is_zero(v) for v in jaxpr.outvars]


def touched_leaves(gradient: Callable[[Any], Sequence[Any]], params: Any) -> np.ndarray:
    """Return bool[K, leaves]: True where the k-th of the gradients of `gradient(params)` can be other than zero.

    `gradient` maps params to K trees like params. It is traced, never run.
    """
    jaxpr = jax.make_jaxpr(lambda p: [jax.tree.leaves(g) for g in gradient(p)])(params).jaxpr
    zeros = np.asarray(_zero_outputs(jaxpr, [False] * len(jaxpr.invars)), bool)
    return ~zeros.reshape(-1, len(jax.tree.leaves(params)))
