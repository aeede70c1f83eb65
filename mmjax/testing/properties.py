"""The properties, each a function of a `Subject` that returns the first `Violation`, or None.

Problems come in the order of their size, so the first violation is on the smallest problem that shows it. Differences
are measured against the longest gradient (or the longer update): a combiner that lets gradients cancel cannot be exact
relative to what is left.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.optim.promises import Promise
from mmjax.testing import problems
from mmjax.testing.problems import Problem, Structure
from mmjax.testing.subject import Outcome, Subject

PyTree = Any

SCALES = (1.0, 1e-8, 1e-4, 1e4, 1e8)
LAZY_RTOL = 1e-5
DRAWS = 1024
"""Keys over which a random method's mean is taken."""
SIGMAS = 6.0
"""Standard errors by which two such means may differ: the largest of thousands of entries stays below 5."""


@dataclass(frozen=True)
class Violation:
    """A property that does not hold, the smallest problem that shows it (None: before any problem), and how.

    >>> print(Violation("one_compilation", None, "compiled 2 times in 3 updates"))
    one_compilation: compiled 2 times in 3 updates
    """

    property: str
    problem: Problem | None
    detail: str

    def __str__(self) -> str:
        where = "" if self.problem is None else "\n" + str(self.problem)
        return f"{self.property}: {self.detail}{where}"


class Skip(Exception):  # noqa: N818  # no error: says why a property does not apply
    """A property does not apply here."""


Failure = tuple[Problem, str] | None
Property = Callable[[Subject], Failure]


def _structures(num_objectives: int) -> tuple[Structure, ...]:
    return ("dense",) if num_objectives == 1 else ("dense", "encoders")


def _runs(subject: Subject, *kinds: Callable[..., Problem], at_least: int = 1) -> Iterator[list[Problem]]:
    """Yield runs, the problems of step after step: what a combiner remembers must not cost it a property."""
    if max(subject.num_objectives) < at_least:
        raise Skip(f"shows only with {at_least} objectives or more")
    for k in subject.num_objectives:
        if k >= at_least:
            for structure in _structures(k):
                for kind in kinds:
                    yield _run(subject, kind, k, structure)


def _run(subject: Subject, kind: Callable[..., Problem], num_objectives: int, structure: Structure) -> list[Problem]:
    """Return one problem of this kind a step, each with gradients and losses of its own."""
    return [problems.at_step(kind(num_objectives, structure, seed=step), step) for step in range(subject.steps)]


def _largest(problem: Problem, *updates: np.ndarray) -> float:
    return max([problem.norm, *(float(np.linalg.norm(u)) for u in updates)])


def _differs(got: np.ndarray, wanted: np.ndarray, scale: float, rtol: float) -> str | None:
    """Say how two flat updates differ, if their difference is above rtol times scale, or not finite."""
    gap = float(np.linalg.norm(got - wanted))
    if gap <= rtol * scale:  # False also where the gap is NaN
        return None
    text = partial_array(got), partial_array(wanted)
    return f"got {text[0]}, expected {text[1]} (distance {gap:.2g}, allowed {rtol * scale:.2g})"


def _unlike(got: Outcome, wanted: Outcome, scale: float, rtol: float) -> str | None:
    """Say how two outcomes differ, in their updates or else in their weights."""
    if broken := _differs(got.flat, wanted.flat, scale, rtol):
        return broken
    if got.weights is not None and wanted.weights is not None and not _close(got.weights, wanted.weights, rtol):
        return f"the weights are {got.weights}, expected {wanted.weights}"
    return None


def _close(weights: np.ndarray, wanted: np.ndarray, rtol: float) -> bool:
    """Compare weights; where an update is well determined, the weights may be less so."""
    return np.allclose(weights, wanted, rtol=10 * rtol, atol=10 * rtol)


def partial_array(flat: np.ndarray) -> str:
    """Print an update, shortened."""
    return np.array2string(flat, precision=5, threshold=24, edgeitems=8, separator=", ", max_line_width=100_000)


# ---- what every combiner owes --------------------------------------------------------------------------------------


def _shape_of(leaf: Any) -> tuple[Any, ...]:
    return jnp.shape(leaf), jnp.result_type(leaf)


def _is_floating(leaf: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jnp.floating)


