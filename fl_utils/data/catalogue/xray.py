"""Cards of chest X-rays."""

from fl_utils.data.catalogue.schema import DatasetCard, Download

_KERMANY = "Kermany et al. 2018, Cell 172(5):1122-1131, doi:10.1016/j.cell.2018.02.010"

CHEST_XRAY = DatasetCard(
    name="chest_xray",
    label="Chest X-ray",
    title="Chest X-Ray Images (Pneumonia)",
    task="multi-class",
    modality="X-ray",
    layout="class_folders",
    folder="chest_xray",
    # Kaggle's val/ holds 16 images that are in Mendeley's train/, too few to select a model on: they join "train".
    splits={"train": ("train", "val"), "test": ("test",)},
    optional_parts=("val",),
    classes={"NORMAL": "normal", "PNEUMONIA": "pneumonia"},
    counts={"train": 5_232, "test": 624},
    size_bytes=1_235_512_464,
    downloads=(
        Download(
            kind="url",
            # Mendeley's own direct download of version 2, as ten and more public repositories give it, two of them
            # with this size; the page says 1.15 GB. No checksum is published.
            address="https://data.mendeley.com/public-files/datasets/rscbjbr9sj/files/"
            "f12eaf6d-6023-432f-acc9-80c9d7393433/file_downloaded",
            file_name="ChestXRay2017.zip",
            size_bytes=1_235_512_464,
            strip=1,  # chest_xray/
        ),
    ),
    patient_key=r"(person\d+_(?:bacteria|virus))_|((?:NORMAL2-)?IM-\d+)-",
    patient_scope="dataset",
    flip_is_safe=False,  # the side of the heart and of the stomach carries meaning
    licence="CC BY 4.0",
    citation=f"{_KERMANY}; data doi:10.17632/rscbjbr9sj.2",
    source="https://www.kaggle.com/datasets/paultimothymooney/chest-xray-pneumonia",
    ethics="Children of one to five years, routine care at one hospital in Guangzhou, China; collected afterwards "
    "from its archive. The paper tells of approval by the ethics committee and does not mention consent. Patients "
    "are numbered, not named. Age, sex and severity are not in the files, so fairness cannot be checked, and nothing "
    "learned here holds for adults or other devices. Not for clinical use.",
    known_faults=(
        "30 groups of byte-identical files, each within one published part; in one of them the two files bear "
        "different patient numbers (NORMAL2-IM-0095 and -0096).",
        "Children of one to five years from one hospital; pneumonia is three times as frequent as normal.",
        "The published test part has 62 % pneumonia, the train part 74 %.",
        "Other datasets are made from it: pneumoniamnist wholly, and of covid19 every Normal and Viral Pneumonia "
        "image. Never train on one and test on the other.",
    ),
    note="Patients: person number plus type for pneumonia (person12_bacteria), IM number with its prefix for "
    "normal (IM-0439-0001-0002 is a further image of IM-0439). The type belongs to the key: 808 numbers occur "
    "with both types in train, and their images resemble each other no more than those of strangers (median "
    "correlation at 32 pixels 0.737 against 0.733; one patient's images 0.782). IM- and NORMAL2-IM- are two "
    "numberings: 328 numbers are in both, again no more alike than strangers. 170 bare person numbers recur in "
    "train and test, always with the other type. No key recurs in train and test. One hospital only. Fetched from "
    "Mendeley; Kaggle's paultimothymooney/chest-xray-pneumonia is the same, twice in one archive (2.3 GB), with 16 "
    "images of train as val.",
)

