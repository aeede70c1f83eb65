"""Known answers that a method's constructor (K -> transformation) must give; each raises AssertionError."""

from __future__ import annotations

import dataclasses

import numpy as np

from mmjax.testing import problems
from mmjax.testing.problems import Problem
from mmjax.testing.subject import Subject


def subject(make, random: bool = False) -> Subject:
    """The transformation, ready to run on problems."""
    return Subject(make, num_objectives=(1, 2, 3, 5), forms=("stacked", "lazy"), random=random, extra=None, rtol=1e-4)


def sum_of_rows(weights, problem: Problem) -> np.ndarray:
    """Σ_k w_k g_k in float64, inactive rows left out."""
    matrix = problem.matrix.astype(np.float64)
    if problem.active is not None:
        matrix = np.where(problem.active[:, None], matrix, 0)
    return np.asarray(weights, np.float64) @ matrix


def close(got, wanted, scale: float = 1.0, rtol: float = 1e-4) -> None:
    np.testing.assert_allclose(got, wanted, rtol=rtol, atol=rtol * scale)


def uniform_is_the_sum(make) -> None:
    for structure in ("dense", "encoders"):
        for problem in (problems.random(3, structure), problems.absent(problems.random(3, structure), 2)):
            outcome = subject(make).update(problem)
            weights = np.ones(3) if problem.active is None else [1, 1, 0]
            close(outcome.flat, sum_of_rows(weights, problem))
            np.testing.assert_array_equal(outcome.weights, weights)


def joint_follows_the_fusion(make) -> None:
    run = subject(make)
    problem = problems.random(3, "encoders")
    for form in ("stacked", "lazy"):
        outcome = run.update(problem, form)
        got, rows = outcome.update, problem.rows
        for m in ("audio", "gaze"):
            close(got["encoder"][m]["kernel"], rows["encoder"][m]["kernel"][0])
            own = problem.names.index(m)
            close(got["head"][m]["kernel"], rows["head"][m]["kernel"][own])  # probes learn on their own losses
        close(got["fusion"]["kernel"], rows["fusion"]["kernel"][0])
        np.testing.assert_array_equal(outcome.weights, [1, 0, 0])
    dense = problems.conflicting(3, "dense")
    close(run.update(dense).flat, dense.matrix[0])


def mimo_follows_its_formula(penalty: float = 2.0, smoothing: float = 0.1):
    """g_0 + λ Σ_m π_m g_m with π = softmax(L/μ) over those active, in float64."""

    def check(make) -> None:
        run = subject(make)
        base = dataclasses.replace(problems.random(4), values=np.array([3.0, 1.0, 1.05, 0.9], np.float32))
        outliers = dataclasses.replace(base, values=np.array([0.1, 900.0, 899.9, 1.0], np.float32))
        for problem in (base, outliers, problems.absent(base, 2), problems.scaled(problems.absent(base, 1), 2.0)):
            active = np.ones(4, bool) if problem.active is None else problem.active
            losses = np.where(active, problem.values, -np.inf).astype(np.float64)[1:]
            pi = np.exp((losses - losses.max()) / smoothing)
            weights = np.concatenate([[1.0], penalty * pi / pi.sum()])
            outcome = run.update(problem)
            close(outcome.weights, weights, rtol=1e-3)
            close(outcome.flat, sum_of_rows(weights, problem), problem.norm, rtol=1e-3)

    return check


def mimo_counts_its_steps(make) -> None:
    """`make` gives a penalty that doubles with every step, from 1."""
    run = subject(make)
    problem = dataclasses.replace(problems.random(2))
    state = None
    for step in range(3):
        outcome = run.update(problem, state=state)
        close(outcome.weights, [1.0, 2.0**step])
        state = outcome.state


def normalised_sum(make) -> None:
    """Σ_k g_k / ‖g_k‖: the plain sum of unit gradients."""
    problem = problems.random(3)
    norms = np.linalg.norm(problem.matrix.astype(np.float64), axis=1)
    for form in ("stacked", "lazy"):
        close(subject(make).update(problem, form).flat, sum_of_rows(1 / norms, problem))
