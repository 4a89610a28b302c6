"""NeuroGaze-Distill (arXiv 2509.11916) for timm: EEG-derived prototypes for facial-expression models."""

from ngd_timm.affect import ANCHORS, CLASSES
from ngd_timm.calibration import calibrate
from ngd_timm.errors import InputError
from ngd_timm.export import load_student, save_student, set_input
from ngd_timm.kd_teacher import KDTeacher
from ngd_timm.logit_adjustment import adjust_logits
from ngd_timm.losses import DGeoLoss, LogitKDLoss, NeuroGazeLoss, ProtoKDLoss
from ngd_timm.ngd_models import DistillationWrapper, wrap
from ngd_timm.predict import Prediction, Predictor
from ngd_timm.prototypes import PrototypeGrid
from ngd_timm.run import Run, load_run
from ngd_timm.task import NeuroGazeTask
from ngd_timm.version import __version__

__all__ = [
    "ANCHORS",
    "CLASSES",
    "DGeoLoss",
    "DistillationWrapper",
    "InputError",
    "KDTeacher",
    "LogitKDLoss",
    "NeuroGazeLoss",
    "NeuroGazeTask",
    "Prediction",
    "Predictor",
    "ProtoKDLoss",
    "PrototypeGrid",
    "Run",
    "__version__",
    "adjust_logits",
    "calibrate",
    "load_run",
    "load_student",
    "save_student",
    "set_input",
    "wrap",
]