COVID19 = DatasetCard(
    name="covid19",
    label="COVID-19 X-ray",
    title="Covid-19 Image Dataset",
    task="multi-class",
    modality="X-ray",
    layout="class_folders",
    folder="covid19/Covid19-dataset",
    # Kaggle's parts are train and test; copies on code hosts call the same test images val.
    splits={"train": ("train",), "test": ("test", "val")},
    optional_parts=("test", "val"),
    classes={"Covid": "covid", "Normal": "normal", "Viral Pneumonia": "viral_pneumonia"},
    counts={"train": 251, "test": 66},
    downloads=(Download(kind="kaggle", address="pranavraikokte/covid19-image-dataset", strip=1),),  # Covid19-dataset/
    access="A Kaggle account with an API token.",
    patient_key=r"(COVID-\d+)[ab]?\.|auntminnie-(?:[a-d]-)?(\d{4}(?:_\d+){5})_",
    patient_scope="dataset",
    flip_is_safe=False,  # the side of the heart and of the stomach carries meaning
    licence="See the Kaggle page, which was not read here; its parts from chest_xray are CC BY 4.0",
    citation="Raikokte 2020, Covid-19 Image Dataset, Kaggle; COVID-19 images from Cohen et al. 2020, COVID-19 Image "
    f"Data Collection, arXiv:2006.11988; the others from {_KERMANY}",
    source="https://www.kaggle.com/datasets/pranavraikokte/covid19-image-dataset",
    ethics="The COVID-19 images were copied from articles and teaching pages, each under its own terms, by a project "
    "of the University of Montreal; nothing is said of the consent of those they show. The others are children of one "
    "hospital in Guangzhou. A model can tell adult from child and printed figure from scan instead of the disease: "
    "high scores on this dataset say nothing about COVID-19. For learning only: not for clinical use.",
    known_faults=(
        "All 90 Normal and all 90 Viral Pneumonia images are pictures of chest_xray, with the contrast stretched: "
        "175 of its test part, 5 of its train part (correlation of the fine structure at 128 pixels 0.76 to 0.99; of "
        "300 chest_xray images with those of other patients at most 0.57). 30 of the 90 Viral Pneumonia images are "
        "called bacterial there.",
        "Covid/COVID-00020.jpg is chest_xray's person1004_virus_1686: a child, years before COVID-19.",
        "Class is source: Covid are mostly adults from publications, the two others are children from one hospital.",
        "10 groups of byte-identical files, 6 of them across train and test. At least 5 more pictures of Covid were "
        "saved again under another name (COVID-00033 and COVID-00037 are one picture), at least two of them across "
        "train and test.",
        "Grey and colour files are mixed, and .jpeg, .jpg and .png.",
    ),
    note="Patients: the number in COVID-00003a and -00003b (two images, one person), and the publication in "
    "auntminnie-a to -d (one case). Bare numbers like 054.jpeg count images, not people: within a class no number is "
    "in both train and test. No natural hospitals. The images are 640 x 640 in the copy at hand.",
)

