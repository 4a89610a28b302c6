"""NeuroGaze-Distill (arXiv 2509.11916) for timm: EEG-derived prototypes for facial-expression models."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ngd_timm.core.affect import ANCHORS, CLASSES
from ngd_timm.core.errors import InputError
from ngd_timm.core.version import __version__
from ngd_timm.models.ngd_models import DistillationWrapper, wrap  # registers the names ngd_*

if TYPE_CHECKING:
    from ngd_timm.evaluate.run import Run, load_run
    from ngd_timm.grid.prototypes import PrototypeGrid
    from ngd_timm.losses import DGeoLoss, LogitKDLoss, NeuroGazeLoss, ProtoKDLoss
    from ngd_timm.models.calibration import calibrate
    from ngd_timm.models.kd_teacher import KDTeacher
    from ngd_timm.models.logit_adjustment import adjust_logits
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

# What is imported when it is first used: the recipe's schema costs more than the rest of the package.
_LATER = {
    "evaluate.run": ("Run", "load_run"),
    "grid.prototypes": ("PrototypeGrid",),
    "losses": ("DGeoLoss", "LogitKDLoss", "NeuroGazeLoss", "ProtoKDLoss"),
    "models.calibration": ("calibrate",),
    "models.kd_teacher": ("KDTeacher",),
    "models.logit_adjustment": ("adjust_logits",),
    "models.student": ("load_student", "save_student", "set_input"),
    "predict.predictor": ("Prediction", "Predictor"),
    "train.task": ("NeuroGazeTask",),
}
_HOME = {name: module for module, names in _LATER.items() for name in names}
_FOLDERS = ("data", "eeg", "evaluate", "grid", "losses", "predict", "train")

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name in _FOLDERS:
            return import_module(f"ngd_timm.{name}")
        if name not in _HOME:
            raise AttributeError(f"module 'ngd_timm' has no attribute '{name}'")
        globals()[name] = value = getattr(import_module(f"ngd_timm.{_HOME[name]}"), name)
        return value