def _sound(problem: Problem, outcome: Outcome, params: PyTree, start: PyTree) -> str | None:
    """Say what is not as it should be with the update and the state; start: the state before."""
    wanted = jax.tree.map(_shape_of, params)
    structure: Any = jax.tree.structure(outcome.update)
    if structure != jax.tree.structure(params):
        return f"the update's structure is {structure}, the parameters' {jax.tree.structure(params)}"
    got = jax.tree.map(_shape_of, outcome.update)
    if got != wanted:
        return f"the update's shapes and types are {got}, the parameters' {wanted}"
    if not np.all(np.isfinite(outcome.flat)):
        return f"the update is {partial_array(outcome.flat)}"
    before = {path: np.isfinite(leaf) for path, leaf in jax.tree.leaves_with_path(start) if _is_floating(leaf)}
    for path, leaf in jax.tree.leaves_with_path(outcome.state):
        # An entry may stand at NaN from the start (nothing is measured yet), but not come to it.
        was_finite = before.get(path, np.True_)
        was_finite = was_finite if was_finite.shape == jnp.shape(leaf) else np.True_
        if _is_floating(leaf) and np.any(was_finite & ~np.isfinite(leaf)):
            return f"the state's {jax.tree_util.keystr(path)} became {np.asarray(leaf)}"
    if outcome.weights is not None and outcome.weights.shape != (problem.num_objectives,):
        return f"the state's weights have shape {outcome.weights.shape}, expected ({problem.num_objectives},)"
    return None


def finite(subject: Subject) -> Failure:
    """The update is finite and shaped like the parameters, over several steps and at any common scale of the losses."""
    for k in subject.num_objectives:
        for structure in _structures(k):
            kinds = [f(k, structure) for f in (problems.random, problems.conflicting, problems.unequal)]
            kinds += problems.degenerate(k, structure)
            for scale in SCALES:
                state: PyTree = None
                for kind in kinds:
                    problem = problems.scaled(kind, scale)
                    for start in (None,) if state is None else (None, state):  # a first step, and one in a run
                        outcome = subject.update(problem, state=start)
                        before = subject.initial(problem) if start is None else start
                        if broken := _sound(problem, outcome, problem.arrays()["params"], before):
                            return problem, broken
                    state = outcome.state
    return None


def _frame(state: PyTree) -> Any:
    """What must not change of a state: structure, shapes, types (weak ones, too)."""
    return jax.tree.structure(state), [(jnp.shape(x), jnp.result_type(x)) for x in jax.tree.leaves(state)]


def one_compilation(subject: Subject) -> Failure:
    """The state keeps its structure, shapes and types, so that a second step compiles nothing."""
    for k in subject.num_objectives:
        problem = problems.random(k, _structures(k)[-1])
        first = subject.initial(problem)
        before = dict(subject.traces)
        second = subject.update(problem, state=first).state
        after = dict(subject.traces)
        if (then := _frame(second)) != (now := _frame(first)):
            return problem, f"the state was {now} at init and is {then} after a step"
        subject.update(problem, state=second)
        if subject.traces != after:
            count = sum(subject.traces.values()) - sum(before.values())
            return problem, f"two steps compiled {count} programs (a state with weakly typed arrays does this)"
    return None


def donatable(subject: Subject) -> Failure:
    """No two entries of the initial state are one array: a training step could not be given its memory."""
    problem = problems.random(subject.num_objectives[0])
    seen: dict[Any, str] = {}
    for path, leaf in jax.tree.leaves_with_path(subject.initial(problem)):
        name = jax.tree_util.keystr(path)
        if id(leaf) in seen:
            return problem, f"the state's {seen[id(leaf)]} and {name} are one array, which cannot be donated twice"
        seen[id(leaf)] = name
    return None


def extra_arguments(subject: Subject) -> Failure:
    """Arguments of other methods are let pass, and change nothing."""
    k = subject.num_objectives[-1]
    problem = problems.random(k, "dense")
    got, wanted = subject.update(problem, tolerates=True), subject.update(problem)
    if broken := _differs(got.flat, wanted.flat, _largest(problem), LAZY_RTOL):
        return problem, f"with an extra argument of an unknown name: {broken}"
    return None


def lazy_as_stacked(subject: Subject) -> Failure:
    """Lazy gradients and the same ones stacked give one update and one state, over two steps."""
    if len(set(subject.forms)) < 2:
        raise Skip(f"only {subject.forms[0]} gradients are taken")
    for k in subject.num_objectives:
        # Both structures once: a lazy program takes its time to compile.
        for structure in _structures(k) if k in subject.several[:1] else _structures(k)[-1:]:
            states: dict[Any, Any] = {"lazy": None, "stacked": None}
            for kind in (problems.random, problems.conflicting):
                problem = kind(k, structure)
                one = subject.update(problem, "lazy", state=states["lazy"])
                two = subject.update(problem, "stacked", state=states["stacked"])
                if broken := _unlike(one, two, _largest(problem, two.flat), LAZY_RTOL):
                    return problem, f"lazy gradients against stacked ones: {broken}"
                states = {"lazy": one.state, "stacked": two.state}
    return None


