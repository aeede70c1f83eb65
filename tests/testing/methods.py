"""How each registered method is held to its promises: with which options, in which forms."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import optax

from mmjax.config import Layout, MethodContext
from mmjax.data import Task
from mmjax.optim import METHODS, Promise
from mmjax.testing import problems

QUICK = (3,)
THOROUGH = (1, 2, 3, 5, 10)


@dataclass(frozen=True)
class Case:
    """One way of building a method, and what it is held to.

    options: K -> options of its configuration, the same for every K if "absent_objectives" is to hold. without: promises
    that need other options (another case has them). only: properties to check; None: all. checks: further arguments of
    `check_combiner`.
    """

    options: Callable[[int], Mapping[str, Any]] = lambda k: {}
    without: frozenset[Promise] = frozenset()
    only: frozenset[Promise] | None = None
    checks: Mapping[str, Any] = field(default_factory=dict)

    def promised(self, name: str) -> frozenset[Promise]:
        """The promises that this case checks."""
        promises = METHODS[name].promises - self.without
        return promises if self.only is None else promises & self.only


BALANCED = frozenset({Promise.UNIFORM_WHEN_BALANCED})
RANDOM = {"default": Case(checks={"random": True})}


def summing(**checks: Any) -> dict[str, Case]:
    """A method that is uniform when balanced with scale="sum", and a mean by default."""
    return {
        "default": Case(without=BALANCED, checks=checks),
        "scale = sum": Case(options=lambda k: {"scale": "sum"}, only=BALANCED, checks=checks),
    }


def shares_of_logits(problem: problems.Problem) -> dict[str, Any]:
    """What AGM's objective rule hands over."""
    losses = problem.values[1:]
    return {"shapley_losses": losses, "kappa": np.exp(0.1 * np.tanh(losses))}


def of_ema(k: int) -> Mapping[str, Any]:
    """BOGC as far as the promises hold: its other settings want gradients at the features."""
    return {"moments": "ema", "level": "parameters", "conservatism": False}


CASES: dict[str, dict[str, Case]] = {
    "agm": {"default": Case(checks={"extra": shares_of_logits})},
    "bogc": {
        "ema, parameters": Case(options=of_ema, without=BALANCED),
        # later, balanced gradients that differ from step to step have different evidence
        "ema, parameters, first step": Case(options=of_ema, only=BALANCED, checks={"steps": 1}),
    },
    "famo": summing(),
    "gblend": {"default": Case(checks={"extra": lambda problem: {"validation_values": 1.1 * problem.values}})},
    "graddrop": RANDOM,
    "mimo": {
        "default": Case(without=BALANCED),
        "penalty = M": Case(options=lambda k: {"penalty": float(max(k - 1, 1))}, only=BALANCED),
    },
    "ogm_ge": RANDOM,
    "pcgrad": RANDOM,
    "rlw": RANDOM,
    "stch": summing(),
}
for _averaging in ("mgda", "upgrad", "imtl_g", "aligned_mtl"):
    CASES[_averaging] = {
        "default": Case(without=BALANCED),
        "scale = sum": Case(options=lambda k: {"scale": "sum"}, only=BALANCED),
    }
"""{method: {case: Case}}; a method that is not here has one case, its default options."""


def cases_of(name: str) -> dict[str, Case]:
    return CASES.get(name, {"default": Case()})


def maker(name: str, options: Callable[[int], Mapping[str, Any]] = lambda k: {}) -> Any:
    """K -> the method, built as the trainer builds it; an epoch is one step, so that a run sees what epochs remember."""

    def make(num_objectives: int) -> optax.GradientTransformation:
        problem = problems.random(num_objectives)
        modal = problem.modalities
        widths = dict.fromkeys(modal, problems.WIDTH) | {"fusion": problems.WIDTH * max(len(modal), 1)}
        context = MethodContext(
            names=problem.names,
            num_examples=problems.EXAMPLES,
            batch_size=problems.EXAMPLES,
            steps_per_epoch=1,
            total_steps=160,
            task=Task("classification", problems.CLASSES),
            layout=Layout(
                features=dict.fromkeys(modal, (problems.WIDTH,)),
                last_layer={name: (widths[name], problems.CLASSES) for name in problem.names},
            ),
        )
        return METHODS[name](**options(num_objectives)).build(context)

    return make
