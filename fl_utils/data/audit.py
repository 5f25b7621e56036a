"""The audit that runs before training: copies, near-duplicates, patients and labels across published splits."""

from dataclasses import dataclass, fields

import numpy as np
import pandas as pd

from fl_utils.data.types import ImageDataset


@dataclass(frozen=True, eq=False)
class AuditReport:
    """What the audit found; a "group" here has two or more members.

    Attributes:
      files: number of images.
      distinct: number of different file contents.
      duplicate_groups: groups of byte-identical files.
      cross_split_groups: those with files in both the published train and test.
      label_conflicts: those whose files bear different labels.
      distinct_pictures: number of different pictures (same pixels, whatever the bytes).
      cross_split_pictures: pictures that are in both the published train and test.
      test_pictures_in_train: published test images whose picture is in the published train too.
      near_duplicate_groups: groups of two or more different pictures that are near-duplicates, directly or
        through others (see `fl_utils.data.near`).
      near_cross_split_groups: those with images in both the published train and test.
      near_label_conflicts: those whose images bear different labels.
      patients: number of known patients.
      patients_in_several_splits: patients with images in both the published train and test.
      independent_groups: groups that share no picture, near-duplicate, patient or series: what splits are cut by.
      excluded: files that were left out as unreadable or unlabelled.
      table: one row a published split and class: split, class, files, distinct (within that
        cell), in_other_split (files whose picture is in the other split), near_in_other_split (or a near-duplicate).
      examples: sources of up to ten groups of copies, label conflicts first, then groups across splits.
      near_examples: the same of near-duplicate groups.
    """

    files: int
    distinct: int
    duplicate_groups: int
    cross_split_groups: int
    label_conflicts: int
    distinct_pictures: int
    cross_split_pictures: int
    test_pictures_in_train: int
    near_duplicate_groups: int
    near_cross_split_groups: int
    near_label_conflicts: int
    patients: int
    patients_in_several_splits: int
    independent_groups: int
    excluded: int
    table: pd.DataFrame
    examples: tuple[tuple[str, ...], ...]
    near_examples: tuple[tuple[str, ...], ...]

    def counts(self) -> dict[str, int]:
        """The numbers by name."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.type is int}


def audit(dataset: ImageDataset, *, num_examples: int = 10) -> AuditReport:
    """Counts copies, near-duplicates and patients, and where they lie.

    Args:
      dataset: any dataset; its groups say which files belong together.
      num_examples: how many groups to show.
    """
    labels = [tuple(np.atleast_1d(label)) for label in dataset.labels]
    frame = pd.DataFrame(
        {
            "split": dataset.published_split, "label": labels, "content": dataset.duplicate_groups,
            "picture": dataset.picture_groups, "near": dataset.near_groups, "source": dataset.sources,
            "patient": dataset.patients,
        }
    )
    copies, conflicts = _groups(frame, "content", "content"), _groups(frame, "near", "picture")
    pictures = frame.groupby("picture")["split"]
    crossing = pictures.transform("nunique") > 1
    named = frame[frame["patient"] != ""].groupby("patient")["split"]
    return AuditReport(
        files=len(dataset),
        distinct=frame["content"].nunique(),
        duplicate_groups=len(copies),
        cross_split_groups=int((copies["splits"] > 1).sum()),
        label_conflicts=int((copies["labels"] > 1).sum()),
        distinct_pictures=pictures.ngroups,
        cross_split_pictures=int((pictures.nunique() > 1).sum()),
        test_pictures_in_train=int((crossing & (frame["split"] == "test")).sum()),
        near_duplicate_groups=len(conflicts),
        near_cross_split_groups=int((conflicts["splits"] > 1).sum()),
        near_label_conflicts=int((conflicts["labels"] > 1).sum()),
        patients=named.ngroups,
        patients_in_several_splits=int((named.nunique() > 1).sum()),
        independent_groups=len(np.unique(dataset.groups)),
        excluded=len(dataset.excluded),
        table=_table(dataset, frame, crossing),
        examples=_examples(frame, "content", copies, num_examples),
        near_examples=_examples(frame, "near", conflicts, num_examples),
    )


def _groups(frame: pd.DataFrame, key: str, member: str) -> pd.DataFrame:
    """Groups by `key` with two or more members: splits and labels are the numbers of different ones."""
    grouped = frame.groupby(key)
    table = pd.DataFrame({"splits": grouped["split"].nunique(), "labels": grouped["label"].nunique()})
    size = grouped.size() if key == member else grouped[member].nunique()
    return table[size > 1]


def _examples(frame: pd.DataFrame, key: str, groups: pd.DataFrame, num: int) -> tuple[tuple[str, ...], ...]:
    shown = groups.sort_values(["labels", "splits"], ascending=False, kind="stable").index[:num]
    return tuple(tuple(frame.loc[frame[key] == group, "source"]) for group in shown)


def _table(dataset: ImageDataset, frame: pd.DataFrame, crossing: pd.Series) -> pd.DataFrame:
    frame = frame.assign(
        in_other_split=crossing, near_in_other_split=frame.groupby("near")["split"].transform("nunique") > 1
    )
    multi_hot = dataset.multi_hot
    # Every class gets a row in both splits, so that an empty cell is seen as 0, not missed. An image
    # with two findings counts in both; one with none in none.
    rows = []
    for split in ("train", "test"):
        for k, name in enumerate(dataset.class_names):
            cell = frame[(frame["split"] == split).to_numpy() & (multi_hot[:, k] > 0)]
            rows.append(
                {"split": split, "class": name, "files": len(cell), "distinct": cell["content"].nunique()}
                | {column: int(cell[column].sum()) for column in ("in_other_split", "near_in_other_split")}
            )
    return pd.DataFrame(rows)
