"""`check_combiner`: hold a combiner to what every combiner owes and to what it promises."""

from __future__ import annotations

import difflib
import numbers
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import optax

from mmjax.optim.promises import Promise
from mmjax.testing.properties import ALWAYS, PROMISED, Property, Skip, Violation
from mmjax.testing.subject import Extra, Form, Make, Subject


class BrokenPropertiesError(AssertionError):
    """Properties that a combiner does not have; `.violations` holds a `Violation` each.

    >>> print(BrokenPropertiesError([Violation("finite", None, "the update is NaN")]))
    1 property does not hold
    <BLANKLINE>
    finite: the update is NaN
    """

    def __init__(self, violations: Sequence[Violation]):
        self.violations = tuple(violations)
        count = "1 property does" if len(violations) == 1 else f"{len(violations)} properties do"
        super().__init__("\n\n".join([f"{count} not hold", *map(str, violations)]))


@dataclass(frozen=True)
class Report:
    """What `check_combiner` checked.

    held: properties that hold. skipped: {property: why it was not checked}.

    >>> import mmjax
    >>> report = check_combiner(mmjax.optim.joint(), num_objectives=[2], forms=["stacked"])
    >>> report.held[0], sorted(report.skipped)[0]
    ('finite', 'devices')
    """

    held: tuple[str, ...]
    skipped: dict[str, str]


