"""The facts on the dataset cards, and the page that is written from them."""

import dataclasses
import re

import pytest

from fl_utils import paths
from fl_utils.data.catalogue import CARDS, DatasetCard, Download, card
from fl_utils.data.cards_page import cards_page, write_page

REAL = [info for info in CARDS.values() if not info.synthetic]
DOWNLOADS = [(info.name, item) for info in CARDS.values() for item in info.downloads]

# Images (subjects) as the publishers or their papers count them.
TOTALS = {
    "brain_mri": 3_264,
    "chest_xray": 5_856,
    "covid19": 317,
    "nih": 112_120,
    "oct2017": 84_484,
    "pneumoniamnist": 5_856,
    "octmnist": 109_309,
    "chestmnist": 112_120,
    "brats2020": 494,  # 369 of them with masks
    "msd_brain": 750,
    "hippocampus": 390,
}

NIH_FINDINGS = (
    "Atelectasis|Cardiomegaly|Effusion|Infiltration|Mass|Nodule|Pneumonia|Pneumothorax|Consolidation|Edema|Emphysema|"
    "Fibrosis|Pleural_Thickening|Hernia"
)


def each(cards):
    return pytest.mark.parametrize("info", cards, ids=[info.name for info in cards])


@each(CARDS.values())
def test_every_card_says_what_a_user_must_know(info):
    for field in ("label", "title", "modality", "licence", "citation", "source", "ethics", "note"):
        assert getattr(info, field).strip(), field
    texts = (info.title, info.licence, info.citation, info.ethics, info.access, info.hospital_note, info.note)
    for text in (*texts, *info.known_faults):  # two lines of a text must meet with one blank
        assert not re.search(r"\b(TODO|FIXME|XXX|TBD)\b|\s\s|[a-z][.,;:][A-Z]|^\s|\s$", text), text


@each(REAL)
def test_every_real_card_names_faults_and_how_it_is_got(info):
    assert info.known_faults
    assert info.downloads or info.access
    assert bool(info.counts) == (info.layout != "xray_sites")
    if any(item.kind == "kaggle" for item in info.downloads):
        assert "Kaggle account" in info.access


@each([info for info in REAL if info.task != "segmentation"])
def test_every_real_card_of_images_is_marked_not_for_clinical_use(info):
    assert "not for clinical use" in info.ethics.lower()


@each(CARDS.values())
def test_class_names_are_unique_and_snake_case(info):
    names = info.class_names
    assert len(set(names)) == len(names) >= 2
    assert all(re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name) for name in (*names, info.name))


@each([info for info in REAL if info.counts])
def test_published_counts_add_up(info):
    assert sum(info.counts.values()) == TOTALS[info.name]
    parts = {part for parts in info.splits.values() for part in parts}
    assert set(info.counts) <= parts | {"train", "test", "total"} | set(info.classes)
    assert set(info.optional_parts) <= parts | {"imagesTs"}


@pytest.mark.parametrize(("name", "item"), DOWNLOADS, ids=[f"{name}-{item.file_name}" for name, item in DOWNLOADS])
def test_downloads_are_well_formed(name, item):
    if item.kind == "kaggle":
        assert re.fullmatch(r"[a-z0-9-]+/[a-z0-9-]+", item.address)
        assert item.file_name == "" and item.checksum is None  # Kaggle publishes none
    else:
        assert re.fullmatch(r"https://[\w.-]+/\S+", item.address)
        assert re.fullmatch(r"[\w.-]+\.(zip|tar|tar\.gz|npz)", item.file_name)
        assert item.unpack == (not item.file_name.endswith(".npz"))
    if item.checksum is not None:
        assert re.fullmatch(r"md5:[0-9a-f]{32}|sha256:[0-9a-f]{64}", item.checksum)
    assert item.size_bytes is None or item.size_bytes > 0
    assert item.strip >= 0


def test_no_file_and_no_checksum_is_named_twice():
    addresses = [item.address for _, item in DOWNLOADS]
    checksums = [item.checksum for _, item in DOWNLOADS if item.checksum]
    assert len(set(addresses)) == len(addresses) and len(set(checksums)) == len(checksums) > 0