def absent_objectives(subject: Subject) -> Failure:
    """An inactive objective may hold anything, NaN included: the rest goes on as if it did not exist, for a whole run.

    When it comes back, nothing is left of what it held.
    """
    if not subject.several:
        raise Skip("there is one objective")
    for k in subject.several:
        for structure in _structures(k):
            for kind in (problems.random, problems.conflicting):
                for objective in (k - 1, 1, 0):
                    if failure := _is_absent(subject, _run(subject, kind, k, structure), objective):
                        return failure
    if len(set(subject.forms)) == 2:
        k = subject.several[-1] if len(subject.several) == 1 else subject.several[1]
        for objective in (k - 1, 0):
            problem = problems.absent(problems.random(k, "encoders"), objective)
            lazy, stacked = subject.update(problem, "lazy"), subject.update(problem, "stacked")
            if broken := _unlike(lazy, stacked, _largest(problem, stacked.flat), LAZY_RTOL):
                return problem, f"lazy gradients against stacked ones: {broken}"
    return None


def _is_absent(subject: Subject, run: list[Problem], objective: int) -> Failure:
    k = run[0].num_objectives
    state = other_state = rest_state = subject.initial(run[0])
    removable = objective > 0 and subject.can_make(k - 1) and not subject.random
    if removable:
        rest_state = subject.initial(problems.without(run[0], objective))
    for whole in run:
        problem = problems.absent(whole, objective)
        got = subject.update(problem, state=state)
        if broken := _sound(problem, got, problem.arrays()["params"], state):
            return problem, broken
        other = subject.update(problems.absent(whole, objective, 3.0), state=other_state)
        if broken := _differs(got.flat, other.flat, _largest(whole, got.flat), LAZY_RTOL):
            return problem, f"what an absent objective holds matters, NaN or 3: {broken}"
        if got.weights is not None and got.weights[objective] != 0:
            return problem, f"an absent objective has the weight {got.weights[objective]}"
        if removable:
            rest = problems.without(whole, objective)
            wanted = subject.update(rest, state=rest_state)
            weights = None if got.weights is None else np.delete(got.weights, objective)
            here = dataclasses.replace(got, weights=weights)
            if broken := _unlike(here, wanted, _largest(rest, wanted.flat), subject.rtol):
                return problem, f"not as if it did not exist: {broken}"
            rest_state = wanted.state
        state, other_state = got.state, other.state
    # It comes back: nothing of what it held while it was absent may have been kept.
    back = dataclasses.replace(problems.at_step(run[0], len(run)), active=np.ones(k, bool))
    got, other = subject.update(back, state=state), subject.update(back, state=other_state)
    if broken := _unlike(got, other, _largest(back, got.flat), LAZY_RTOL):
        return back, f"what an objective held while it was absent matters when it is back, NaN or 3: {broken}"
    # thousands of draws: once is enough
    if subject.random and subject.can_make(k - 1) and objective == k - 1 > 0 and run[0].kind == "random":
        ours = subject.over_keys(problems.absent(run[0], objective), DRAWS)[0]
        theirs = subject.over_keys(problems.without(run[0], objective), DRAWS)[0]
        if broken := _means_differ(ours, theirs):
            return problems.absent(run[0], objective), f"not as if it did not exist: {broken}"
    return None


def bfloat16(subject: Subject) -> Failure:
    """bfloat16 gradients are computed with in float32, and the update comes back in bfloat16."""
    dtype = jnp.bfloat16
    for k in subject.num_objectives[-1:]:
        base = problems.random(k)
        # What the gradients have in common is far longer than what they differ in: arithmetic in bfloat16 loses the rest.
        common = 50 * np.where(np.arange(k) % 2, -1, 1)[:, None] * problems.random(k, seed=9).matrix[:1]
        for matrix, kind in ((base.matrix, "random"), (base.matrix + common, "cancelling")):
            rounded = matrix.astype(dtype).astype(np.float32)
            problem = dataclasses.replace(base, kind=f"{kind}, in bfloat16", matrix=rounded)
            got, wanted = subject.update(problem, dtype=dtype), subject.update(problem)
            if broken := _sound(problem, got, problem.arrays(dtype)["params"], subject.initial(problem, dtype)):
                return problem, broken
            gap = np.abs(got.flat - wanted.flat)
            # Half a unit in the last place of bfloat16 (8 bits) for the result; float32 rounding of the gradients.
            allowed = 2.0**-8 * np.abs(wanted.flat) + 1e-4 * _largest(problem, wanted.flat) / np.sqrt(gap.size)
            if subject.form == "stacked" and not np.all(gap <= allowed):
                return problem, f"got {partial_array(got.flat)}, in float32 {partial_array(wanted.flat)}"
    return None


