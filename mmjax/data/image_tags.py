"""Synthetic image features and tags with several labels an example, in the shape of the published image-tag set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from mmjax.config import DataConfig
from mmjax.data.dataset import Dataset, Splits, Task
from mmjax.data.standardize import fit_standardize
from mmjax.data.validation import check_splits, chosen_modalities


@dataclass(frozen=True, kw_only=True)
class ImageTags(DataConfig):
    """Made-up real image features (3857) and binary tags (2000) with 38 labels, several an example.

    Labels are drawn independently with frequencies from 20 % down to 2 %; each label is a direction in a space of
    topics, and an example's topics are the sum of its labels' directions and noise. Image features are a random map of
    the topics through tanh with noise, standardised by the training split; a tag is set with a probability that is
    logistic in the topics, rare tags more rarely (about 1 % on the whole). For the real thing take the source `npz`.

    Example:
    >>> small = ImageTags(image_features=6, tags=5, labels=3, train_examples=50, validation_examples=9, test_examples=9)
    >>> train = small.load().train
    >>> train.inputs["image"].shape, train.inputs["tags"].shape, train.label.shape
    ((50, 6), (50, 5), (50, 3))
    """

    name: str = "image_tags"
    image_features: int = 3857
    """Number of image features."""
    tags: int = 2000
    """Number of tags."""
    labels: int = 38
    """Number of labels."""
    topics: int = 50
    """Dimensions of the space that labels, image features and tags share."""
    image_noise: float = 2.0
    """Standard deviation of the noise on each image feature, whose signal has one of about 0.8."""
    train_examples: int = 10_000
    """Number of training examples."""
    validation_examples: int = 2_000
    """Number of validation examples."""
    test_examples: int = 2_000
    """Number of test examples."""
    seed: int = 0
    """Seed of the maps and of the examples."""

    needs: ClassVar[str] = "nothing: it is made up"

    def load(self) -> Splits:
        """Make the three splits.

        Raises:
          ValueError: an unknown modality, a size below 1, negative noise or seed.
        """
        chosen = chosen_modalities(self.modalities, ("image", "tags"))
        sizes = ("image_features", "tags", "labels", "topics", "train_examples", "validation_examples", "test_examples")
        for name in sizes:
            if getattr(self, name) < 1:
                raise ValueError(f"data.{name} must be at least 1, got {getattr(self, name)}")
        if self.image_noise < 0 or self.seed < 0:
            raise ValueError(f"data.image_noise and data.seed must be at least 0, got {self.image_noise}, {self.seed}")
        rng = np.random.default_rng([self.seed, 0])
        directions = rng.normal(size=(self.labels, self.topics))
        frequency = np.geomspace(0.2, 0.02, self.labels)
        to_image = rng.normal(size=(self.topics, self.image_features)) / np.sqrt(self.topics)
        to_tags = rng.normal(size=(self.topics, self.tags)) / np.sqrt(self.topics)
        rarity = rng.uniform(4.0, 7.0, size=self.tags)  # in logits below a half
        task = Task("multilabel", self.labels)

        def draw(place: int, count: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
            rng = np.random.default_rng([self.seed, place])
            label = (rng.random((count, self.labels)) < frequency).astype(np.float32)
            topics = label @ directions + 0.5 * rng.normal(size=(count, self.topics))
            image = np.tanh(topics @ to_image) + self.image_noise * rng.normal(size=(count, self.image_features))
            chance = 1 / (1 + np.exp(rarity - topics @ to_tags))
            inputs = {"image": image.astype(np.float32), "tags": (rng.random(chance.shape) < chance).astype(np.float32)}
            return {m: inputs[m] for m in chosen}, label

        counts = (self.train_examples, self.validation_examples, self.test_examples)
        drawn = [draw(place, count) for place, count in enumerate(counts, start=1)]
        preprocess = {"image": fit_standardize(drawn[0][0]["image"])} if "image" in chosen else {}
        return check_splits(Splits(*(Dataset(inputs, label, task, preprocess) for inputs, label in drawn)))
