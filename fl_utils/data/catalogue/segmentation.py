"""Cards of volumes with a mask: every voxel has a class."""

from fl_utils.data.catalogue.schema import DatasetCard, Download

_MSD = "https://msd-for-monai.s3-us-west-2.amazonaws.com"
_MSD_CITATION = (
    "Antonelli et al. 2022, Nature Communications 13:4128, doi:10.1038/s41467-022-30695-9; "
    "Simpson et al. 2019, arXiv:1902.09063"
)
_BRATS_CITATION = (
    "Menze et al. 2015, IEEE Trans. Med. Imaging 34(10):1993-2024, doi:10.1109/TMI.2014.2377694; "
    "Bakas et al. 2017, Scientific Data 4:170117, doi:10.1038/sdata.2017.117; Bakas et al. 2018, arXiv:1811.02629"
)

BRATS2020 = DatasetCard(
    name="brats2020",
    label="BraTS 2020",
    title="Multimodal Brain Tumor Segmentation Challenge 2020",
    task="segmentation",
    modality="MRI, 3-D volumes (T1, T1 with contrast, T2, FLAIR), 240 x 240 x 155 voxels of 1 mm",
    layout="brats",
    folder="brats/MICCAI_BraTS2020_TrainingData",
    classes={"0": "background", "1": "necrotic_core", "2": "oedema", "4": "enhancing"},
    modalities={"t1": "t1", "t1ce": "t1ce", "t2": "t2", "flair": "flair"},
    counts={"total": 494},  # 369 with masks, 125 of the validation without
    # The archive holds BraTS2020_TrainingData/MICCAI_BraTS2020_TrainingData/ and the same for the unlabelled
    # validation subjects, which the reader leaves alone.
    downloads=(Download(kind="kaggle", address="awsaf49/brats20-dataset-training-validation", strip=2),),
    access="A Kaggle account with an API token. The challenge itself asks for a registration at the "
    "University of Pennsylvania, https://www.med.upenn.edu/cbica/brats2020/registration.html.",
    hospital_note="The contributing institution, from the subject's id of an earlier year in name_mapping.csv: "
    "BraTS19_CBICA_AAB_1 is of CBICA. 2013 names an earlier challenge with several hospitals, TCIA01 to TCIA13 the "
    "sites of The Cancer Imaging Archive. Subjects that are new in 2020 have no earlier id and no hospital.",
    licence="BraTS 2020 data usage agreement: free for research if its three papers are cited",
    citation=_BRATS_CITATION,
    source="https://www.med.upenn.edu/cbica/brats2020/data.html",
    ethics="Pre-operative scans of people with a glioma from 19 institutions, skull-stripped so that no face can be "
    "drawn from them. Not to be traced back to persons.",
    known_faults=(
        "In the copy on Kaggle the mask of subject 355 is called W39_1998.09.19_Segm.nii; the reader takes it, since "
        "it is the only other file of its folder.",
        "Published as registered to one template, skull-stripped and interpolated to 1 mm: the scanners' own "
        "resolution is lost, and a federation over hospitals sees less difference than hospitals have.",
        "The scans of TCIA are also in TCGA-GBM and TCGA-LGG, and scans of the years before are in msd_brain: never "
        "train on one and test on the other.",
    ),
    note="One folder a subject, one subject a patient. 369 training subjects have masks; the 125 validation subjects, "
    "which the copy on Kaggle holds too, have none and are not used.",
)