def randomness(subject: Subject) -> Failure:
    """A random method depends on `key`, and no other one does."""
    k = subject.num_objectives[-1]
    problem = problems.conflicting(k, "dense")
    first = subject.update(problem)
    others = [subject.update(dataclasses.replace(problem, seed=seed)) for seed in (1, 2, 3, 4)]
    same = [np.array_equal(first.flat, other.flat) for other in others]
    if subject.random and all(same):
        return problem, "declared random, but the update is the same for five keys"
    if not subject.random and not all(same):
        return problem, "the update depends on `key`: declare it with random=True"
    return None


def devices(subject: Subject) -> Failure:
    """Examples spread over 2, 4 or 8 devices, as many as there are, give the updates of one, drawn alike.

    Gradients are reduced, then combined.
    """
    if "lazy" not in subject.forms:
        raise Skip("only stacked gradients are taken")
    if jax.device_count() < 2:
        raise Skip("there is one device")
    count = max(n for n in (2, 4, 8) if n <= jax.device_count())
    k = subject.several[0] if subject.several else 1
    there: PyTree = None
    here: PyTree = None
    for problem in _run(subject, problems.conflicting, k, _structures(k)[-1]):
        got, wanted = subject.update_on_devices(problem, count, there), subject.update(problem, "lazy", state=here)
        if broken := _differs(got.flat, wanted.flat, _largest(problem, wanted.flat), subject.rtol):
            return problem, f"on {count} devices: {broken}"
        there, here = got.state, wanted.state
    return None


# ---- promises ------------------------------------------------------------------------------------------------------


def identity_for_one(subject: Subject) -> Failure:
    """K = 1, or only the fusion active: A(g) = g."""
    tried = [k for k in subject.num_objectives if k == 1] + list(subject.several[:1])
    for k in tried:
        for scale in SCALES:
            state: PyTree = None
            for whole in _run(subject, problems.random, k, "dense"):
                problem = problems.scaled(whole, scale)
                for objective in range(1, k):
                    problem = problems.absent(problem, objective)
                got = subject.update(problem, state=state)
                if broken := _differs(got.flat, problem.matrix[0].astype(np.float64), _largest(problem), LAZY_RTOL):
                    return problem, broken
                state = got.state
    return None


def _means_differ(one: np.ndarray, two: np.ndarray) -> str | None:
    gap = np.abs(one.mean(axis=0) - two.mean(axis=0))
    error = np.sqrt((one.var(axis=0) + two.var(axis=0)) / len(one))
    scale = max(np.abs(one).max(), np.abs(two).max())
    worst = int(np.argmax(gap - SIGMAS * error))
    if np.all(gap <= SIGMAS * error + 1e-5 * scale):
        return None
    return (
        f"the mean over {len(one)} keys of entry {worst} is {one.mean(axis=0)[worst]:.4g}, expected "
        f"{two.mean(axis=0)[worst]:.4g} (standard error {error[worst]:.2g})"
    )


def permutation_equivariant(subject: Subject) -> Failure:
    """Permuting the modalities leaves the update as it is and permutes the weights."""
    for run in _runs(subject, problems.random, problems.conflicting, problems.unequal, at_least=3):
        modal = run[0].num_objectives - 1
        for order in ([*range(1, modal), 0], [*range(modal)][::-1]):
            failure = (
                _permutes_in_the_mean(subject, run[0], order) if subject.random else _permutes(subject, run, order)
            )
            if failure:
                return failure
    return None


def _permutes(subject: Subject, run: list[Problem], order: list[int]) -> Failure:
    objectives = [0, *(1 + i for i in order)]
    there: PyTree = None
    here: PyTree = None
    for problem in run:
        moved = problems.permuted(problem, order)
        got, wanted = subject.update(moved, state=there), subject.update(problem, state=here)
        back = problems.permute_back(got.flat, problem, order)
        if broken := _differs(back, wanted.flat, _largest(problem, wanted.flat), subject.rtol):
            return moved, broken
        if got.weights is not None and wanted.weights is not None:
            expected = wanted.weights[objectives]
            if not _close(got.weights, expected, subject.rtol):
                return moved, f"the weights are {got.weights}, expected {expected}"
        there, here = got.state, wanted.state
    return None


