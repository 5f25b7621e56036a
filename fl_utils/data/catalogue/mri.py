"""Cards of magnetic resonance images (slices; volumes with masks are in `segmentation`)."""

from fl_utils.data.catalogue.schema import DatasetCard, Download

BRAIN_MRI = DatasetCard(
    name="brain_mri",
    label="Brain MRI",
    title="Brain Tumor Classification (MRI)",
    task="multi-class",
    modality="MRI, 2-D slices",
    layout="class_folders",
    folder="brain_mri",
    splits={"train": ("Training",), "test": ("Testing",)},
    classes={
        "glioma_tumor": "glioma",
        "meningioma_tumor": "meningioma",
        "no_tumor": "no_tumor",
        "pituitary_tumor": "pituitary",
    },
    counts={"Training": 2870, "Testing": 394},
    series_key=r"(?P<series>Training/(?:glioma_tumor/gg|meningioma_tumor/m[23]?|pituitary_tumor/p)) ?"
    r"\((?P<number>\d+)\)\.jpg$",
    downloads=(Download(kind="kaggle", address="sartajbhuvaji/brain-tumor-classification-mri"),),
    access="A Kaggle account with an API token.",
    licence="MIT (Kaggle page)",
    citation="Bhuvaji et al. 2020, Brain Tumor Classification (MRI), Kaggle, doi:10.34740/KAGGLE/DSV/1183165",
    source="https://www.kaggle.com/datasets/sartajbhuvaji/brain-tumor-classification-mri",
    ethics="The page names no hospital, no ethics approval, no consent and no population, and does not say how the "
    "diagnoses were made or who may license the images. The file names name nobody. For learning and for comparing "
    "methods only: not for clinical use.",
    known_faults=(
        "3,264 files but 3,027 distinct contents: 166 groups of byte-identical files, 64 of them across "
        "Training and Testing, all no_tumor: 88 of the 105 no_tumor test images have a copy in Training.",
        "Copies that differ in bytes but not in pixels: 157 more pairs or groups, 156 of them across Training and "
        "Testing; 2,870 distinct pictures remain. 251 of the 394 test images have the same pixels as a training "
        "image. The splits go by pixels, not by bytes.",
        "Labels that contradict each other: 2 groups of near-identical pictures are glioma in Testing and meningioma in "
        "both Testing and Training. One of the labels must be wrong.",
        "The maker of a later collection left out this one's glioma images, holding many of them to be in the wrong "
        "class (Kaggle masoudnickparvar/brain-tumor-mri-dataset). No radiologist's review is known.",
        "The classes come from different sources: 90 % of glioma and pituitary images are 512 x 512 pixels, "
        "1 % of no_tumor; 70 % of no_tumor are not square, 8 % of glioma. Image shape gives the class away.",
    ),
    note="No patient ids: copies, near-duplicates and blocks of eight or more consecutive file "
    "numbers are kept together instead. Files with consecutive numbers often show neighbouring slices of one head: in "
    "the series gg, m, m2, m3 and p, 49 to 72 % of them are as alike as 0.1 % of random pairs. Slices of one patient "
    "in another plane can still lie on both sides of a split.",
)
