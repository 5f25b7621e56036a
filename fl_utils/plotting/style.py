"""One look for all figures: colours, markers, fonts.

Colours are those of Okabe and Ito 2008 (https://jfly.uni-koeln.de/color/), told apart with every
common colour vision deficiency. Nothing is told by colour alone: lines differ in marker and dash,
bars in hatching, cells carry their number.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from types import MappingProxyType

import matplotlib.style

from fl_utils.config import AGGREGATOR_LABELS, PROTECTION_LABELS

BLACK, ORANGE, SKY_BLUE, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, VERMILLION, PURPLE = "#F0E442", "#0072B2", "#D55E00", "#CC79A7"
GREY = "#6E6E6E"

ROUND_LABEL = "Communication round"
#: Inches; the width of a notebook's output.
WIDTH = 9.0


@dataclasses.dataclass(frozen=True)
class Look:
    """How one method, model, protection, aggregator or hospital is drawn, wherever it appears.

    Attributes:
      label: words for legends.
      colour, marker, linestyle, hatch: as matplotlib takes them.
    """

    label: str
    colour: str
    marker: str
    linestyle: str | tuple
    hatch: str = ""

    def line(self) -> dict:
        """Keyword arguments of `Axes.plot`."""
        return {"color": self.colour, "marker": self.marker, "linestyle": self.linestyle, "label": self.label}


#: The fixed look of every method, model, kind of map, protection, aggregator and kind of hospital.
LOOKS: Mapping[str, Look] = MappingProxyType(
    {
        "centralized": Look("Centralized (pooled data)", BLACK, "s", (0, (5, 2)), "//"),
        "local": Look("Each hospital alone", VERMILLION, "^", (0, (5, 1.5, 1, 1.5)), ".."),
        "fedavg": Look("Federated (FedAvg)", BLUE, "o", "-", ""),
        "fedsgd": Look("FedSGD", ORANGE, "<", (0, (1, 1.2)), "\\\\"),
        "fedprox": Look("FedProx", SKY_BLUE, "D", (0, (5, 2)), "--"),
        "fedavgm": Look("FedAvgM", GREEN, "p", "-", "||"),
        "fedadam": Look("FedAdam", ORANGE, "X", "-", "++"),
        "fedyogi": Look("FedYogi", PURPLE, ">", (0, (5, 1.5, 1, 1.5)), "oo"),
        "fedadagrad": Look("FedAdagrad", VERMILLION, "d", (0, (5, 2)), "**"),
        "mimelite": Look("Mime-lite", SKY_BLUE, "h", (0, (1, 1.2)), "OO"),
        "scaffold": Look("SCAFFOLD", BLACK, "*", "-", "///"),
        "finetuned": Look("Fine-tuned at home", PURPLE, "P", "-", "xxx"),
        "local_norm": Look("Norm layers at home", GREEN, "v", (0, (1, 1.2)), "..."),
        "deployed": Look("Real processes (Flower)", ORANGE, "D", (0, (4, 1.2, 1, 1.2, 1, 1.2)), "xx"),
        "governed": Look("Approved plan (NVFlare)", GREEN, "h", (0, (5, 2)), "++"),
        "seed_cnn": Look("Three-layer CNN", GREEN, "D", "-", ""),
        "probe": Look("Probe without a look at the picture", ORANGE, "P", "-", "--"),
        "residual_gn": Look("Residual network (GroupNorm)", PURPLE, "v", (0, (5, 2)), "xx"),
        "small_cnn": Look("Small CNN", BLUE, "s", "-", "//"),
        "norm_cnn_group": Look("CNN with GroupNorm", GREEN, "o", "-", ""),
        "norm_cnn_batch": Look("CNN with BatchNorm", VERMILLION, "X", (0, (5, 2)), "xx"),
        "unet": Look("U-Net", PURPLE, "o", "-", ""),
        "attention_unet": Look("Attention U-Net", GREEN, "^", (0, (5, 2)), "//"),
        "shuffled": Look("Trained on shuffled labels", PURPLE, "X", (0, (1, 1.2)), "\\\\\\"),
        "untrained": Look("Never trained", GREY, "x", (0, (1, 3)), "oo"),
        "grad_cam": Look("Grad-CAM", BLUE, "P", "-", ""),
        "grad_cam_pp": Look("Grad-CAM++", ORANGE, "p", (0, (5, 2)), "//"),
        "hires_cam": Look("HiResCAM", GREEN, "d", (0, (5, 1.5, 1, 1.5)), ".."),
        "score_cam": Look("Score-CAM", BLACK, "v", (0, (1, 1.2)), "xx"),
        "random": Look("Random map", GREY, "D", (0, (1, 1.2)), "--"),
        "centre": Look("Centre prior", GREY, "s", (0, (5, 2)), "++"),
        "none": Look(PROTECTION_LABELS["none"], BLACK, "o", "-", ""),
        "none_many": Look(PROTECTION_LABELS["none_many"], BLACK, "D", (0, (4, 1.2, 1, 1.2, 1, 1.2)), "--"),
        "longer": Look(PROTECTION_LABELS["longer"], GREY, "P", (0, (5, 2)), "||"),
        "patient_8": Look(PROTECTION_LABELS["patient_8"], SKY_BLUE, "^", "-", "/"),
        "patient_3": Look(PROTECTION_LABELS["patient_3"], BLUE, "v", (0, (5, 2)), "//"),
        "patient_1": Look(PROTECTION_LABELS["patient_1"], PURPLE, "<", (0, (1, 1.2)), "///"),
        "hospital_few": Look(PROTECTION_LABELS["hospital_few"], ORANGE, "s", "-", "."),
        "hospital_few_adaptive": Look(PROTECTION_LABELS["hospital_few_adaptive"], VERMILLION, ">", "-", ".."),
        "hospital_many": Look(PROTECTION_LABELS["hospital_many"], ORANGE, "d", (0, (5, 2)), "o"),
        "hospital_many_adaptive": Look(
            PROTECTION_LABELS["hospital_many_adaptive"], VERMILLION, "h", (0, (1, 1.2)), "oo"
        ),
        "encrypted": Look(PROTECTION_LABELS["encrypted"], GREEN, "X", "-", "xx"),
        "both": Look(PROTECTION_LABELS["both"], GREEN, "*", (0, (5, 1.5, 1, 1.5)), "++"),
        "mean": Look(AGGREGATOR_LABELS["mean"], BLACK, "X", "-", ""),
        "norm_clipping": Look(AGGREGATOR_LABELS["norm_clipping"], SKY_BLUE, "v", (0, (5, 2)), "/"),
        "norm_zeroing": Look(AGGREGATOR_LABELS["norm_zeroing"], SKY_BLUE, "d", (0, (1, 1.2)), "//"),
        "coordinate_median": Look(AGGREGATOR_LABELS["coordinate_median"], GREEN, "s", "-", ".."),
        "trimmed_mean": Look(AGGREGATOR_LABELS["trimmed_mean"], GREEN, "P", (0, (5, 2)), "..."),
        "krum": Look(AGGREGATOR_LABELS["krum"], VERMILLION, "o", "-", "xx"),
        "multi_krum": Look(AGGREGATOR_LABELS["multi_krum"], ORANGE, "^", (0, (5, 1.5, 1, 1.5)), "xxx"),
        "geometric_median": Look(AGGREGATOR_LABELS["geometric_median"], PURPLE, "*", (0, (5, 2)), "\\\\"),
        "fltrust": Look(AGGREGATOR_LABELS["fltrust"], BLUE, "h", (0, (1, 1.2)), "++"),
        "attacker": Look("Bad hospital", VERMILLION, "P", "-", "xx"),
        "honest": Look("Honest hospital", SKY_BLUE, "o", (0, (5, 2)), ""),
    }
)

_SERIES_COLOURS = (BLUE, ORANGE, GREEN, PURPLE, SKY_BLUE, VERMILLION, BLACK)
_SERIES_MARKERS = ("o", "^", "s", "D", "v", "P", "X", "*")
_SERIES_LINES = ("-", (0, (5, 2)), (0, (5, 1.5, 1, 1.5)), (0, (1, 1.2)))
_SERIES_HATCHES = ("", "//", "..", "xx", "\\\\", "--")

RC: Mapping[str, object] = MappingProxyType(
    {
        # Shipped with matplotlib, so that every machine draws the same letters.
        "font.family": "DejaVu Sans",
        "font.size": 11,
        "axes.titlesize": 12,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.labelsize": 11,
        "xtick.labelsize": 10,
        "ytick.labelsize": 10,
        "legend.fontsize": 10,
        "legend.frameon": False,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": "#E3E3E3",
        "grid.linewidth": 0.8,
        "lines.linewidth": 2,
        "lines.markersize": 6,
        "hatch.linewidth": 0.8,
        "figure.dpi": 100,
        "svg.fonttype": "path",
        # matplotlib draws the names inside an SVG at random without it.
        "svg.hashsalt": "fl_utils",
    }
)


def look(name: str) -> Look:
    """The fixed look of a method or model.

    Raises:
      ValueError: the name has no look.
    """
    if name not in LOOKS:
        raise ValueError(
            f"There is no look for {name!r}; known are {', '.join(LOOKS)}. "
            "Add it to LOOKS in fl_utils/plotting/style.py."
        )
    return LOOKS[name]


def series_look(number: int, label: str) -> Look:
    """The look of the `number`-th of things without a name of their own: hospitals, parts of a split."""
    return Look(
        label,
        _SERIES_COLOURS[number % len(_SERIES_COLOURS)],
        _SERIES_MARKERS[number % len(_SERIES_MARKERS)],
        _SERIES_LINES[number % len(_SERIES_LINES)],
        _SERIES_HATCHES[number % len(_SERIES_HATCHES)],
    )


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Inside it, matplotlib draws in the suite's style.

    It starts from matplotlib's defaults, so that nobody's own settings change a figure.
    """
    with matplotlib.style.context(["default", dict(RC)]):
        yield
