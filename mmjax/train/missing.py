"""How a run does with modalities missing: by pattern; a generative one by rounds of inference, and what it fills in."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import jax
import numpy as np

from mmjax.data import Dataset, gather
from mmjax.evaluation.contribution import shapley_values
from mmjax.evaluation.metrics import expert_metrics, late_fusion, score_name, task_metrics
from mmjax.evaluation.subsets import Subset, choose_subsets, subset_name
from mmjax.generative.reader import Reader
from mmjax.generative.recurrence import check_rounds
from mmjax.objectives import FUSION
from mmjax.train.predictor import LATE_FUSION, Predictor, over_dataset
from mmjax.train.run import Run, check_dataset
from mmjax.train.step import prepare

ROUNDS = (0, 1, 2, 5, 10)
"""Numbers of rounds that are compared, as published."""

MOST = 6
"""Modalities up to which all 2^M − 1 patterns are gone through unasked: 63."""


@dataclass(frozen=True)
class PatternScore:
    """How a run does where these modalities, and no others, are given.

    examples: how many have them; metrics: over those, "fusion/accuracy" and so on, and of a `MultiModal` with
    several of them also "late_fusion/accuracy" and so on.

    >>> PatternScore(("audio", "image"), 10, {"fusion/accuracy": 0.5}).name
    'audio+image'
    """

    pattern: Subset
    examples: int
    metrics: dict[str, float]

    @property
    def name(self) -> str:
        """The pattern as it is written: "audio+image"."""
        return subset_name(self.pattern)


def scores_by_pattern(run: Run, dataset: Dataset, wanted: Iterable[str] = ()) -> tuple[PatternScore, ...]:
    """Return how the run does with only some of the modalities given, pattern by pattern, small ones first.

    wanted: patterns as `choose_subsets` takes them, "audio+image", "leave-one-out" or "all"; none: all 2^M − 1, for up to
    six modalities. Where the data lack modalities themselves, an example counts in a pattern if it has all of it; a
    pattern that no example has is left out. A generative model infers the rest.

    Raises:
      ValueError: a pattern that names an unknown modality (the nearest is shown) or one twice; more than six modalities
        and no pattern; modalities or a task other than the model's.
    """
    check_dataset(run, dataset)
    names = dataset.modalities
    wanted = tuple(wanted)
    if not wanted and len(names) > MOST:
        raise ValueError(
            f"{len(names)} modalities have {2 ** len(names) - 1} patterns: name those that matter, such as "
            f"{subset_name(names[:2])!r} or 'leave-one-out', or say 'all'"
        )
    present: np.ndarray = np.stack([dataset.has(m) for m in names], axis=1)
    answer = _infer_rest(run) if isinstance(run.inference.model, Reader) else _leave_out(run)
    found = []
    for pattern in choose_subsets(wanted or ("all",), names):
        given = np.array([m in pattern for m in names])
        rows: np.ndarray = np.all(present[:, given], axis=1)
        if not rows.any():
            continue
        # The others fill their places with what they have, so that one program serves all patterns; then they go.
        logits = answer(dataclasses.replace(dataset, present=np.where(rows[:, None], given, present)), pattern)
        label = dataset.label[rows]
        metrics = expert_metrics(dataset.task, {FUSION: logits[FUSION][rows]}, label)
        alone = {m: logits[m][rows] for m in pattern if m in logits}
        if len(alone) > 1:
            metrics |= expert_metrics(dataset.task, {LATE_FUSION: late_fusion(dataset.task, alone)}, label)
        found.append(PatternScore(pattern, int(rows.sum()), metrics))
    return tuple(found)


def contributions(scores: Sequence[PatternScore], dataset: Dataset) -> dict[str, float]:
    """Return what each modality contributes to the fusion's score, by Shapley values: {modality: share}.

    scores: of all 2^M − 1 patterns (`scores_by_pattern`). They add up to the score with everything less that of the best
    constant answer, the labels' own frequencies or mean, which is what is known without any modality.

    Raises:
      ValueError: a pattern is missing, or the patterns are of different examples (data that lack modalities).

    >>> from mmjax.data import Task
    >>> task = Task("classification", 2)
    >>> data = Dataset({m: np.zeros((4, 1)) for m in "ab"}, np.array([0, 1, 0, 1]), task)
    >>> accuracy = {("a",): 0.75, ("b",): 0.5, ("a", "b"): 1.0}
    >>> contributions([PatternScore(p, 4, {"fusion/accuracy": v}) for p, v in accuracy.items()], data)
    {'a': 0.375, 'b': 0.125}
    """
    names, score = dataset.modalities, score_name(dataset.task)
    found = {frozenset(s.pattern): s.metrics[f"{FUSION}/{score}"] for s in scores}
    if len(found) != 2 ** len(names) - 1 or any(s.examples != len(dataset) for s in scores):
        raise ValueError("contributions need all patterns, each measured on every example")
    return shapley_values((found | {frozenset(): _constant_score(dataset)}).__getitem__, names)


def _constant_score(dataset: Dataset) -> float:
    """Return the score of the best answer that looks at no modality."""
    task, label = dataset.task, dataset.label
    with np.errstate(divide="ignore"):  # a class or label that never occurs is never said
        if task.kind == "classification":
            answer = np.log(np.bincount(label, minlength=task.num_outputs) / len(label))
        else:
            mean = label.mean(axis=0, dtype=np.float64)
            answer = np.log(mean) - np.log1p(-mean) if task.kind == "multilabel" else mean
    answer = np.clip(answer, -1e6, 1e6)  # finite, and as sure as a probability in float64 can be
    return task_metrics(task, np.tile(answer, (len(label), 1)), label)[score_name(task)]


Answer = Callable[[Dataset, Subset], dict[str, np.ndarray]]


def _leave_out(run: Run) -> Answer:
    predictor = Predictor(run.inference, run.route)
    return lambda dataset, pattern: predictor.logits(run.variables, dataset)


def _infer_rest(run: Run) -> Answer:
    reader, classifier = reader_of(run), run.variables["classifier"]

    def answer(dataset: Dataset, pattern: Subset) -> dict[str, np.ndarray]:
        @jax.jit
        def fused(inputs: dict[str, jax.Array]) -> dict[str, jax.Array]:
            x = prepare(run.inference, inputs)
            hidden = reader.infer(run.variables, {m: x[m] for m in pattern}).hidden
            return {FUSION: hidden @ classifier["kernel"] + classifier["bias"]}

        complete = dataclasses.replace(dataset, present=None)
        return over_dataset(lambda inputs, present: fused(inputs), run.route, complete)

    return answer


def reader_of(run: Run) -> Reader:
    """Return the reader of a generative run. Raises ValueError for a run of another family."""
    model = run.inference.model
    if not isinstance(model, Reader):
        raise ValueError(f"the run's model is a {type(model).__name__}; only generative models infer what is missing")
    return model


def scores_by_rounds(run: Run, dataset: Dataset, rounds: Iterable[int] = ROUNDS) -> dict[int, dict[str, float]]:
    """Return {rounds: metrics} of the run's classifier, metrics as of `evaluate`: {"left/accuracy": ...}.

    "fusion" has every modality and nothing to infer; a modality's name is the pattern in which it alone is there. The
    classifier stays the one fitted on features of complete examples.

    Raises:
      ValueError: a run whose model is not generative, rounds < 0.
    """
    reader = reader_of(run)
    found = {}
    for count in rounds:
        check_rounds(count)
        inference = dataclasses.replace(run.inference, model=reader.clone(rounds=count))
        found[count] = Predictor(inference, run.route).metrics(run.variables, dataset)
    return found


def fill_in(run: Run, dataset: Dataset, indices: np.ndarray, given: str) -> dict[str, np.ndarray]:
    """Return examples as the model completes them from one modality, {modality: [B, ...]} in the data's shapes.

    Values are those of the visible units (means, as a step sees inputs), `given` as it is.

    Raises:
      ValueError: a run whose model is not generative, an unknown modality.
    """
    reader = reader_of(run)
    inputs = prepare(run.inference, jax.tree.map(jax.numpy.asarray, gather(dataset, indices).inputs))
    if given not in inputs:
        raise ValueError(f"no modality {given!r}; the model has {sorted(inputs)}")
    filled: Mapping[str, jax.Array] = reader.infer(run.variables, {given: inputs[given]}).inputs
    return {m: np.asarray(x).reshape(inputs[m].shape) for m, x in filled.items()}
