"""Federations out of configurations, and what notebook 08 makes of their records; no process is started here."""

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from fl_utils import cli, federation_cli, federation_studies, federations, paths, records
from fl_utils.config import ConfigError, make_config
from fl_utils.deployment.flower import read_federation
from fl_utils.experiments.hospitals import share_out
from fl_utils.experiments.measured import Content
from fl_utils.experiments.run import data_of
from fl_utils.federation_agreement import agreement_config, farthest, in_one_process

pytestmark = pytest.mark.usefixtures("folders")


def small(**fields):
    return agreement_config("fedavg", **fields)


def run_of(seed, values, **config):
    """A record with a test curve."""
    rows = [(number, "all", "test", "balanced_accuracy", value) for number, value in enumerate(values, 1)]
    about = {"dataset": "phantom_brain", "method": "fedavg", "model": "seed_cnn", "num_clients": 4, "seed": seed, **config}
    return records.RunRecord(about, pd.DataFrame(rows, columns=records.METRIC_COLUMNS), pd.DataFrame(), {}, None)


# --- federations ---


def test_hospitals_folders_hold_what_the_simulation_gives_them_in_the_same_order(tmp_path):
    from fl_utils.deployment.hospital_data import load_hospital

    config = small(partition="iid", quantity_alpha=None)
    federation = federations.federation_of(config)
    federations.set_up(tmp_path / "fed", federation)
    dataset = data_of(config)
    hospitals = share_out(dataset, config)
    for number in range(config.num_clients):
        parts = load_hospital(
            tmp_path / "fed" / f"hospital_{number}" / "data", class_names=federation.class_names, image_size_px=config.image_size_px
        )
        for name, part in parts.items():
            index = getattr(hospitals, name)[number]
            np.testing.assert_array_equal(part.images, dataset.images[index])
            np.testing.assert_array_equal(part.labels, dataset.labels[index])
            # The same images have the same patient, whatever the numbers are called.
            groups = dataset.groups[index]
            np.testing.assert_array_equal(part.patients[:, None] == part.patients, groups[:, None] == groups)


def test_a_federation_needs_more_than_half_unless_told_otherwise():
    assert federations.federation_of(small(num_clients=4)).min_hospitals == 3
    assert federations.federation_of(small(num_clients=3)).min_hospitals == 2
    assert federations.federation_of(small(), min_hospitals=3).min_hospitals == 3
    with pytest.raises(ConfigError, match="min_hospitals is 4 of 3"):
        federations.federation_of(small(), min_hospitals=4)


def test_every_member_has_the_same_agreement_and_an_existing_folder_is_left_alone(tmp_path):
    federation = federations.federation_of(small())
    federations.set_up(tmp_path / "fed", federation)
    for member in (".", "server", "hospital_0", "hospital_2"):
        assert read_federation(tmp_path / "fed" / member) == federation
    before = sorted(path.stat().st_mtime_ns for path in (tmp_path / "fed").rglob("*"))
    from fl_utils.deployment.flower import FederationError

    with pytest.raises(FederationError, match="not empty"):
        federations.set_up(tmp_path / "fed", federation)
    assert sorted(path.stat().st_mtime_ns for path in (tmp_path / "fed").rglob("*")) == before


def test_an_address_that_cannot_stand_in_a_certificate_leaves_no_folder(tmp_path):
    from fl_utils.deployment.flower.credentials import CredentialError

    with pytest.raises(CredentialError):
        federations.set_up(tmp_path / "fed", federations.federation_of(small()), hosts=["not a host!"])
    assert not (tmp_path / "fed").exists()


def test_without_record_a_command_that_does_not_train_says_so(monkeypatch):
    monkeypatch.setenv("FL_UTILS_NO_TRAINING", "1")
    with pytest.raises(records.RecordError, match="does not train"):
        federations.deployed_run(small(seed=77))


def test_a_record_is_loaded_and_nothing_is_started(monkeypatch):
    config = small(seed=78)
    rows = pd.DataFrame([(1, "all", "test", "accuracy", 0.5)], columns=records.METRIC_COLUMNS)
    predictions = pd.DataFrame({"client": ["all"], "split": ["test"], "example": [0]})
    written = records.write_record(
        paths.runs_root("smoke") / federations.DEPLOYMENT, config, fingerprint=data_of(config).fingerprint, metrics=rows,
        predictions=predictions, duration_s=1.0,
    )
    monkeypatch.setattr(federations, "Local", None)
    assert federations.deployed_run(config).path == written.path


def test_in_one_process_is_moved_by_its_start():
    config = small(total_rounds=1)
    one = in_one_process(config)
    other = in_one_process(config, [weight + 0.5 for weight in one])
    assert farthest(one, in_one_process(config)) == 0.0
    assert farthest(one, other) > 0.1


# --- studies ---


def test_deployed_runs_are_those_of_the_simulation():
    for profile, settings in federation_studies.SETTINGS.items():
        if profile == "paper":  # its learning rate is read from tuning records
            continue
        configs = federation_studies.deployed_configs(profile)
        assert [config.seed for config in configs] == list(settings.seeds)
        assert {(config.method, config.num_clients, config.partition) for config in configs} == {("fedavg", 4, "iid")}