MSD_BRAIN = DatasetCard(
    name="msd_brain",
    label="MSD Brain tumour",
    title="Medical Segmentation Decathlon, Task01 Brain Tumour",
    task="segmentation",
    modality="MRI, 3-D volumes (T1, T1 with contrast, T2, FLAIR), 240 x 240 x 155 voxels of 1 mm",
    layout="msd",
    folder="msd_brain",
    splits={"train": ("imagesTr",), "test": ("imagesTs",)},
    optional_parts=("imagesTs",),
    # The file's values are 0 background, 1 edema, 2 non-enhancing tumor, 3 enhancing tumour: our codes are BraTS'.
    classes={"0": "background", "2": "necrotic_core", "1": "oedema", "3": "enhancing"},
    # Channels of the 4-D file, as dataset.json numbers them: 0 FLAIR, 1 T1w, 2 t1gd, 3 T2w.
    modalities={"1": "t1", "2": "t1ce", "3": "t2", "0": "flair"},
    counts={"train": 484, "test": 266},
    downloads=(
        Download(
            kind="url",
            address=f"{_MSD}/Task01_BrainTumour.tar",
            file_name="Task01_BrainTumour.tar",
            checksum="md5:240a19d752f0d9e9101544901065d872",
            strip=1,
        ),
    ),
    licence="CC BY-SA 4.0",
    citation=_MSD_CITATION,
    source="http://medicaldecathlon.com",
    ethics="Scans of people with a glioma, from the BraTS challenges of 2016 and 2017, skull-stripped. Not to be "
    "traced back to persons.",
    known_faults=(
        "The subjects are those of BraTS 2016 and 2017 under new names, so that they cannot be matched: never train on "
        "this and test on brats2020, or the other way round.",
        "Widely used code takes label 2 for the enhancing tumour (MONAI tutorials, issue 1355); dataset.json, "
        "which this card follows, says 2 is non-enhancing and 3 enhancing.",
        "BraTS counts necrosis and non-enhancing tumour as one class, here called necrotic_core in both.",
        "Hidden files of macOS (._BRATS_001.nii.gz) lie beside the images in the archive; the reader skips them.",
    ),
    note="One file a subject, one subject a patient. The institutions were taken out: no natural hospitals. "
    "The 266 test subjects have no published masks.",
)

HIPPOCAMPUS = DatasetCard(
    name="hippocampus",
    label="Hippocampus",
    title="Medical Segmentation Decathlon, Task04 Hippocampus",
    task="segmentation",
    modality="MRI, 3-D volumes cut out around one hippocampus, about 35 x 50 x 35 voxels of 1 mm",
    layout="msd",
    folder="hippocampus",
    splits={"train": ("imagesTr",), "test": ("imagesTs",)},
    optional_parts=("imagesTs",),
    classes={"0": "background", "1": "anterior", "2": "posterior"},
    modalities={"0": "t1"},
    counts={"train": 260, "test": 130},
    downloads=(
        Download(
            kind="url",
            address=f"{_MSD}/Task04_Hippocampus.tar",
            file_name="Task04_Hippocampus.tar",
            checksum="md5:9d24dba78a72977dbd1d2e110310f31b",
            strip=1,
        ),
    ),
    flip_is_safe=False,  # all cases show one side; see known_faults
    licence="CC BY-SA 4.0",
    citation=_MSD_CITATION,
    source="http://medicaldecathlon.com",
    ethics="Adults from one centre (Vanderbilt University Medical Center), healthy or with a psychotic disorder; "
    "the diagnosis is not in the files. Not to be traced back to persons.",
    known_faults=(
        "Maxima run from about 100 to over a million, and uint8 and float32 are mixed: intensities mean nothing "
        "from one case to the next, so every volume is normalised by itself.",
        "Shapes differ from case to case (31-42 x 41-59 x 24-47 voxels).",
        "Some label files are float32 (one of the 200 copied here).",
        "Numbers 2n-1 and 2n are the two hippocampi of one person, though the files do not say so. Measured on 200 "
        "cases: the images of the 49 pairs that are whole correlate with median 0.30 and are always of one file type; "
        "51 neighbours the other way (2n, 2n+1) with -0.05, strangers with -0.01. The laboratory's atlas (Plassard et "
        "al. 2021, doi:10.1016/j.mri.2021.04.011) is of 195 people, the archive holds 390 cases. Splits "
        "must keep pairs together (`patient` of a case); the published train and test seem not to.",
        "One side is mirrored: all 200 cases fit their mean image better than its mirror image (median correlation "
        "0.74 against 0.04), with the middle of the head on one side. A mirrored case is not plausible.",
        "Some copies hold fewer than the 260 labelled cases (200 in a much used teaching copy).",
        "Hidden files of macOS (._hippocampus_001.nii.gz) lie beside the images in the archive; the reader skips them.",
    ),
    note="One file a case, two cases a patient; one centre, so no natural hospitals. "
    "The 130 test cases have no published masks.",
)

SEGMENTATION = (BRATS2020, MSD_BRAIN, HIPPOCAMPUS)
