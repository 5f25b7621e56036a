"""Configurations: what cannot be is refused with the field, what was read and what was expected."""

import json
from pathlib import Path
from typing import get_args

import pydantic
import pytest

from fl_utils import records
from fl_utils.config import (
    METHOD_FIELDS, METHOD_LABELS, PARTITION_FIELD, SCANNER_PARTITIONS, SEGMENTER_FIELDS, SEGMENTERS, ConfigError,
    ExperimentConfig, Method, make_config,
)

RUNS = Path(__file__).resolve().parents[2] / "results" / "runs"

FEDAVG = {
    "dataset": "brain_mri", "method": "fedavg", "partition": "iid", "num_clients": 4, "seed": 0, "profile": "paper",
    "total_rounds": 10, "client_learning_rate": 0.03,
}  # fmt: skip
CENTRALIZED = FEDAVG | {"method": "centralized", "partition": "pooled", "num_clients": 1}
LOCAL = FEDAVG | {"method": "local"}
SKEWED = {
    "dirichlet": {"dirichlet_alpha": 0.5}, "pathological": {"classes_per_client": 2},
    "quantity": {"quantity_alpha": 0.5}, "feature": {}, "natural": {}, "iid": {}, "mixed": {"quantity_alpha": 0.5},
}  # fmt: skip
NEEDS = {
    "fedprox": {"proximal_strength": 0.1}, "fedavgm": {"server_momentum": 0.5}, "mimelite": {"server_momentum": 0.5},
    "finetuned": {"personal_epochs": 1}, "local_norm": {"model": "norm_cnn_group"}, "scaffold": {"client_momentum": 0.0},
}  # fmt: skip

UNET = FEDAVG | {
    "dataset": "hippocampus", "model": "unet", "plane": "axial", "model_width": 8, "model_depth": 3,
    "class_weighting": False,
}  # fmt: skip


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
        ("method", "fedfoo", "'centralized', 'local', 'fedsgd', 'fedavg', 'fedprox'"),
        ("partition", "skewed", "'pooled', 'iid', 'natural', 'dirichlet'"),
        ("profile", "big", "'smoke', 'quick', 'paper' or 'phantoms'"),
        ("split", "leaky", "'deduplicated', 'near', 'pictures'"),
        ("model", "vgg", "'seed_cnn', 'residual_gn', 'softmax_regression', 'small_cnn'"),
        ("norm_statistics", "forgotten", "'averaged' or 'dropped'"),
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
        ("dirichlet_alpha", 0.0, "greater than 0"),
        ("dirichlet_alpha", float("inf"), "finite number"),
        ("quantity_alpha", -0.5, "greater than 0"),
        ("classes_per_client", 0, "greater than or equal to 1"),
        ("proximal_strength", -0.1, "greater than or equal to 0"),
        ("proximal_strength", float("nan"), "finite number"),
        ("server_momentum", 1.0, "less than 1"),
        ("personal_epochs", -1, "greater than or equal to 0"),
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


@pytest.mark.parametrize("partition", SKEWED)
@pytest.mark.parametrize("method", [method for method in get_args(Method) if method != "centralized"])
def test_every_method_goes_with_every_partition(method, partition):
    fields = FEDAVG | {"method": method, "partition": partition} | SKEWED[partition] | NEEDS.get(method, {})
    config = make_config(**fields)
    assert make_config(**json.loads(json.dumps(config.model_dump()))) == config
    assert config.federated == (method != "local")


@pytest.mark.parametrize("partition", PARTITION_FIELD)
def test_a_partition_needs_its_field(partition):
    text = refused(FEDAVG | {"partition": partition})
    assert f"{PARTITION_FIELD[partition]} is None with partition '{partition}'; the partition needs it" in text


@pytest.mark.parametrize("field", sorted(set(PARTITION_FIELD.values())))
@pytest.mark.parametrize("partition", SKEWED)
def test_a_field_of_another_partition_is_refused(partition, field):
    if PARTITION_FIELD.get(partition) == field:
        return
    text = refused(FEDAVG | {"partition": partition, field: 2} | SKEWED[partition])
    assert f"{field} is 2" in text and f"with partition '{partition}'; leave it out: no such skew there" in text


