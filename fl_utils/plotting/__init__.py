"""Figures: one function each, from a tidy table to a matplotlib Figure (floor 3, no TensorFlow)."""

from fl_utils.plotting.audit import pair_distances, pair_gallery
from fl_utils.plotting.comparison import hospital_gain, intervals
from fl_utils.plotting.counts import class_counts, partition_heatmap, round_steps
from fl_utils.plotting.curves import learning_curves
from fl_utils.plotting.explain import agreement_heatmap, sanity_lines, shortcut_dots
from fl_utils.plotting.federation import interrupted_training, round_seconds
from fl_utils.plotting.governance import budget_spent, rule_matrix
from fl_utils.plotting.grid import grid_heatmap, norm_panel, order_check, rank_diagram
from fl_utils.plotting.images import case_gallery, image_gallery
from fl_utils.plotting.maps import map_gallery, map_view
from fl_utils.plotting.method_rows import cost_to_target, gap_bars, hospital_spread
from fl_utils.plotting.partitions import partition_gallery
from fl_utils.plotting.poisoning import attack_curves, attack_heatmap, fraction_lines
from fl_utils.plotting.poisoning_costs import group_error, unusual_hospitals
from fl_utils.plotting.poisoning_detection import detection_scores, update_map
from fl_utils.plotting.predictions import confusion_matrices, reliability
from fl_utils.plotting.privacy import privacy_frontier, protection_heatmap
from fl_utils.plotting.privacy_attacks import inversion_scores, membership_points, membership_roc
from fl_utils.plotting.privacy_images import reconstruction_grid
from fl_utils.plotting.save import FigureError, save_figure, save_table
from fl_utils.plotting.segmentation import (
    SegmentedCase,
    gate_maps,
    modality_panel,
    plane_overlays,
    slice_view,
)
from fl_utils.plotting.segmentation_scores import hospital_dice, score_table_dots, volume_agreement
from fl_utils.plotting.style import LOOKS, Look, look, style

__all__ = [
    "LOOKS",
    "FigureError",
    "Look",
    "SegmentedCase",
    "agreement_heatmap",
    "attack_curves",
    "attack_heatmap",
    "budget_spent",
    "case_gallery",
    "class_counts",
    "confusion_matrices",
    "cost_to_target",
    "detection_scores",
    "fraction_lines",
    "gap_bars",
    "gate_maps",
    "grid_heatmap",
    "group_error",
    "hospital_dice",
    "hospital_gain",
    "hospital_spread",
    "image_gallery",
    "interrupted_training",
    "intervals",
    "inversion_scores",
    "learning_curves",
    "look",
    "map_gallery",
    "map_view",
    "membership_points",
    "membership_roc",
    "modality_panel",
    "norm_panel",
    "order_check",
    "pair_distances",
    "pair_gallery",
    "partition_gallery",
    "partition_heatmap",
    "plane_overlays",
    "privacy_frontier",
    "protection_heatmap",
    "rank_diagram",
    "reconstruction_grid",
    "reliability",
    "round_seconds",
    "round_steps",
    "rule_matrix",
    "sanity_lines",
    "save_figure",
    "save_table",
    "score_table_dots",
    "shortcut_dots",
    "slice_view",
    "style",
    "unusual_hospitals",
    "update_map",
    "volume_agreement",
]
