"""Layout "class_folders": part/class folder/image."""

from pathlib import Path

from fl_utils.data.catalogue import DatasetCard
from fl_utils.data.readers.files import ImageFile, Listing, existing_root, is_image_name, visible
from fl_utils.data.types import DataError


def list_class_folders(card: DatasetCard) -> Listing:
    """Lists every visible file in every class folder of every part.

    Raises:
      DataError: a folder or a required part is missing; a class folder is missing, empty or unknown;
        images lie outside the class folders.
    """
    all_parts = [part for parts in card.splits.values() for part in parts]
    layout = f"{card.folder}/{{{','.join(all_parts)}}}/{{{','.join(card.classes)}}}/<image files>"
    root = existing_root(card, layout)
    files = []
    for published_split, parts in card.splits.items():
        present = [part for part in parts if (root / part).is_dir()]
        needed = [part for part in parts if part not in card.optional_parts] or ([] if present else list(parts))
        for part in needed:
            if part not in present:
                raise DataError(f"{card.name}: {root} has no folder {part}/. Expected layout: {layout}.")
        for part in present:
            _check(card, root / part, layout)
            for label, folder in enumerate(card.classes):
                names = visible(root / part / folder)
                if not names:
                    raise DataError(
                        f"{card.name}: {root / part / folder} holds no images. Get the data again: "
                        f"`fl-utils data fetch {card.name}`."
                    )
                files += [
                    ImageFile(f"{part}/{folder}/{name}", label, published_split, card.patient(name, published_split))
                    for name in names
                ]
    return Listing(root, sorted(files, key=lambda file: file.source))


def _check(card: DatasetCard, part: Path, layout: str) -> None:
    entries = visible(part)
    folders = [entry for entry in entries if (part / entry).is_dir()]
    images = [entry for entry in entries if entry not in folders and is_image_name(entry)]
    missing = [folder for folder in card.classes if folder not in folders]
    unknown = [folder for folder in folders if folder not in card.classes]
    for wrong, text in (
        (missing, "no class folder"),
        (unknown, "class folders that are not known:"),
        (images, "images outside the class folders:"),
    ):
        if wrong:
            shown = ", ".join(wrong[:10]) + (f" and {len(wrong) - 10} more" if len(wrong) > 10 else "")
            raise DataError(f"{card.name}: {part} has {text} {shown}. Expected layout: {layout}.")
