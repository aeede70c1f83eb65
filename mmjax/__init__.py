"""mmjax: multi-modal models whose modalities learn in balance, in JAX."""

from mmjax import optim
from mmjax.objectives import FeatureGrads, LazyGradientsError, ObjectiveGrads, objective_grads

__all__ = ["FeatureGrads", "LazyGradientsError", "ObjectiveGrads", "objective_grads", "optim"]