def _permutes_in_the_mean(subject: Subject, problem: Problem, order: list[int]) -> Failure:
    if problem.kind != "random":
        return None
    moved = problems.permuted(problem, order)
    (ours, our_weights), (theirs, weights) = (subject.over_keys(p, DRAWS) for p in (moved, _rekeyed(problem)))
    broken = _means_differ(problems.permute_back(ours, problem, order), theirs)
    if broken is None and our_weights is not None and weights is not None:
        broken = _means_differ(our_weights, weights[:, [0, *(1 + i for i in order)]])
    return None if broken is None else (moved, broken)


def _rekeyed(problem: Problem) -> Problem:
    return dataclasses.replace(problem, seed=problem.seed + 17)


def stationary(subject: Subject) -> Failure:
    """Σ α_k g_k = 0 with all α_k > 0, on the shared parameters: the update is 0 there."""
    for run in _runs(subject, problems.stationary, at_least=2):
        for scale in SCALES:
            state: PyTree = None
            for problem in run:
                scaled = problems.scaled(problem, scale)
                got = subject.update(scaled, state=state)
                left, state = got.flat[problems.shared(scaled)], got.state
                # Weights exact to float32's ε give an update of √ε, for its square is what a Gramian holds.
                if not np.linalg.norm(left) <= 1e-3 * scaled.norm:
                    return scaled, f"on the shared parameters the update is {partial_array(left)}, not 0"
    return None


def non_conflicting(subject: Subject) -> Failure:
    """J A(J) >= 0."""
    for run in _runs(subject, problems.random, problems.conflicting, problems.unequal):
        state: PyTree = None
        for problem in run:
            got = subject.update(problem, state=state)
            update, state = got.flat, got.state
            rows = problem.matrix.astype(np.float64)
            products = rows @ update
            allowed = subject.rtol * np.linalg.norm(rows, axis=1) * np.linalg.norm(update)
            if not np.all(products >= -allowed):
                worst = int(np.argmin(products + allowed))
                return problem, (
                    f"the update goes against {problem.names[worst]}: their product is {products[worst]:.4g} "
                    f"(all: {partial_array(products)}; update {partial_array(update)})"
                )
    return None


def uniform_when_balanced(subject: Subject) -> Failure:
    """Equal losses, orthogonal gradients of one length: the update is their sum, at every step of a run of such problems.

    Gradients are new at every step, and the losses fall alike.
    """
    for run in _runs(subject, problems.balanced, at_least=2):
        state: PyTree = None
        for step, balanced in enumerate(run):
            problem = dataclasses.replace(balanced, values=balanced.values * np.float32(0.8**step))
            got = subject.update(problem, state=state)
            state = got.state
            wanted = problem.matrix.astype(np.float64).sum(axis=0)
            if broken := _differs(got.flat, wanted, _largest(problem, wanted), subject.rtol):
                return problem, broken
    return None


def linear_under_scaling(subject: Subject) -> Failure:
    """A(diag(a) J) + A(diag(b) J) = A(diag(a + b) J) for a, b > 0."""
    for run in _runs(subject, problems.random, problems.conflicting):
        rng = np.random.default_rng(run[0].num_objectives)
        a, b = rng.uniform(0.05, 3.0, (2, run[0].num_objectives))
        states: list[PyTree] = [None, None, None]
        for problem in run:
            three = [problems.reweighted(problem, factors) for factors in (a, b, a + b)]
            one, two, both = (subject.update(p, state=s) for p, s in zip(three, states, strict=True))
            states = [one.state, two.state, both.state]
            if broken := _differs(both.flat, one.flat + two.flat, _largest(three[2], both.flat), subject.rtol):
                return three[2], f"the factors are the sum of {a.round(3)} and {b.round(3)}: {broken}"
    return None


ALWAYS: dict[str, Property] = {
    f.__name__: f
    for f in (
        finite,
        one_compilation,
        donatable,
        extra_arguments,
        lazy_as_stacked,
        absent_objectives,
        bfloat16,
        randomness,
        devices,
    )
}
PROMISED: dict[Promise, Property] = {
    Promise.IDENTITY_FOR_ONE: identity_for_one,
    Promise.PERMUTATION_EQUIVARIANT: permutation_equivariant,
    Promise.STATIONARY: stationary,
    Promise.NON_CONFLICTING: non_conflicting,
    Promise.UNIFORM_WHEN_BALANCED: uniform_when_balanced,
    Promise.LINEAR_UNDER_SCALING: linear_under_scaling,
}
