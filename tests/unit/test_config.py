"""Configurations: what cannot be is refused with the field, what was read and what was expected."""

import json

import pydantic
import pytest

from fl_utils.config import ConfigError, ExperimentConfig, make_config

FEDAVG = {
    "dataset": "brain_mri", "method": "fedavg", "partition": "iid", "num_clients": 4, "seed": 0, "profile": "paper",
    "total_rounds": 10, "client_learning_rate": 0.03,
}  # fmt: skip
CENTRALIZED = FEDAVG | {"method": "centralized", "partition": "pooled", "num_clients": 1}
LOCAL = FEDAVG | {"method": "local"}


def refused(fields):
    with pytest.raises(ConfigError) as caught:
        make_config(**fields)
    return str(caught.value)


@pytest.mark.parametrize("fields", [FEDAVG, CENTRALIZED, LOCAL, FEDAVG | {"clients_per_round": 3}])
def test_good_configurations_pass_and_survive_json(fields):
    config = make_config(**fields)
    assert make_config(**json.loads(json.dumps(config.model_dump()))) == config
    assert list(config.model_dump())[:6] == ["dataset", "method", "partition", "num_clients", "seed", "profile"]


def test_the_cohort_is_everyone_unless_said():
    assert make_config(**FEDAVG).cohort_size == 4
    assert make_config(**FEDAVG, clients_per_round=3).cohort_size == 3


def test_a_configuration_is_frozen():
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        make_config(**FEDAVG).seed = 1


def test_an_unknown_field_is_named_with_the_known_ones():
    text = refused(FEDAVG | {"learning_rate": 0.1})
    assert "learning_rate: no such field" in text and "client_learning_rate" in text
    assert all(name in text for name in ExperimentConfig.model_fields)


def test_missing_fields_are_all_named():
    text = refused({name: value for name, value in FEDAVG.items() if name not in ("seed", "total_rounds")})
    assert "seed: missing" in text and "total_rounds: missing" in text and "dataset" not in text


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("method", "fedsgd", "'centralized', 'local' or 'fedavg'"),
        ("partition", "dirichlet", "'pooled', 'iid' or 'natural'"),
        ("profile", "big", "'smoke', 'quick' or 'paper'"),
        ("split", "leaky", "'deduplicated', 'near', 'pictures'"),
        ("model", "vgg", "'seed_cnn' or 'residual_gn'"),
        ("num_clients", 0, "greater than or equal to 1"),
        ("num_clients", 1001, "less than or equal to 1000"),
        ("num_clients", 2.5, "valid integer"),
        ("seed", -1, "greater than or equal to 0"),
        ("seed", None, "valid integer"),
        ("total_rounds", 0, "greater than or equal to 1"),
        ("total_rounds", "many", "valid integer"),
        ("image_size_px", 8, "greater than or equal to 16"),
        ("num_images", 0, "greater than or equal to 1"),
        ("clients_per_round", 0, "greater than or equal to 1"),
        ("client_epochs_per_round", 0, "greater than or equal to 1"),
        ("client_batch_size", 0, "greater than or equal to 1"),
        ("client_learning_rate", 0.0, "greater than 0"),
        ("client_learning_rate", float("nan"), "finite number"),
        ("client_learning_rate", float("inf"), "finite number"),
        ("client_momentum", 1.0, "less than 1"),
        ("server_learning_rate", -1.0, "greater than 0"),
        ("augment", "perhaps", "valid boolean"),
    ],
)
def test_a_wrong_value_says_field_expected_and_read(field, value, expected):
    text = refused(FEDAVG | {field: value})
    line = next(line for line in text.splitlines() if line.strip().startswith(f"{field}:"))
    assert expected in line and f"(read {value!r})" in line


def test_every_problem_is_listed_at_once():
    text = refused(FEDAVG | {"seed": -1, "num_clients": 0, "colour": "red"})
    assert [line.strip().split(":")[0] for line in text.splitlines()[1:]] == ["num_clients", "seed", "colour"]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (FEDAVG | {"partition": "pooled"}, ["partition 'pooled'", "method 'fedavg'", "'centralized'"]),
        (CENTRALIZED | {"partition": "iid"}, ["partition 'iid'", "method 'centralized'"]),
        (CENTRALIZED | {"num_clients": 4}, ["num_clients 4", "method 'centralized'", "expected 1"]),
        (LOCAL | {"clients_per_round": 2}, ["clients_per_round 2", "method 'local'", "federated methods only"]),
        (FEDAVG | {"clients_per_round": 5}, ["clients_per_round 5", "num_clients 4", "at most"]),
    ],
)
def test_fields_that_do_not_fit_together_are_named(fields, said):
    text = refused(fields)
    assert all(part in text for part in said), text
    assert "Value error" not in text and "pydantic" not in text