def test_curve_differences_by_hand():
    simulated = [run_of(0, [0.1, 0.2]), run_of(1, [0.3, 0.6])]
    deployed = [run_of(0, [0.2, 0.2]), run_of(1, [0.2, 0.7])]
    row = federation_studies.curve_differences(simulated, deployed, "balanced_accuracy").iloc[0]
    assert row["rounds"] == 2 and row["seeds"] == 2
    assert row["mean_difference"] == pytest.approx((0.1 + 0.0 - 0.1 + 0.1) / 4)
    assert row["mean_distance"] == pytest.approx((0.1 + 0.0 + 0.1 + 0.1) / 4)
    assert row["largest_mean_difference"] == pytest.approx(0.05)
    assert row["seed_distance"] == pytest.approx((0.2 + 0.4) / 2)


def interrupted() -> Content:
    metrics = pd.DataFrame(
        [(1, "0", "round", "took_part", 1.0), (1, "1", "round", "took_part", 1.0), (2, "0", "round", "took_part", 1.0)],
        columns=records.METRIC_COLUMNS,
    )
    sent = pd.DataFrame({
        "what": "train", "round": ["1", "2", "1"], "message_sha256": "ab" * 32, "content_bytes": [90, 90, 90],
        "sent_bytes_before": [10, 110, 5], "hospital": [0, 0, 1],
    })  # fmt: skip
    one = {"state": "finished", "round": 2, "bytes": 3_000_000, "last_word": "round 2"}
    status = {"state": "finished", "round": 2, "total_rounds": 2, "last_word": "Finished", "validation": None, "hospitals": {"0": one, "1": one}}
    return Content({"metrics": metrics, "sent": sent}, {"rounds": 2, "status": status})


def test_presence_has_a_row_for_each_hospital_and_round():
    table = federation_studies.presence(interrupted()).set_index(["client", "round"])["counted"]
    assert table.to_dict() == {
        ("Hospital 0", 1): True, ("Hospital 0", 2): True, ("Hospital 1", 1): True, ("Hospital 1", 2): False,
    }  # fmt: skip


def test_sent_rows_are_the_first_hospitals_with_all_bytes_between_two_updates():
    table = federation_studies.sent_rows(interrupted())
    assert list(table["round"]) == ["1", "2"] and table["bytes_a_round"].iloc[0] == 100 and np.isnan(table["bytes_a_round"].iloc[1])


def test_members_files_show_keys_with_their_modes_and_images_as_one_row():
    table = federation_studies.member_files(small())
    secret = table[table["file"].isin(["key", "ca.key", "server.key"])]
    assert len(secret) == 5 and set(secret["mode"]) == {"600"}
    images = table[table["file"].str.endswith("images")]
    assert len(images) == 3 and sum(int(text.split()[1]) for text in images["file"]) == 120
    assert not table["file"].str.endswith(".png").any()


def test_status_is_shown_as_rows_and_as_a_table():
    status = interrupted().facts["status"]
    assert list(federation_studies.status_rows(status)["received_MB"]) == [3.0, 3.0]
    table = federation_cli.table_of(status | {"validation": {"round": 2, "balanced_accuracy": 0.5}})
    assert table.row_count == 2 and "0.500" in table.title


# --- commands ---


def called(*arguments):
    return CliRunner().invoke(cli.app, arguments)


def test_init_says_what_to_type_next(tmp_path):
    folder = tmp_path / "fed"
    done = called(
        "federation", "init", "--folder", str(folder), "--hospitals", "3", "--rounds", "2", "--num-images", "120", "--image-size-px", "24",
        "--model", "small_cnn", "--secure", "--address", "127.0.0.1:9555",
    )
    assert done.exit_code == 0, done.output
    assert f"fl-utils client 2 --folder {folder}" in done.output and "client 3" not in done.output
    federation = read_federation(folder)
    assert federation.secure.threshold == 2 and federation.address == "127.0.0.1:9555" and federation.config.total_rounds == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--method", "scaffold"), "scaffold"), (("--address", "9092"), "host:port"), (("--model", "unet"), "unet"),
        (("--aggregator", "coordinate_median", "--secure"), "sees each update|see each update"),
    ],
)
def test_init_refuses_what_cannot_be(tmp_path, arguments, said):
    done = called("federation", "init", "--folder", str(tmp_path / "fed"), "--num-images", "120", "--image-size-px", "24", *arguments)
    assert done.exit_code != 0 and isinstance(done.exception, ConfigError)
    import re

    assert re.search(said, str(done.exception))
    assert not (tmp_path / "fed").exists()


def test_status_without_a_server_says_how_to_start_one(tmp_path):
    done = called("federation", "status", "--folder", str(tmp_path))
    assert done.exit_code != 0 and "fl-utils server" in str(done.exception)


def test_down_of_nothing_ends_nothing(tmp_path):
    assert "0 processes ended" in called("federation", "down", "--folder", str(tmp_path)).output


def test_paper_configuration_is_checked():
    with pytest.raises(ConfigError):
        federations.federation_of(make_config(**(small().model_dump() | {"method": "scaffold", "client_momentum": 0.0})))