@each([info for info in CARDS.values() if "http" in info.source])
def test_sources_are_addresses(info):
    assert re.fullmatch(r"https?://[\w.-]+(/\S*)?", info.source)


@pytest.mark.parametrize(
    ("name", "file_name", "patient"),
    [
        ("covid19", "COVID-00003a.jpg", "COVID-00003"),
        ("covid19", "COVID-00003b.jpg", "COVID-00003"),
        ("covid19", "COVID-00015a.png", "COVID-00015"),
        ("covid19", "COVID-00022.jpg", "COVID-00022"),
        (
            "covid19",
            "auntminnie-a-2020_01_28_23_51_6665_2020_01_28_Vietnam_coronavirus.jpeg",
            "2020_01_28_23_51_6665",
        ),
        (
            "covid19",
            "auntminnie-d-2020_01_28_23_51_6665_2020_01_28_Vietnam_coronavirus.jpeg",
            "2020_01_28_23_51_6665",
        ),
        (
            "covid19",
            "auntminnie-2020_01_31_20_24_2322_2020_01_31_x-ray_coronavirus_US.jpg",
            "2020_01_31_20_24_2322",
        ),
        ("covid19", "054.jpeg", ""),  # the number of an image, not of a person
        ("covid19", "radiopaedia-2019-novel-coronavirus-infected-pneumonia.jpg", ""),
        ("nih", "00000061_012.png", "00000061"),
        ("nih", "00030805_000.png", "00030805"),
        ("oct2017", "CNV-1016042-1.jpeg", "1016042"),
        ("oct2017", "NORMAL-1016042-12.jpeg", "1016042"),  # one person, whatever the class
        ("oct2017", "DRUSEN-1786810-3.jpeg", "1786810"),
        ("oct2017", "scan.jpeg", ""),
    ],
)
def test_patient_keys_parse_published_file_names(name, file_name, patient):
    for published_split in ("train", "test"):  # one person in both
        assert card(name).patient(file_name, published_split) == patient


def test_findings_are_in_the_official_order():
    findings = NIH_FINDINGS.split("|")
    assert list(card("nih").classes) == findings
    assert card("nih").class_names == tuple(finding.lower() for finding in findings)
    assert card("chestmnist").class_names == card("nih").class_names
    assert list(card("chestmnist").classes) == [str(index) for index in range(14)]


def test_cards_of_the_same_pictures_agree_on_classes_and_mirroring():
    for small, original in (("pneumoniamnist", "chest_xray"), ("octmnist", "oct2017"), ("chestmnist", "nih")):
        assert card(small).class_names == card(original).class_names
        assert card(small).flip_is_safe == card(original).flip_is_safe
        assert original in " ".join((*card(small).known_faults, card(small).ethics))


def test_only_eyes_and_heads_may_be_mirrored():
    images = [info for info in CARDS.values() if info.task != "segmentation"]
    safe = {info.name for info in images if info.flip_is_safe}
    assert safe == {"brain_mri", "oct2017", "octmnist", "phantom_brain", "phantom_oct"}


def test_the_same_test_images_have_either_name_in_a_copy():
    for name in ("covid19", "oct2017"):
        info = card(name)
        assert info.splits["test"] == ("test", "val") and "val" in info.optional_parts
    assert "train" not in card("covid19").optional_parts


def test_medmnist_files_are_what_the_reader_looks_for():
    for name in ("pneumoniamnist", "octmnist", "chestmnist"):
        info = card(name)
        assert info.layout == "medmnist" and info.folder == name
        assert [item.file_name for item in info.downloads] == [f"{name}.npz", f"{name}_64.npz"]
        assert all(item.address.endswith(f"/{item.file_name}?download=1") for item in info.downloads)
        assert all(size in info.note for size in (f"{name}_128.npz (md5 ", f"{name}_224.npz (md5 "))


