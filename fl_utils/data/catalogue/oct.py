"""Cards of optical coherence tomography of the retina."""

from fl_utils.data.catalogue.schema import DatasetCard, Download

OCT2017 = DatasetCard(
    name="oct2017",
    label="Retinal OCT",
    title="Retinal OCT images (OCT2017)",
    task="multi-class",
    modality="Optical coherence tomography, 2-D slices (Heidelberg Spectralis)",
    layout="class_folders",
    folder="oct2017/OCT2017",
    # Kaggle's copy took its val/ (8 images a class) out of the publisher's test/: together they are that test set.
    splits={"train": ("train",), "test": ("test", "val")},
    optional_parts=("val",),
    classes={"CNV": "cnv", "DME": "dme", "DRUSEN": "drusen", "NORMAL": "normal"},
    counts={"train": 83_484, "test": 1_000},
    size_bytes=5_793_183_169,
    downloads=(
        Download(
            kind="url",
            # Mendeley's own direct download of version 2, as ten and more public READMEs give it; the size is from one
            # of them and agrees with the 5.4 GB of the page. No checksum is published.
            address="https://data.mendeley.com/public-files/datasets/rscbjbr9sj/files/"
            "5699a1d8-d1b6-45db-bb92-b61051445347/file_downloaded",
            file_name="OCT2017.tar.gz",
            size_bytes=5_793_183_169,
            strip=1,  # the archive's one folder is "OCT2017", in some copies "OCT2017 " with a blank
        ),
    ),
    patient_key=r"(?:CNV|DME|DRUSEN|NORMAL)-(\d+)-",
    patient_scope="dataset",
    flip_is_safe=True,  # a mirrored right eye looks like a left eye
    licence="CC BY 4.0",
    citation="Kermany et al. 2018, Cell 172(5):1122-1131, doi:10.1016/j.cell.2018.02.010; "
    "data doi:10.17632/rscbjbr9sj.2",
    source="https://data.mendeley.com/datasets/rscbjbr9sj/2",
    ethics="Adults, routine care of 2013 to 2017 at the Shiley Eye Institute (San Diego), the California Retinal "
    "Research Foundation, Medical Center Ophthalmology Associates, Shanghai First People's Hospital and Beijing "
    "Tongren Eye Center; collected afterwards from their archives. The paper tells of approval by the ethics "
    "committees and does not mention consent. Patient numbers are random. Age, sex and ethnicity are not in the "
    "files, so fairness cannot be checked. One device. Not for clinical use.",
    known_faults=(
        "The published test part is not independent: patients of it are also in train, by their numbers in the file "
        "names. A public re-split counts 566 of the 633 test patients (not counted again here: no copy was at "
        "hand). Patients are kept together by their number in the suite's own split.",
        "Improper splits of this and two other OCT datasets raise the measured performance by 0.07 to 0.43 of "
        "Matthews' correlation (Tampu et al. 2022, Scientific Data 9:580, doi:10.1038/s41597-022-01618-6).",
        "One patient number may occur under several classes: two eyes, or two visits.",
        "Versions differ: v2 and Kaggle hold 84,484 images, v3 (ZhangLabData, doi:10.17632/rscbjbr9sj.3) 109,309, "
        "with another test part. Numbers from papers can be compared only within a version.",
        "The classes are uneven: in train 37,205 cnv, 11,348 dme, 8,616 drusen, 26,315 normal; the test part has 250 "
        "of each.",
    ),
    note="Five institutions in the United States and China were pooled, and the files do not say which image is from "
    "where: no natural hospitals. File names are CLASS-patient-number.jpeg: the patient is the first "
    "number, whatever the class. Kaggle has the same images as paultimothymooney/kermany2018, twice in one archive "
    "(11 GB), in a folder whose name ends in a blank (\"OCT2017 \"): move train, val and test from it to "
    "oct2017/OCT2017. The real archive was not unpacked here.",
)