@pytest.mark.parametrize("field", METHOD_FIELDS)
def test_a_method_needs_its_field_and_no_other_takes_it(field):
    methods = METHOD_FIELDS[field]
    said = f"it must be above 0 for {' and '.join(methods)}, and is for no other method"
    for method in methods:
        text = refused(FEDAVG | {"method": method})
        assert f"{field} is 0" in text and f"with method '{method}'" in text and said in text
    for method in set(get_args(Method)) - {"centralized", *methods}:
        text = refused(FEDAVG | {"method": method} | NEEDS.get(method, {}) | {field: 0.5 if field != "personal_epochs" else 1})
        assert f"with method '{method}'; {said}" in text


def test_scaffold_is_for_plain_sgd():
    text = refused(FEDAVG | {"method": "scaffold"})
    assert "client_momentum is 0.9 with method 'scaffold', whose control variates stand for plain SGD; set it to 0" in text


@pytest.mark.parametrize("model", ["seed_cnn", "residual_gn", "small_cnn"])
def test_local_norm_needs_norm_layers(model):
    text = refused(FEDAVG | {"method": "local_norm", "model": model})
    assert f"model '{model}' has no normalisation layers for 'local_norm'; use norm_cnn_group" in text
    for good in ("norm_cnn_group", "norm_cnn_batch"):
        assert make_config(**FEDAVG | {"method": "local_norm", "model": good}).federated


def test_pooled_images_of_scanners():
    """One model on all images as the hospitals' scanners show them: with the hospitals' number, as it decides the scanners."""
    for partition in SCANNER_PARTITIONS:
        config = make_config(**CENTRALIZED | {"partition": partition, "num_clients": 4} | SKEWED[partition])
        assert not config.federated and config.num_clients == 4
    for partition, fields in SKEWED.items():
        if partition not in SCANNER_PARTITIONS:
            text = refused(CENTRALIZED | {"partition": partition, "num_clients": 4} | fields)
            assert f"partition '{partition}' was given with method 'centralized'" in text


def test_every_method_has_a_label():
    assert set(METHOD_LABELS) == set(get_args(Method)) and len(set(METHOD_LABELS.values())) == len(METHOD_LABELS)


# Segmenters


@pytest.mark.parametrize(
    "fields",
    [
        {}, {"model": "attention_unet", "plane": "sagittal"}, {"method": "local"},
        {"method": "fedprox", "proximal_strength": 0.1},
        {"method": "centralized", "partition": "pooled", "num_clients": 1}, {"background_ratio": 0.0},
        {"partition": "natural", "background_ratio": 0.25}, {"partition": "mixed", "quantity_alpha": 2.0},
        {"method": "centralized", "partition": "mixed", "quantity_alpha": 2.0},
        {"partition": "feature", "clients_per_round": 3},
    ],
)  # fmt: skip
def test_good_segmenters_pass_and_survive_json(fields):
    config = make_config(**UNET | fields)
    assert config.segments and not make_config(**FEDAVG).segments
    assert make_config(**json.loads(json.dumps(config.model_dump()))) == config


@pytest.mark.parametrize("field", SEGMENTER_FIELDS)
def test_segmenters_need_their_fields_and_no_other_model_takes_them(field):
    said = f"it belongs to {' and '.join(SEGMENTERS)}, which need it, and to no other model"
    for model in SEGMENTERS:
        text = refused({name: value for name, value in UNET.items() if name != field} | {"model": model})
        assert f"{field} is None with model '{model}'; {said}" in text
    text = refused(FEDAVG | {field: UNET[field]})
    assert f"{field} is {UNET[field]} with model 'seed_cnn'; {said}" in text


