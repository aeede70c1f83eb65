from __future__ import annotations

import dataclasses

import pytest

from mmjax.config import Config, MethodConfig, ModelConfig
from mmjax.data import AvDigits
from mmjax.models import ConcatConfig, LeNetConfig, MLPConfig
from mmjax.optim import MimoConfig, UniformConfig
from mmjax.overrides import override
from mmjax.registry import KINDS
from mmjax.train.optimizer import AdamConfig, AdamWConfig, CosineConfig, LinearConfig, SGDConfig


def base(**sections):
    parts = {
        "data": AvDigits(),
        "method": MimoConfig(penalty=3.0),
        "optimizer": AdamConfig(learning_rate=0.5, clip_norm=2.0, b1=0.3, schedule=CosineConfig()),
        "model": ModelConfig(encoders={"image": MLPConfig(width=32), "audio": MLPConfig()}),
    }
    return Config(**(parts | sections))


def test_no_option_changes_nothing():
    assert override(base(), []) == base()


@pytest.mark.parametrize("form", (["--train.batch-size", "32"], ["--train.batch_size=32"], ["--train.batch-size=32"]))
def test_both_spellings(form):
    assert override(base(), form).train.batch_size == 32


def test_values_of_every_type():
    config = override(
        base(),
        ["--train.seed", "3", "--train.epochs", "2.5", "--train.evaluate-every", "7", "--data.modalities", "image"]
        + ["--model.head-hidden", "4", "5", "--model.dtype", "bfloat16", "--model.encoders.image.width", "64"]
        + ["--optimizer.clip-norm", "None"],
    )
    assert (config.train.seed, config.train.epochs, config.train.evaluate_every) == (3, 2.5, 7)
    assert config.data.modalities == ("image",)
    assert (config.model.head_hidden, config.model.dtype) == ((4, 5), "bfloat16")
    assert (config.model.encoders["image"], config.model.encoders["audio"]) == (MLPConfig(width=64), MLPConfig())
    assert config.optimizer.clip_norm is None


def test_a_bool_takes_a_value():
    config = override(base(optimizer=SGDConfig()), ["--optimizer.nesterov", "True"])
    assert config.optimizer == SGDConfig(nesterov=True)


def test_another_method_takes_its_defaults_and_its_options():
    assert override(base(), ["--method.name", "uniform"]).method == UniformConfig()
    back = override(base(method=UniformConfig()), ["--method.penalty", "5", "--method.name", "mimo"])
    assert back.method == MimoConfig(penalty=5.0)
    # the same kind again keeps what the configuration says
    assert override(base(), ["--method.name", "mimo"]).method == MimoConfig(penalty=3.0)


def test_a_dict_of_numbers_is_given_whole():
    config = override(base(), ["--method.name", "stch", "--method.preference", "fusion", "2", "image", "0.5"])
    assert config.method.preference == {"fusion": 2.0, "image": 0.5}


def test_another_optimizer_keeps_what_all_optimizers_have():
    config = override(base(), ["--optimizer.name", "sgd", "--optimizer.momentum", "0.5"])
    assert config.optimizer == SGDConfig(learning_rate=0.5, clip_norm=2.0, schedule=CosineConfig(), momentum=0.5)
    assert override(base(), ["--optimizer.name", "adamw"]).optimizer == AdamWConfig(
        learning_rate=0.5, clip_norm=2.0, schedule=CosineConfig()
    )  # b1 belongs to adam


def test_sections_within_sections():
    config = override(
        base(),
        ["--optimizer.schedule.name", "linear", "--optimizer.schedule.end", "0.1"]
        + ["--method.penalty-schedule.name", "linear", "--method.smoothing-schedule.warmup-steps", "5"]
        + ["--model.encoders.image.name", "lenet", "--model.encoders.image.layers", "1", "--model.fusion.hidden", "9"],
    )
    assert config.optimizer.schedule == LinearConfig(end=0.1)
    assert config.method.penalty_schedule == LinearConfig()
    assert config.method.smoothing_schedule.warmup_steps == 5
    assert config.model.encoders["image"] == LeNetConfig(layers=1)
    assert config.model.fusion == ConcatConfig(hidden=(9,))


def test_an_encoder_of_a_modality_that_has_none_yet():
    config = override(base(model=ModelConfig()), ["--model.encoders.image.width", "64"])
    assert config.model.encoders == {"image": MLPConfig(width=64)}
    config = override(base(model=ModelConfig()), ["--model.encoders.image.name", "lenet"])
    assert config.model.encoders == {"image": LeNetConfig()}


def test_every_kind_of_every_section_can_be_named():
    paths = {"DataConfig": "data", "EncoderConfig": "model.encoders.image", "FusionConfig": "model.fusion"}
    paths |= {"MethodConfig": "method", "OptimizerConfig": "optimizer", "ScheduleConfig": "optimizer.schedule"}
    for section, kinds in KINDS.items():
        for name, kind in kinds.items():
            assert kind().name == name
            found = override(base(), [f"--{paths[section.__name__]}.name", name])
            for part in paths[section.__name__].split("."):
                found = found[part] if isinstance(found, dict) else getattr(found, part)
            assert type(found) is kind


@dataclasses.dataclass(frozen=True, kw_only=True)
class OwnConfig(MethodConfig):
    """A method of somebody's own."""

    name: str = "own"
    strength: float = 1.0


def test_a_method_that_no_registry_knows():
    config = override(base(method=OwnConfig()), ["--method.strength", "2", "--method.name", "own"])
    assert config.method == OwnConfig(strength=2.0)


@pytest.mark.parametrize(
    ("options", "message"),
    (
        (["--train.sed", "3"], "--train.sed; did you mean --train.seed?"),
        (["--method.penlty", "3"], "--method.penlty; did you mean --method.penalty?"),
        (["--trian.seed", "3"], "did you mean --train.seed?"),
        (["--method.name", "uniform", "--method.penalty", "3"], "unknown option --method.penalty"),
        (["--method.name", "mino"], "'mino' is unknown; did you mean 'mimo'?"),
        (["--model.encoders.image.name", "lenett"], "did you mean 'lenet'?"),
        (["--methd.name", "mimo"], "Config has no section 'methd'"),
        (["--train.name", "mimo"], "--train.name: train has only one kind"),
        (["--method.name"], "--method.name needs a value"),
        (["--method.name", "--train.seed", "1"], "--method.name needs a value"),
        (["--model.encoders.image.widht", "1"], "did you mean --model.encoders.image.width?"),
    ),
)
def test_mistakes_name_the_nearest(options, message):
    with pytest.raises(ValueError) as error:
        override(base(), options)
    assert message in str(error.value)


def test_a_value_of_the_wrong_type_leaves_with_status_2(capsys):
    with pytest.raises(SystemExit) as error:
        override(base(), ["--train.seed", "many"])
    assert error.value.code == 2
    assert "--train.seed" in capsys.readouterr().err


def test_help_shows_every_field_also_of_absent_sections(capsys):
    with pytest.raises(SystemExit) as error:
        override(base(model=ModelConfig()), ["--method.name", "mimo", "--help"])
    assert error.value.code == 0
    text = capsys.readouterr().out
    for option in (
        "--train.seed INT",
        "--method.penalty FLOAT",
        "--method.penalty-schedule.name",
        "--model.encoders.MODALITY.width INT",
        "--model.fusion.hidden",
        "--optimizer.learning-rate FLOAT",
        "--data.modalities",
        "--train.parallel {jit,pmap}",
    ):
        assert option in text, option
    assert "(default: 3.0)" in text
    assert "Seed of initial parameters" in text
    assert ">>>" not in text
