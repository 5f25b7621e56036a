"""The audit that runs before training: copies, leakage between published splits, label conflicts."""

from dataclasses import dataclass, fields

import numpy as np
import pandas as pd

from fl_utils.data.types import ImageDataset


@dataclass(frozen=True, eq=False)
class AuditReport:
    """What the audit found; "group" here is a group of two or more byte-identical files.

    Attributes:
      files: number of images.
      distinct: number of different file contents.
      duplicate_groups: groups of identical files.
      cross_split_groups: those with files in both the published train and test.
      label_conflicts: those whose files bear different labels.
      distinct_pictures: number of different pictures (same pixels, whatever the bytes).
      cross_split_pictures: pictures that are in both the published train and test.
      test_pictures_in_train: published test images whose picture is in the published train too.
      table: one row a published split and class: split, class, files, distinct (within that
        cell), in_other_split (files whose picture is in the other split).
      examples: sources of up to ten groups, label conflicts first, then groups across splits.
    """

    files: int
    distinct: int
    duplicate_groups: int
    cross_split_groups: int
    label_conflicts: int
    distinct_pictures: int
    cross_split_pictures: int
    test_pictures_in_train: int
    table: pd.DataFrame
    examples: tuple[tuple[str, ...], ...]

    def counts(self) -> dict[str, int]:
        """The numbers by name."""
        return {
            field.name: getattr(self, field.name) for field in fields(self) if field.name not in ("table", "examples")
        }


def audit(dataset: ImageDataset, *, num_examples: int = 10) -> AuditReport:
    """Counts exact copies and where they lie.

    Args:
      dataset: any dataset; its `duplicate_groups` say which files are identical.
      num_examples: how many groups to show.
    """
    frame = pd.DataFrame(
        {
            "split": dataset.published_split,
            "class": np.array(dataset.class_names)[dataset.labels],
            "label": dataset.labels,
            "content": dataset.duplicate_groups,
            "source": dataset.sources,
        }
    )
    contents = frame.groupby("content")
    per_content = pd.DataFrame(
        {"files": contents.size(), "splits": contents["split"].nunique(), "labels": contents["label"].nunique()}
    )
    pictures = frame.groupby(dataset.picture_groups)["split"]
    crossing = pictures.transform("nunique") > 1
    copies = per_content[per_content["files"] > 1]
    shown = copies.sort_values(["labels", "splits"], ascending=False, kind="stable").index[:num_examples]

    frame["in_other_split"] = crossing
    # Every class gets a row in both splits, so that an empty cell is seen as 0, not missed.
    cells = pd.MultiIndex.from_product([["train", "test"], dataset.class_names], names=["split", "class"])
    table = (
        frame.groupby(["split", "class"])
        .agg(files=("content", "size"), distinct=("content", "nunique"), in_other_split=("in_other_split", "sum"))
        .reindex(cells, fill_value=0)
        .astype("int64")
        .reset_index()
    )
    return AuditReport(
        files=len(dataset),
        distinct=len(per_content),
        duplicate_groups=len(copies),
        cross_split_groups=int((copies["splits"] > 1).sum()),
        label_conflicts=int((copies["labels"] > 1).sum()),
        distinct_pictures=pictures.ngroups,
        cross_split_pictures=int((pictures.nunique() > 1).sum()),
        test_pictures_in_train=int((crossing & (frame["split"] == "test")).sum()),
        table=table,
        examples=tuple(tuple(contents.get_group(content)["source"]) for content in shown),
    )
