"""The catalogue: cards, names, patient keys."""

import dataclasses

import pytest

from fl_utils.data import CARDS, DataError, card, phantoms


def test_every_card_is_complete():
    for name, info in CARDS.items():
        assert info.name == name
        assert info.title and info.licence and info.citation and info.source and info.note
        assert len(set(info.class_names)) == len(info.class_names) >= 2
        if not info.synthetic:
            assert set(info.splits) == {"train", "test"}
            assert info.folder


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(DataError, match="no dataset 'brain'.*brain_mri, chest_xray, phantom_brain, phantom_chest"):
        card("brain")


def test_cards_cannot_be_changed():
    with pytest.raises(TypeError):
        card("brain_mri").classes["other"] = "other"
    with pytest.raises(dataclasses.FrozenInstanceError):
        card("brain_mri").name = "other"


def test_phantoms_have_the_classes_of_their_real_twins():
    for name, twin, drawn in (
        ("phantom_brain", "brain_mri", phantoms.BRAIN_CLASSES),
        ("phantom_chest", "chest_xray", phantoms.CHEST_CLASSES),
    ):
        assert card(name).class_names == card(twin).class_names
        assert tuple(card(name).classes) == tuple(drawn)  # same labels in the same order


@pytest.mark.parametrize(
    ("file_name", "patient"),
    [
        ("person12_bacteria_46.jpeg", "person12_bacteria"),
        ("person12_virus_46.jpeg", "person12_virus"),
        ("person447_virus_921_1.jpeg", "person447_virus"),
        ("IM-0439-0001.jpeg", "IM-0439"),
        ("IM-0439-0001-0002.jpeg", "IM-0439"),
        ("NORMAL2-IM-0439-0001.jpeg", "NORMAL2-IM-0439"),
        ("NORMAL2-IM-0587-0001-0002.jpeg", "NORMAL2-IM-0587"),
        ("scan7.jpeg", ""),
        ("copy of person12_bacteria_46.jpeg", ""),
    ],
)
def test_chest_patient_keys(file_name, patient):
    for published_split in ("train", "test"):  # one person in both parts
        assert card("chest_xray").patient(file_name, published_split) == patient


def test_a_chest_patient_of_another_type_is_another_person():
    info = card("chest_xray")
    assert info.patient("person8_virus_1.jpeg", "train") != info.patient("person8_bacteria_2.jpeg", "train")


def test_a_card_may_say_that_equal_keys_of_the_parts_are_different_people():
    info = dataclasses.replace(card("chest_xray"), patient_scope="part")
    assert info.patient("person8_virus_1.jpeg", "train") == info.patient("person8_virus_2.jpeg", "train")
    assert info.patient("person8_virus_1.jpeg", "train") != info.patient("person8_virus_1.jpeg", "test")
    assert info.patient("scan7.jpeg", "train") == info.patient("scan7.jpeg", "test") == ""  # still nobody


def test_a_mirrored_chest_is_not_plausible_and_a_mirrored_head_is():
    safe = {name: info.flip_is_safe for name, info in CARDS.items()}
    assert safe == {"brain_mri": True, "phantom_brain": True, "chest_xray": False, "phantom_chest": False}


def test_brain_mri_names_no_patients():
    assert card("brain_mri").patient("gg (1).jpg", "train") == ""
