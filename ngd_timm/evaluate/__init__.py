"""Metrics, predictions, runs read back, and comparisons between them.

May import models, data and what they may.
"""

from ngd_timm.evaluate.metrics import fer_metrics
from ngd_timm.evaluate.predictions import read_predictions

__all__ = ["fer_metrics", "read_predictions"]
