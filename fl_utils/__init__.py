"""Federated learning on medical images: the helper package shared by the notebooks.

Importing it is cheap: TensorFlow is loaded only by the rooms that need it.
"""

import logging
import os

# Read once, when TensorFlow is loaded by whichever room comes first: warnings and errors only.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# One thread an operation: how many share an operation decides the order in which it adds, and so the last bits. A
# run then gives the same on any number of cores; small models lose no time. TFF's worker reads it, too.
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
# A run makes its own graph functions; TensorFlow takes many runs in a row for needless retracing, and says so.
logging.getLogger("tensorflow").setLevel(logging.ERROR)

__version__ = "0.1.0"
