"""What `pretrain` accepts."""

import pytest

from scgpt_ray.config import PretrainSettings
from scgpt_ray.errors import ConfigError

NEEDED = {"atlas": ["a"], "output": "o"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "pretrain: --atlas is missing; --output is missing"),
        ({**NEEDED, "atlas": []}, "--atlas is \\[\\]; expected at least 1 item for --atlas"),
        ({**NEEDED, "atlas": ["a", "b", "a"]}, "an atlas is named twice"),
        ({**NEEDED, "atlas": [""]}, "--atlas is ''; .*expected at least 1 character"),
        ({**NEEDED, "embsize": 30, "nheads": 4}, "--embsize 30 is not a multiple of --nheads 4"),
        ({**NEEDED, "checkpoint": "c", "vocabulary": "v"}, "give one of --checkpoint and --vocabulary"),
        ({**NEEDED, "checkpoint": "c", "nlayers": 3, "embsize": 64}, "--checkpoint has its own embsize, nlayers"),
        ({**NEEDED, "min_length": 200, "max_length": 100}, "--min-length 200 is above --max-length 100"),
        ({**NEEDED, "min_length": 1}, "--min-length is 1; expected greater than or equal to 2"),
        ({**NEEDED, "max_length": 1}, "--max-length is 1; expected greater than or equal to 2"),
        ({**NEEDED, "mask_ratios": [0.5, 1.0]}, "--mask-ratios is 1.0; expected less than 1 for"),
        ({**NEEDED, "mask_ratios": [0.0]}, "--mask-ratios is 0.0; expected greater than 0"),
        ({**NEEDED, "mask_ratios": []}, "there is nothing to learn"),
        ({**NEEDED, "value_weight": 0, "cell_weight": 0, "objective": "masked"}, "there is nothing to learn"),
        ({**NEEDED, "value_weight": 0, "cell_weight": 0, "prompt_weight": 0}, "there is nothing to learn"),
        ({**NEEDED, "objective": "masked", "prompt_weight": 1}, "are for --objective generative"),
        ({**NEEDED, "objective": "masked", "unprompted_steps": 1}, "are for --objective generative"),
        ({**NEEDED, "objective": "both"}, "--objective is 'both'; expected 'generative' or 'masked'"),
        ({**NEEDED, "attention_dropout": 1.0}, "--attention-dropout is 1.0; expected less than 1"),
        ({**NEEDED, "mask_ratios": [], "label_column": "t", "label_weight": 0}, "there is nothing to learn"),
        (
            {**NEEDED, "value_weight": 0, "cell_weight": 0, "prompt_weight": 0, "domain_column": "d"},
            "there is nothing to learn",
        ),
        ({**NEEDED, "cell_weight": -1}, "--cell-weight is -1"),
        ({**NEEDED, "dropout": 1.0}, "--dropout is 1.0; expected less than 1"),
        (
            {**NEEDED, "validation_filter": "a == 1", "validate_by": "d"},
            "give one of --validation-filter and --validate-by",
        ),
        ({**NEEDED, "validation_share": 1.5}, "--validation-share is 1.5"),
        ({**NEEDED, "steps": 500}, "--warmup-steps 500 is not below --steps 500"),
        ({**NEEDED, "learning_rate": 0}, "--learning-rate is 0; expected greater than 0"),
        ({**NEEDED, "seed": 2**31}, "--seed is 2147483648; expected less than 2147483648"),
        ({**NEEDED, "precision": "float16"}, "--precision is 'float16'; expected 'float32' or 'bfloat16'"),
        ({**NEEDED, "best_by": "label_asw"}, "--best-by label_asw needs --label-column"),
        (
            {**NEEDED, "best_by": "value"},
            "--best-by is 'value'; expected 'loss', 'label_accuracy', 'label_asw' or 'last'",
        ),
        ({**NEEDED, "freeze_layers": 1}, "--freeze-embeddings and --freeze-layers need --checkpoint"),
        ({**NEEDED, "freeze_embeddings": True}, "--freeze-embeddings and --freeze-layers need --checkpoint"),
        ({**NEEDED, "gene_table": "t.csv"}, "--gene-table needs --vocabulary or --checkpoint"),
    ],
)
def test_mistakes_are_reported_in_one_line(options, message):
    with pytest.raises(ConfigError, match=message) as caught:
        PretrainSettings.of(options)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith("see scgpt-ray pretrain --help")


@pytest.mark.parametrize(
    "options",
    [
        {"mask_ratios": [], "label_column": "t"},
        {"value_weight": 0, "cell_weight": 0, "label_column": "t"},
        {"value_weight": 0},
        {"value_weight": 0, "cell_weight": 0},
        {"objective": "masked", "attention_dropout": 0.0},
        {"checkpoint": "c", "gene_table": "t.csv"},
        {"vocabulary": "v", "gene_table": "t.csv"},
        {"checkpoint": "c", "freeze_embeddings": True, "freeze_layers": 3},
        {"min_length": 50, "max_length": 50},
        {"steps": 10, "warmup_steps": 0},
        {"best_by": "label_asw", "label_column": "t", "label_weight": 0},
        {"best_by": "last"},
        {"validation_share": 0.0, "validation_filter": "donor == 'd1'"},
    ],
)
def test_what_makes_sense_is_accepted(options):
    settings = PretrainSettings.of({**NEEDED, **options})
    assert {name: getattr(settings, name) for name in options} == {
        name: tuple(value) if isinstance(value, list) else value for name, value in options.items()
    }


def test_words_of_the_command_line_are_read():
    settings = PretrainSettings.of({**NEEDED, "mask_ratios": ["0.25", "0.5"]})
    assert settings.mask_ratios == (0.25, 0.5)