def check_combiner(
    make: Make | optax.GradientTransformation,
    promises: Collection[Promise | str] = (),
    *,
    num_objectives: Sequence[int] = (1, 2, 3, 5),
    forms: Sequence[Form] = ("lazy", "stacked"),
    random: bool = False,
    extra: Extra | None = None,
    only: Collection[str] | None = None,
    rtol: float = 1e-4,
    steps: int = 4,
) -> Report:
    """Check that a combiner has the properties that every combiner owes, and those in `promises`.

    The combiner is run, compiled, on small generated problems whose gradients are known: independent, conflicting, of very
    unequal length, orthogonal and of one length, Pareto-stationary, zero, equal, opposite, collinear; all objectives on all
    parameters, and encoders with heads; at common scales from 1e-8 to 1e8. Promises are checked over runs of several steps,
    each with gradients and losses of its own, the state carried from one to the next. Always checked:

    - `finite`: the update is finite and like the parameters, the state finite, over several steps at every scale;
      `.weights`, if the state has them, are [K]. (A state needs none.)
    - `one_compilation`: the state keeps its structure, shapes and types; a second step compiles nothing.
    - `donatable`: no two entries of the initial state are one array.
    - `extra_arguments`: arguments meant for other methods change nothing.
    - `lazy_as_stacked`: lazy gradients give the update of stacked ones, to 1e-5.
    - `absent_objectives`: with `active` False an objective may hold NaN, and the rest goes on as if it did not exist; when
      it is back, what it held does not matter.
    - `bfloat16`: such gradients come back in their type, but are computed with in float32.
    - `randomness`: the update depends on `key` exactly where `random` says so.
    - `devices`: examples spread over 2, 4 or 8 devices give the same updates, for the same keys (where there are two).

    make: K -> transformation, with the same options for every K; or a transformation that takes any K of
      `num_objectives`. One without extra arguments is taken as `optax.chain` takes it.
    promises: see `mmjax.optim.Promise`.
    num_objectives: numbers K of objectives to try.
    forms: forms of gradients that it takes; leave one out if it does not.
    random: whether it draws from the extra argument `key`; it is then compared in the mean over 1024 keys.
    extra: Problem -> further extra arguments (arrays), over those that every update is given here: values, active,
      touching, groups, labels, unimodal_logits, last_layer, key.
    only: names of the properties to check; None: all.
    rtol: relative error allowed in comparisons, of the longest gradient; an iterative solver may need more.
    steps: length of a run, >= 1: as many as a method's memory takes to make a difference (random methods: 1 in the mean).

    Raises:
      BrokenPropertiesError: (an AssertionError) with every broken property, how, and the smallest problem that shows it.
      ValueError: an unknown promise, property or form, a promise in `only` that is not made, no number of objectives, no
        steps.

    >>> import jax, jax.numpy as jnp
    >>> def halve_the_fusion():  # a combiner of one's own: ½ g_0 + Σ_m g_m on stacked gradients
    ...     def update(grads, state, params=None, *, active=None, **extra_args):
    ...         def combine(rows):
    ...             weights = jnp.ones(rows.shape[0]).at[0].set(0.5)
    ...             here = jnp.ones(rows.shape[0], bool) if active is None else active
    ...             rows = jnp.where(here.reshape(-1, *[1] * (rows.ndim - 1)), rows.astype(jnp.float32), 0)
    ...             return jnp.tensordot(weights, rows, axes=1)
    ...         updates = jax.tree.map(combine, grads)
    ...         return jax.tree.map(lambda u, g: u.astype(g.dtype), updates, grads), state
    ...     return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
    >>> report = check_combiner(halve_the_fusion(), {"permutation_equivariant"}, num_objectives=[3], forms=["stacked"])
    >>> report.held[-1], report.skipped["lazy_as_stacked"]
    ('permutation_equivariant', 'only stacked gradients are taken')
    >>> check_combiner(halve_the_fusion(), {"identity_for_one"}, num_objectives=[1], forms=["stacked"])
    Traceback (most recent call last):
    ...
    mmjax.testing.conformance.BrokenPropertiesError: 1 property does not hold
    <BLANKLINE>
    identity_for_one: got [...], expected [...] (distance ..., allowed ...)
    problem 'random' (dense), K = 1, key(0)
      fusion: loss ..., gradient [...]
    """
    properties: dict[str, Property] = dict(ALWAYS)
    properties |= {promise.value: PROMISED[promise] for promise in sorted(_known(promises))}
    if only is not None:
        wanted = {_nearest(str(name), [*ALWAYS, *Promise], "only") for name in only}
        if unpromised := sorted(wanted - set(properties)):
            raise ValueError(f"only names {unpromised[0]}, which is not among the promises: nothing would be checked")
        properties = {name: check for name, check in properties.items() if name in wanted}
    for form in forms:
        _nearest(form, ["lazy", "stacked"], "forms")
    if not num_objectives or min(num_objectives) < 1 or not forms:
        raise ValueError(
            f"check_combiner needs numbers of objectives >= 1 and at least one form; got num_objectives={num_objectives!r}, "
            f"forms={forms!r}"
        )
    if not isinstance(steps, numbers.Integral) or steps < 1:
        raise ValueError(f"steps must be an integer >= 1, got {steps!r}")
    subject = Subject(
        make, num_objectives=num_objectives, forms=forms, random=random, extra=extra, rtol=rtol, steps=int(steps)
    )
    held, skipped, violations = [], {}, []
    for name, check in properties.items():
        try:
            failure = check(subject)
        except Skip as reason:
            skipped[name] = str(reason)
        except Exception as error:  # an update that raises has not the property; go on with the others
            violations.append(Violation(name, None, f"raised {type(error).__name__}: {error}"))
        else:
            if failure is None:
                held.append(name)
            else:
                violations.append(Violation(name, *failure))
    if violations:
        raise BrokenPropertiesError(violations)
    return Report(tuple(held), skipped)


def _known(promises: Collection[Promise | str]) -> set[Promise]:
    return {Promise(_nearest(str(promise), list(Promise), "promises")) for promise in promises}


def _nearest(name: str, known: Sequence[str], argument: str) -> str:
    if name not in known:
        near = difflib.get_close_matches(name, known, 1, cutoff=0.0)
        raise ValueError(
            f"{argument}: there is no {name!r}; did you mean {str(near[0])!r}? Known: {', '.join(map(str, known))}"
        )
    return name
