"""NeuroGaze-Distill (arXiv 2509.11916) for timm: EEG-derived prototypes for facial-expression models."""

from ngd_timm.core.affect import ANCHORS, CLASSES
from ngd_timm.core.errors import InputError
from ngd_timm.core.version import __version__
from ngd_timm.evaluate.run import Run, load_run
from ngd_timm.grid.prototypes import PrototypeGrid
from ngd_timm.losses import DGeoLoss, LogitKDLoss, NeuroGazeLoss, ProtoKDLoss
from ngd_timm.models.calibration import calibrate
from ngd_timm.models.kd_teacher import KDTeacher
from ngd_timm.models.logit_adjustment import adjust_logits
from ngd_timm.models.ngd_models import DistillationWrapper, wrap
from ngd_timm.models.student import load_student, save_student, set_input
from ngd_timm.predict.predictor import Prediction, Predictor
from ngd_timm.train.task import NeuroGazeTask

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