NIH = DatasetCard(
    name="nih",
    label="NIH chest X-ray",
    title="NIH ChestX-ray14",
    task="multi-label",
    modality="X-ray, 1024 x 1024 pixels",
    layout="nih",
    folder="nih",
    splits={"train": ("train_val_list.txt",), "test": ("test_list.txt",)},
    optional_parts=("train_val_list.txt", "test_list.txt"),
    classes={
        "Atelectasis": "atelectasis",
        "Cardiomegaly": "cardiomegaly",
        "Effusion": "effusion",
        "Infiltration": "infiltration",
        "Mass": "mass",
        "Nodule": "nodule",
        "Pneumonia": "pneumonia",
        "Pneumothorax": "pneumothorax",
        "Consolidation": "consolidation",
        "Edema": "edema",
        "Emphysema": "emphysema",
        "Fibrosis": "fibrosis",
        "Pleural_Thickening": "pleural_thickening",
        "Hernia": "hernia",
    },
    counts={"train_val_list.txt": 86_524, "test_list.txt": 25_596},
    size_bytes=45_000_000_000,  # rounded, as Kaggle's page gives it
    downloads=(Download(kind="kaggle", address="nih-chest-xrays/data"),),
    access="A Kaggle account with an API token, and 45 GB. Without an account: the twelve archives images_001 to "
    "images_012, Data_Entry_2017 and the two lists, by hand from https://nihcc.app.box.com/v/ChestXray-NIHCC.",
    patient_key=r"(\d{8})_\d{3}\.",
    patient_scope="dataset",
    hospital_note="One institution (NIH Clinical Center, Bethesda). Four groups of patients stand in for hospitals: "
    "first X-ray taken at the bedside (view AP) or standing (PA), patient under 50 years or older. They differ as "
    "wards do, not as hospitals do.",
    flip_is_safe=False,  # the side of the heart and of the stomach carries meaning
    licence="No restriction of use; name the NIH Clinical Center, cite the paper and link the download page",
    citation="Wang et al. 2017, ChestX-ray8, CVPR, pp. 3462-3471, doi:10.1109/CVPR.2017.369",
    source="https://nihcc.app.box.com/v/ChestXray-NIHCC",
    ethics="30,805 patients of a research hospital: sicker, and more often photographed, than people elsewhere. "
    "Released by the NIH Clinical Center after personal data had been taken out; age, sex and patient number remain, "
    "so do not try to find out who someone is. Ethnicity is not given. Labels were not made for diagnosis: not for "
    "clinical use.",
    known_faults=(
        "Labels were read from reports by a program; its makers expect over 90 % to be right. A radiologist who "
        "looked at images found positive predictive values 10 to 30 points lower (Oakden-Rayner 2020, Academic "
        "Radiology 27(1), doi:10.1016/j.acra.2019.10.006).",
        "Many images with pneumothorax show the drain that treats it: a model may learn the drain (same source).",
        "\"No Finding\" means that none of the 14 was reported, not that the lungs are healthy.",
        "Several images a patient: splits must go by patient. The official lists do.",
        "Findings are uneven: 60,361 of 112,120 images have none; hernia is the rarest with about 200.",
        "Some ages in Data_Entry_2017.csv are impossible (over 400 years); the table of 2020 corrects them.",
        "The view (AP or PA) goes with how ill someone is: bedside images look different and have more findings.",
    ),
    note="The patient is the first number of the file name and the column Patient ID. Data_Entry_2017.csv or "
    "Data_Entry_2017_v2020.csv is read. Without test_list.txt all images count as train. Copies with some of "
    "the images are accepted and said to be partial.",
)

XRAY_SITES = DatasetCard(
    name="xray_sites",
    label="X-ray sites",
    title="Chest X-ray: normal against pneumonia at three hospitals",
    task="multi-class",
    modality="X-ray",
    layout="xray_sites",
    folder="",
    classes={"normal": "normal", "pneumonia": "pneumonia"},
    access="Put together from chest_xray and nih: fetch these two.",
    hospital_note="Three: chest_xray (Guangzhou, children); nih patients first X-rayed standing, and nih patients "
    "first X-rayed at the bedside with a portable device (Bethesda, mostly adults).",
    flip_is_safe=False,  # the side of the heart and of the stomach carries meaning
    licence="Those of its sources: see chest_xray, nih",
    citation=f"{_KERMANY}; Wang et al. 2017, CVPR, doi:10.1109/CVPR.2017.369",
    source="put together by fl_utils.data.readers.sites",
    ethics="See chest_xray and nih. A comparison of methods under real differences between sources, and no "
    "statement about any hospital: not for clinical use.",
    known_faults=(
        "covid19 would be the natural third source and is none: its 90 normal and 90 viral pneumonia images are "
        "contrast-stretched pictures of chest_xray. The third hospital is a second kind of device in nih instead.",
        "Which dataset an image is from can be seen at a glance (size, contrast, writing, age of the patient) and goes "
        "with the label: the share of pneumonia differs from source to source (73 % in chest_xray). A model "
        "may learn the source.",
        "\"Normal\" differs: a healthy child in chest_xray, an adult in whose report none of 14 findings was named "
        "in nih. \"Pneumonia\" differs too: chosen by physicians there, read from reports by a program here, often "
        "beside other findings.",
    ),
    note="Normal: NORMAL, No Finding. Pneumonia: PNEUMONIA, Pneumonia with whatever else. Patients are those of the "
    "sources; a patient of nih belongs to the hospital of the first image.",
)

XRAY = (CHEST_XRAY, COVID19, NIH, XRAY_SITES)