def test_sites_own_up_to_the_source_that_is_no_hospital():
    info = card("xray_sites")
    assert info.class_names == ("normal", "pneumonia")
    assert any("covid19 would be the natural third source and is none" in fault for fault in info.known_faults)
    assert "30 of the 90 Viral Pneumonia images are called bacterial" in " ".join(card("covid19").known_faults)


# The page


def made_up(**changes):
    return dataclasses.replace(
        DatasetCard(
            name="made_up", label="Made up", title="A made-up dataset", task="multi-class", modality="MRI | 2-D",
            layout="class_folders", folder="made_up", classes={"A": "a", "B": "b"}, licence="CC BY 4.0",
            citation="Nobody 2020, doi:10.1000/xyz(1).2; arXiv:2001.00001", source="https://example.org/data",
            ethics="Nobody is shown.", note="None.",
        ),
        **changes,
    )  # fmt: skip


def test_the_page_is_not_stale():
    text = (paths.project_root() / "data" / "README.md").read_text(encoding="utf-8")
    assert text == cards_page(CARDS.values()), "run fl_utils.data.cards_page.write_page()"


def test_the_page_has_a_row_and_a_section_a_card_and_drawn_data_last():
    text = cards_page(reversed(list(CARDS.values())))
    sections = re.findall(r"^## (\w+)$", text, flags=re.MULTILINE)
    rows = re.findall(r"^\| \[(\w+)\]\(#\1\) \|", text, flags=re.MULTILINE)
    assert sorted(sections) == sorted(CARDS) and sections == rows
    synthetic = [card(name).synthetic for name in sections]
    assert synthetic == sorted(synthetic) and synthetic[-1]
    assert "FL_UTILS_DATA" in text and "fl-utils data fetch NAME" in text and text.endswith("\n")


def test_the_page_tells_all_facts_of_a_card():
    text = cards_page([
        made_up(
            counts={"train": 1_200, "test": 34}, size_bytes=1_235_512_464, access="Ask them.",
            hospital_note="Two wards.", known_faults=("Half of it is missing.",), patient_key=r"(p\d+)_",
            flip_is_safe=False,
            downloads=(
                Download("kaggle", "owner/name"),
                Download("url", "https://example.org/a.zip", "a.zip", "md5:ab"),
            ),
        )
    ])  # fmt: skip
    assert "| MRI \\| 2-D | 1,234 | 1.24 GB | CC BY 4.0 | Kaggle, with a token, direct |" in text
    for fact in (
        "train 1,200, test 34", "Ask them.", "Two wards.", "- Half of it is missing.", r"`(p\d+)_`", "not allowed",
        "Nobody is shown.", "[owner/name](https://www.kaggle.com/datasets/owner/name)", "`md5:ab`", "`made_up`",
    ):  # fmt: skip
        assert fact in text, fact


def test_references_become_links_without_the_punctuation_after_them():
    text = cards_page([made_up()])
    assert "[arXiv:2001.00001](https://arxiv.org/abs/2001.00001)" in text
    text = cards_page([made_up(citation="A (doi:10.1000/x-1.y). B doi:10.1000/z, C doi:10.1000/w.")])
    for doi in ("10.1000/x-1.y", "10.1000/z", "10.1000/w"):
        assert f"[doi:{doi}](https://doi.org/{doi})" in text


@pytest.mark.parametrize(
    ("sizes", "told"),
    [((4_000_000, 6_500_000), "10.5 MB"), ((999, None), "not published"), ((), "none"), ((812,), "812 bytes")],
)
def test_the_size_is_the_sum_of_the_files_only_if_all_are_published(sizes, told):
    files = tuple(
        Download("url", f"https://example.org/{index}.zip", f"{index}.zip", size_bytes=size)
        for index, size in enumerate(sizes)
    )
    assert f"| {told} | CC BY 4.0 |" in cards_page([made_up(downloads=files)])


def test_the_page_is_written_whole_and_says_where(tmp_path):
    written = write_page(tmp_path / "new" / "README.md")
    assert written.read_text(encoding="utf-8") == cards_page(CARDS.values())