def test_background_ratio_is_for_segmenters():
    assert "background_ratio 0.5 is for segmenters only: leave it out" in refused(FEDAVG | {"background_ratio": 0.5})


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"method": "finetuned", "personal_epochs": 1}, "method 'finetuned'"),
        ({"class_weighting": True}, "class_weighting True"), ({"marked_hospitals": 1}, "marked_hospitals 1"),
        ({"shuffled_labels": True}, "shuffled_labels True"), ({"split": "near"}, "split 'near'"),
        ({"partition": "dirichlet", "dirichlet_alpha": 0.5}, "partition 'dirichlet'"),
        ({"partition": "pathological", "classes_per_client": 2}, "partition 'pathological'"),
    ],
)  # fmt: skip
def test_what_is_not_for_segmenters(fields, said):
    for model in SEGMENTERS:
        assert f"{said} is not for segmenters such as '{model}'" in refused(UNET | {"model": model} | fields)


def test_slices_must_be_halved_as_often_as_the_model_does():
    text = refused(UNET | {"image_size_px": 36, "model_depth": 3})
    assert "image_size_px 36 cannot be halved 3 times (model_depth); expected a multiple of 8" in text
    assert make_config(**UNET | {"image_size_px": 36, "model_depth": 2}).image_size_px == 36


def test_segmenters_have_no_norm_layers_of_a_hospitals_own():
    text = refused(UNET | {"method": "local_norm"})
    assert "model 'unet' has no normalisation layers for 'local_norm'" in text


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("plane", "oblique", "'axial', 'coronal' or 'sagittal'"),
        ("model_width", 0, "greater than or equal to 1"),
        ("model_depth", 0, "greater than or equal to 1"),
        ("background_ratio", -0.1, "greater than or equal to 0"),
        ("background_ratio", float("inf"), "finite number"),
    ],
)
def test_a_wrong_value_of_a_segmenter(field, value, expected):
    text = refused(UNET | {field: value})
    line = next(line for line in text.splitlines() if line.strip().startswith(f"{field}:"))
    assert expected in line and f"(read {value!r})" in line


def test_fields_of_segmenters_leave_the_names_of_older_records_alone():
    """A record from before segmenters existed."""
    (folder,) = (RUNS / "classification").glob("brain_mri_fedavg_iid_s0_2b27b486")
    written = json.loads((folder / "config.json").read_text())
    assert not {*SEGMENTER_FIELDS, "background_ratio"} & set(written)
    config = make_config(**written)
    fingerprint = json.loads((folder / "environment.json").read_text())["dataset_fingerprint"]
    assert records.run_id(config, fingerprint) == folder.name


def test_each_field_of_a_segmenter_makes_another_run():
    changes = ({}, {"plane": "coronal"}, {"model_width": 16}, {"model_depth": 2}, {"background_ratio": 0.0})
    assert len({records.run_id(make_config(**UNET | change), "") for change in changes}) == len(changes)


@pytest.mark.parametrize(
    "experiment", ["classification", "tuning", "leakage", "heterogeneity", "heterogeneity_tuning", "explain"]
)
def test_committed_records_keep_their_names(experiment):
    """A field that was added later, or a default that changed, would orphan them."""
    folders = sorted((RUNS / experiment).glob("[!.]*/"))
    assert folders
    for folder in folders:
        config = make_config(**json.loads((folder / "config.json").read_text()))
        fingerprint = json.loads((folder / "environment.json").read_text())["dataset_fingerprint"]
        assert records.run_id(config, fingerprint) == folder.name


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"model_width": 12}, "model_width is 12; expected a multiple of the 8 groups of GroupNorm"),
        ({"model": "attention_unet", "model_depth": 1}, "model_depth is 1 with model 'attention_unet'"),
        ({"partition": "mixed", "quantity_alpha": 1.0, "image_size_px": 16}, "made-up scanners take images of 24 to 256 pixels"),
    ],
)
def test_what_a_segmenter_could_not_be_built_with_is_refused_early(fields, sentence):
    assert sentence in refused(UNET | fields)
