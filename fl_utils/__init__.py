"""Federated learning on medical images: the helper package shared by the notebooks.

Importing it is cheap: TensorFlow is loaded only by the rooms that need it.
"""

import logging
import os

# Read once, when TensorFlow is loaded by whichever room comes first: warnings and errors only.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# A run makes its own graph functions; TensorFlow takes many runs in a row for needless retracing, and says so.
logging.getLogger("tensorflow").setLevel(logging.ERROR)

__version__ = "0.1.0"
