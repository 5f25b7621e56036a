"""Layout "nih": a table of findings and patients, and the images in one or several folders."""

from pathlib import Path

import pandas as pd

from fl_utils.data.catalogue import DatasetCard
from fl_utils.data.readers.files import ImageFile, Listing, existing_root, is_image_name, visible
from fl_utils.data.types import DataError

LAYOUT = "nih/Data_Entry_2017.csv and nih/images/*.png (or nih/images_001/images/*.png, ...)"
_TABLES = ("Data_Entry_2017.csv", "Data_Entry_2017_v2020.csv")
_COLUMNS = {"Image Index", "Finding Labels", "Patient ID", "Patient Age", "View Position"}
_NO_FINDING = "No Finding"


def list_nih(card: DatasetCard) -> Listing:
    """Lists the images that have a row in the table.

    The published test part is that of `test_list.txt`; without this file everything is "train".
    Hospitals are four groups of patients, as the data names no institution but one: those whose
    first X-ray was taken at the bedside (AP) or standing (PA), under 50 years or older.

    Raises:
      DataError: table or images are missing, a column is missing, an unknown finding.
    """
    root = existing_root(card, LAYOUT)
    table_name, table = _read_table(card, root)
    images = _find_images(root)
    if not images:
        raise DataError(f"{card.name}: {root} holds no images. Expected layout: {LAYOUT}.")
    findings = {name: index for index, name in enumerate(card.classes)}
    listed = table["Finding Labels"].str.split("|")
    unknown = sorted({name for names in listed for name in names} - set(findings) - {_NO_FINDING})
    if unknown:
        known = ", ".join([*findings, _NO_FINDING])
        raise DataError(f"{card.name}: unknown findings in {table_name}: {', '.join(unknown)}. Expected: {known}.")
    in_test = _test_names(root)
    hospitals = _patient_groups(table)
    files = []
    rows = zip(table["Image Index"], listed, table["Patient ID"].astype(str), strict=True)
    for name, names, patient in rows:
        if name in images:
            present = {findings[finding] for finding in names if finding in findings}
            label = tuple(int(index in present) for index in range(len(findings)))
            split = "test" if name in in_test else "train"
            files.append(ImageFile(images[name], label, split, patient, hospitals[patient]))
    excluded = [(images[name], f"no row in {table_name}") for name in sorted(set(images) - set(table["Image Index"]))]
    absent = len(table) - len(files)
    if absent:
        excluded.append((table_name, f"{absent} of {len(table)} rows have no image file: a partial copy"))
    if not files:
        raise DataError(f"{card.name}: none of the {len(images)} images in {root} has a row in {table_name}.")
    return Listing(root, sorted(files, key=lambda file: file.source), tuple(excluded))


def _read_table(card: DatasetCard, root: Path) -> tuple[str, pd.DataFrame]:
    """The table and its file name."""
    path = next((root / name for name in _TABLES if (root / name).is_file()), None)
    if path is None:
        raise DataError(f"{card.name}: {root} has no {' or '.join(_TABLES)}. Expected layout: {LAYOUT}.")
    try:
        # The official rows end with a comma; in copies whose header does not, the first column is still no index.
        table = pd.read_csv(path, index_col=False, dtype={"Image Index": str, "Finding Labels": str})
    except (ValueError, OSError) as error:
        raise DataError(f"{card.name}: {path.name} cannot be read as a table ({error}). Download it again.") from None
    missing = sorted(_COLUMNS - set(table.columns))
    if missing:
        raise DataError(
            f"{card.name}: {path.name} has no column {', '.join(missing)}; it has {', '.join(table.columns[:8])}. "
            "Expected the official table, unchanged."
        )
    for column in ("Image Index", "Finding Labels", "Patient ID"):
        empty = table.index[table[column].isna()]
        if len(empty):
            raise DataError(
                f"{card.name}: {path.name} has no {column} in {len(empty)} row(s), the first of them row "
                f"{empty[0] + 1} below the header. Expected the official table, unchanged."
            )
    twice = table["Image Index"].duplicated()
    if twice.any():
        raise DataError(f"{card.name}: {path.name} names {table['Image Index'][twice].iloc[0]} more than once.")
    return path.name, table


def _find_images(root: Path) -> dict[str, str]:
    """File name -> path below root."""
    folders = [root / "images", *sorted(root.glob("images_*/images")), *sorted(root.glob("images_*"))]
    return {
        name: (folder / name).relative_to(root).as_posix()
        for folder in folders if folder.is_dir()
        for name in visible(folder) if is_image_name(name)
    }


def _test_names(root: Path) -> set[str]:
    path = root / "test_list.txt"
    return set(path.read_text(encoding="utf-8").split()) if path.is_file() else set()


def _patient_groups(table: pd.DataFrame) -> dict[str, str]:
    """Patient -> group, by the patient's first row."""
    first = table.drop_duplicates("Patient ID")
    # Ages are written "058Y" in the first release, 58 in the later ones.
    age = first["Patient Age"].astype(str).str.extract(r"(\d+)", expand=False).astype(float)
    place = first["View Position"].map({"AP": "bedside", "PA": "standing"}).fillna("standing")
    band = (age >= 50).map({True: "50 and over", False: "under 50"})
    return dict(zip(first["Patient ID"].astype(str), place + ", " + band, strict=True))
