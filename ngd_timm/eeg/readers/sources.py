"""From a data set's name and root to band power: which reader, and what of the settings its cache depends on."""

from __future__ import annotations

import importlib.metadata
from typing import get_args

from ngd_timm.core.errors import InputError, choices
from ngd_timm.core.teacher_recipe import BandPowerName, RecordingName, TeacherData
from ngd_timm.core.version import __version__
from ngd_timm.eeg.signal.bandpower import BandPower, load_bandpower
from ngd_timm.eeg.signal.cache import cached
from ngd_timm.eeg.signal.preprocess import FEATURES, band_power, check_bands, filter_bands
from ngd_timm.eeg.signal.recording import RecordingSet

__all__ = ["load_eeg", "open_recordings"]

_ROOTS = {
    "gameemo": "gameemo_bandpower.npz",
    "bandpower": "mine.npz",
    "dreamer": "DREAMER.mat",
    "mahnob": "the folder that holds Sessions/",
    "deap": "the folder that holds data_preprocessed_python/",
    "recordings": "recordings.csv",
}
_SIGNAL = {"channels", "window_s", "highpass", "lowpass", "notch", "artefact_uv", "baseline"}


def open_recordings(name: str, root: str | None) -> RecordingSet:
    """Open a data set of signals; they are read when it is iterated over.

    Args:
        name: `dreamer`, `mahnob`, `deap` or `recordings` (a CSV of your own).
        root: The file or folder.

    Raises:
        InputError: An unknown name, no root, nothing readable there.
    """
    known = get_args(RecordingName)
    if name not in known:
        raise choices("set of recordings", name, known)
    root = _root(name, root)
    # Each reader brings a library of its own; only the one in use is imported.
    if name == "dreamer":
        from ngd_timm.eeg.readers.dreamer import read_dreamer

        return read_dreamer(root)
    if name == "mahnob":
        from ngd_timm.eeg.readers.mahnob import read_mahnob

        return read_mahnob(root)
    if name == "deap":
        from ngd_timm.eeg.readers.deap import read_deap

        return read_deap(root)
    from ngd_timm.eeg.readers.own import read_recordings

    return read_recordings(root)


def load_eeg(settings: TeacherData, name: str, root: str | None) -> BandPower:
    """Band power of a data set, of signals or of a band-power file, with the settings' bands and channels.

    Args:
        settings: How signals become band power; its own name and root don't count, so that it serves a support set too.
        name: One of the data sets that a recipe can name.
        root: The file or folder.

    Raises:
        InputError: An unknown name, no root, or what the reader, the file or `band_power` refuses.
    """
    known = (*get_args(BandPowerName), *get_args(RecordingName))
    if name not in known:
        raise choices("EEG data set", name, known)
    root = _root(name, root)
    if name in get_args(BandPowerName):
        return load_bandpower(root, name).pick(settings.bands, settings.channels)
    bands = check_bands(settings)
    recordings = open_recordings(name, root)
    # All bands that the filter lets through cost no more than one, and another choice of bands finds them cached.
    every = settings.model_copy(update={"bands": filter_bands(settings)})

    def make() -> BandPower:
        return band_power(recordings, every)

    if not settings.cache:
        return make().pick(bands)
    key = {
        "reader": name,
        "features": FEATURES,
        "ngd_timm": __version__,
        "mne": importlib.metadata.version("mne"),
        "settings": settings.model_dump(mode="json", include=_SIGNAL),
    }
    return cached(key, recordings.files, make).pick(bands)


def _root(name: str, root: str | None) -> str:
    if root is None:
        example = _ROOTS[name]
        given = f"data.root={example}" if " " not in example else f"data.root=PATH, {example}"
        raise InputError(f"data.root is not set; give the recordings of {name}, for example {given}")
    return root
