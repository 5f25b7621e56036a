"""Class activation maps and what they are worth: maps, baselines, scores, sanity checks (floor 2).

`scores`, `baselines` and `similarity` do not import TensorFlow.
"""
