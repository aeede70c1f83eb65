"""Made-up questions on pictures: four coloured squares, a sentence that asks of them, and its answer.

With two-class answers a sentence asks whether a square has a colour; with multi-label answers, which colours are in a half
of the picture. The words come after some filler and before padding. Neither picture nor sentence alone says more than
the frequencies of answers.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

Answers = Literal["two-class", "multi-label"]

SIDE, LENGTH = 24, 8
COLOURS = np.array([[200, 40, 40], [40, 160, 60], [50, 70, 200], [210, 190, 50]])  # red, green, blue, yellow
FILLERS = 4
FIRST_COLOUR = 1 + FILLERS  # 0 is padding
FIRST_PLACE = FIRST_COLOUR + len(COLOURS)
PLACES = 4
VOCABULARY = FIRST_PLACE + PLACES
HALVES = np.array([[0, 1], [2, 3], [0, 2], [1, 3]])  # squares in reading order: top, bottom, left, right


def question_arrays(examples: int = 8000, answers: Answers = "two-class", seed: int = 0) -> dict[str, np.ndarray]:
    """Return arrays for an npz file: "image" uint8 [N, 24, 24, 3], "question" int [N, 8] (0 is padding), "label".

    label: [N], 0 (no) or 1 (yes), equally often; or 0 and 1 [N, 4], a column a colour.

    Raises:
      ValueError: fewer than 20 examples, a negative seed, unknown answers.

    >>> {name: array.shape for name, array in question_arrays(50, "multi-label").items()}
    {'image': (50, 24, 24, 3), 'question': (50, 8), 'label': (50, 4)}
    """
    if examples < 20 or seed < 0:
        raise ValueError(f"examples must be at least 20 and seed at least 0, got {examples} and {seed}")
    if answers not in get_args(Answers):
        raise ValueError(f"answers must be one of {', '.join(get_args(Answers))}; got {answers!r}")
    rng = np.random.default_rng(seed)
    colours = rng.integers(0, len(COLOURS), size=(examples, 4))
    squares = COLOURS[colours].reshape(examples, 2, 2, 3).repeat(SIDE // 2, axis=1).repeat(SIDE // 2, axis=2)
    image = np.clip(squares + rng.normal(0, 30, size=squares.shape), 0, 255).astype(np.uint8)
    place = rng.integers(0, PLACES, size=examples)
    rows = np.arange(examples)
    if answers == "two-class":
        label = rng.integers(0, 2, size=examples)
        there = colours[rows, place]
        asked = np.where(label == 1, there, (there + rng.integers(1, len(COLOURS), size=examples)) % len(COLOURS))
        words = np.stack([FIRST_COLOUR + asked, FIRST_PLACE + place], axis=1)
    else:
        shown = np.take_along_axis(colours, HALVES[place], axis=1)
        label = (shown[:, :, None] == np.arange(len(COLOURS))).any(axis=1).astype(np.int64)
        words = FIRST_PLACE + place[:, None]
    fillers = rng.integers(1, FIRST_COLOUR, size=(examples, LENGTH))
    start = rng.integers(0, LENGTH - words.shape[1] + 1, size=examples)
    question = np.where(np.arange(LENGTH) < start[:, None], fillers, 0)
    for i in range(words.shape[1]):
        question[rows, start + i] = words[:, i]
    return {"image": image, "question": question, "label": label}
