"""From a data set's name and root to its recordings or its band power, cached."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import get_args

from ngd_timm.core.errors import InputError, choices
from ngd_timm.core.files import sha256_file
from ngd_timm.core.teacher_recipe import BandPowerName, TeacherData
from ngd_timm.core.version import __version__
from ngd_timm.eeg.readers.deap import read_deap
from ngd_timm.eeg.readers.dreamer import read_dreamer
from ngd_timm.eeg.readers.mahnob import read_mahnob
from ngd_timm.eeg.readers.own import read_recordings
from ngd_timm.eeg.signal.bandpower import BandPower, load_bandpower, save_bandpower
from ngd_timm.eeg.signal.preprocess import FEATURES, band_power, check_bands, filter_bands
from ngd_timm.eeg.signal.recording import RecordingSet

logger = logging.getLogger("ngd_timm.eeg")

_READERS = {"dreamer": read_dreamer, "mahnob": read_mahnob, "deap": read_deap, "recordings": read_recordings}
_EXAMPLES = {
    "gameemo": "data.root=gameemo_bandpower.npz",
    "bandpower": "data.root=mine.npz",
    "dreamer": "data.root=DREAMER.mat",
    "mahnob": "data.root=PATH, the folder that holds Sessions/",
    "deap": "data.root=PATH, the folder that holds data_preprocessed_python/",
    "recordings": "data.root=recordings.csv",
}
_SIGNAL_KEYS = {"channels", "window_s", "highpass", "lowpass", "notch", "artefact_uv", "baseline"}


def open_recordings(name: str, root: str | None) -> RecordingSet:
    """Open a data set of signals by name (a CSV of your own is `recordings`); they are read lazily."""
    if name not in _READERS:
        raise choices("set of recordings", name, _READERS)
    return _READERS[name](_given(name, root))


def load_eeg(settings: TeacherData, name: str, root: str | None) -> BandPower:
    """Band power of a data set, by name and root instead of the settings' own, with their bands and channels."""
    if name not in _EXAMPLES:
        raise choices("EEG data set", name, _EXAMPLES)
    root = _given(name, root)
    if name in get_args(BandPowerName):
        return load_bandpower(root, name).pick(settings.bands, settings.channels)
    bands = check_bands(settings)
    recordings = open_recordings(name, root)
    # All bands that the filter lets through cost no more than one, and another choice of bands finds them cached.
    every = settings.model_copy(update={"bands": filter_bands(settings)})
    if not settings.cache:
        return band_power(recordings, every).pick(bands)
    key = {
        "reader": name,
        "features": FEATURES,
        "ngd_timm": __version__,
        "mne": importlib.metadata.version("mne"),
        "settings": settings.model_dump(mode="json", include=_SIGNAL_KEYS),
    }
    return cached(key, recordings.files, lambda: band_power(recordings, every)).pick(bands)


def _given(name: str, root: str | None) -> str:
    if root is None:
        raise InputError(f"data.root is not set; give the recordings of {name}, for example {_EXAMPLES[name]}")
    return root


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/ngd_timm`, else `~/.cache/ngd_timm`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "ngd_timm"


def cached(settings: Mapping[str, object], files: Sequence[Path], compute: Callable[[], BandPower]) -> BandPower:
    """The band power of these files (by bytes and relative place) and settings (any JSON): cached, or computed."""
    resolved = [Path(file).resolve() for file in files]
    root = Path(os.path.commonpath([file.parent for file in resolved])) if resolved else Path()
    contents = sorted((file.relative_to(root).as_posix(), sha256_file(file)) for file in resolved)
    key = hashlib.sha256(json.dumps([dict(settings), contents], sort_keys=True).encode()).hexdigest()
    path = cache_folder() / f"{key}.npz"
    if path.is_file():
        try:
            data = load_bandpower(path)
        except InputError as error:
            logger.warning("a damaged cache entry is made again: %s", error)
        else:
            logger.info("%s: band power from the cache, %s; data.cache=false computes it again", data.dataset, path)
            return data
    data = compute()
    try:
        # EEG of single subjects: a new folder is for its owner alone.
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        save_bandpower(path, data)
    except OSError as error:
        logger.warning("band power is not cached: %s; set XDG_CACHE_HOME to a folder that can be written", error)
    return data
