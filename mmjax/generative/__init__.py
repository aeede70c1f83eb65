"""Generative models of several modalities that reason about a missing one: RBM, MRBM, their losses and exact values."""

from mmjax.generative.config import GenerativeConfig, MDRNNConfig, MRBMConfig
from mmjax.generative.enumeration import (
    MAX_UNITS,
    exact_vi_objective,
    log_conditionals,
    log_joint,
    log_unnormalised,
    lowest_free_energy,
    visible_states,
)
from mmjax.generative.inference import Inferred, Recurrent, Rounds, Visibility, infer
from mmjax.generative.losses import (
    cd_percloss,
    hybrid,
    multi_prediction,
    perceptron_losses,
    persistent_contrastive_divergence,
    sparsity_penalty,
)
from mmjax.generative.mdrnn import MDRNN, MDRNNParams
from mmjax.generative.methods import (
    GENERATIVE_METHODS,
    CDPercLossConfig,
    GenerativeMethod,
    HybridConfig,
    MultiPredictionConfig,
    PCDConfig,
    RecurrentConfig,
)
from mmjax.generative.mrbm import MRBM, MRBMParams
from mmjax.generative.rbm import RBM, RBMParams
from mmjax.generative.reader import Reader
from mmjax.generative.recurrence import iterate, until_converged
from mmjax.generative.variation_of_information import (
    conditional_entropy,
    gaussian_variation_of_information,
    table_objective,
    table_variation_of_information,
    vi_objective,
)
from mmjax.generative.visible import VisibleKind, check_inputs
from mmjax.models.recurrent_encoder import RecurrentEncoder, filling_loss

__all__ = [
    "GENERATIVE_METHODS",
    "MAX_UNITS",
    "MDRNN",
    "MRBM",
    "RBM",
    "CDPercLossConfig",
    "GenerativeConfig",
    "GenerativeMethod",
    "HybridConfig",
    "Inferred",
    "MDRNNConfig",
    "MDRNNParams",
    "MRBMConfig",
    "MRBMParams",
    "MultiPredictionConfig",
    "PCDConfig",
    "RBMParams",
    "Reader",
    "Recurrent",
    "RecurrentConfig",
    "RecurrentEncoder",
    "Rounds",
    "Visibility",
    "VisibleKind",
    "cd_percloss",
    "check_inputs",
    "conditional_entropy",
    "exact_vi_objective",
    "filling_loss",
    "gaussian_variation_of_information",
    "hybrid",
    "infer",
    "iterate",
    "log_conditionals",
    "log_joint",
    "log_unnormalised",
    "lowest_free_energy",
    "multi_prediction",
    "perceptron_losses",
    "persistent_contrastive_divergence",
    "sparsity_penalty",
    "table_objective",
    "table_variation_of_information",
    "until_converged",
    "vi_objective",
    "visible_states",
]
