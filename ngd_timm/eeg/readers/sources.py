"""From a data set's name and root to its recordings or its band power, cached."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np

from ngd_timm.core.errors import InputError, choices
from ngd_timm.core.files import sha256_file
from ngd_timm.core.teacher_recipe import BIDS_KEYS, SIGNAL_KEYS, BandPowerName, TeacherData
from ngd_timm.core.version import __version__
from ngd_timm.eeg.readers.bids import read_bids
from ngd_timm.eeg.readers.deap import read_deap
from ngd_timm.eeg.readers.dreamer import read_dreamer
from ngd_timm.eeg.readers.faced import read_faced
from ngd_timm.eeg.readers.gameemo import holds_signals, read_gameemo
from ngd_timm.eeg.readers.mahnob import read_mahnob
from ngd_timm.eeg.readers.own import read_recordings
from ngd_timm.eeg.signal.bandpower import BandPower, load_bandpower, pool_sets, save_bandpower
from ngd_timm.eeg.signal.cospectra import cospectra
from ngd_timm.eeg.signal.montage import interpolated
from ngd_timm.eeg.signal.preprocess import FEATURES, band_power, check_bands, filter_bands
from ngd_timm.eeg.signal.recording import RecordingSet

logger = logging.getLogger("ngd_timm.eeg")

_READERS = {
    "dreamer": read_dreamer,
    "mahnob": read_mahnob,
    "deap": read_deap,
    "faced": read_faced,
    "gameemo": read_gameemo,
    "bids": read_bids,
    "recordings": read_recordings,
}
_EXAMPLES = {
    "gameemo": "data.root=gameemo_bandpower.npz, or the folder that holds (S01)/",
    "bandpower": "data.root=mine.npz",
    "dreamer": "data.root=DREAMER.mat",
    "mahnob": "data.root=PATH, the folder that holds Sessions/",
    "deap": "data.root=PATH, the folder that holds data_preprocessed_python/",
    "faced": "data.root=PATH, the folder that holds Processed_data/ and Data/",
    "bids": "data.root=PATH, the folder that holds dataset_description.json",
    "recordings": "data.root=recordings.csv",
}


def open_recordings(name: str, root: str | None, settings: TeacherData | None = None) -> RecordingSet:
    """Open a data set of signals by name (a CSV of your own is `recordings`); they are read lazily.

    `settings` say where the ratings of a BIDS data set stand.
    """
    if name not in _READERS:
        raise choices("set of recordings", name, _READERS)
    return _READERS[name](_given(name, root), **_columns(name, settings))


def _columns(name: str, settings: TeacherData | None) -> dict[str, Any]:
    """The keys that are about BIDS, where the set is one."""
    return {key: getattr(settings, key) for key in BIDS_KEYS} if name == "bids" and settings is not None else {}


def load_rated(settings: TeacherData) -> BandPower:
    """Band power of `data.root`, pooled with the sets of `data.also` on common electrodes and bands.

    Raises:
        InputError: Sets without a common electrode, with other bands, or that `pool_sets` refuses.
    """
    for rated in settings.also:
        if rated.root is None:
            example = f"data.also=[{{name: {rated.name}, root: PATH}}]"
            raise InputError(f"data.also: {rated.name} has no root; give it, for example '{example}'")
    places = [(settings.name, settings.root), *((rated.name, rated.root) for rated in settings.also)]
    opened = [(name, _open(name, root, settings)) for name, root in places]
    support = settings.support
    signals = support is not None and not _is_file(support.name, support.root)
    if not signals and all(isinstance(source, BandPower) for _, source in opened):
        for key in (*SIGNAL_KEYS, "cache"):
            if getattr(settings, key) != type(settings).model_fields[key].default:
                raise InputError(f"data.{key} is about signals, and {settings.name} is a file of band power")
    if not settings.also:
        return _power(settings, *opened[0])
    channels = settings.channels
    if channels is None:
        have = [_channels(source) for _, source in opened]
        channels = have[0]
        if settings.montage == "intersection":
            channels = tuple(name for name in channels if all(name in names for names in have))
        if not channels:
            listed = "; ".join(f"{rated[0]} has {', '.join(names)}" for rated, names in zip(places, have, strict=True))
            raise InputError(f"the sets have no electrode in common ({listed}); try data.montage=interpolate")
    on = settings.model_copy(update={"channels": channels})
    return pool_sets([_power(on, name, source) for name, source in opened])


def load_cospectra(settings: TeacherData, data: BandPower) -> np.ndarray:
    """Co-spectra (N, B, C, C) of the windows of `data`, which `load_rated` gave for these settings."""
    source = _open(settings.name, settings.root, settings)
    if isinstance(source, BandPower):
        raise InputError(
            f"teacher.kind=riemann reads signals, and {settings.name} is a file of band power here; use "
            "teacher.kind=ridge, or give the recordings"
        )
    return cospectra(source, settings, data)


def load_eeg(settings: TeacherData, name: str, root: str | None) -> BandPower:
    """Band power of a data set, by name and root instead of the settings' own, with their bands and channels."""
    return _power(settings, name, _open(name, root, settings))


def _is_file(name: str, root: str | None) -> bool:
    """Whether a set is a file of band power."""
    return name in get_args(BandPowerName) and not (name == "gameemo" and root is not None and holds_signals(root))


def _open(name: str, root: str | None, settings: TeacherData) -> BandPower | RecordingSet:
    """A file of band power, or recordings that are read lazily."""
    if name not in _EXAMPLES:
        raise choices("EEG data set", name, _EXAMPLES)
    root = _given(name, root)
    if _is_file(name, root):
        return load_bandpower(root, name)
    return open_recordings(name, root, settings)


def _channels(source: BandPower | RecordingSet) -> tuple[str, ...]:
    if isinstance(source, BandPower):
        return source.channels
    first = next(iter(source), None)
    if first is None:
        raise InputError(f"{source.dataset} holds no recordings")
    return first.channels


def _power(settings: TeacherData, name: str, recordings: BandPower | RecordingSet) -> BandPower:
    if isinstance(recordings, BandPower):
        return recordings.pick(settings.bands, settings.channels)
    bands, extra = check_bands(settings), {}
    if settings.montage == "interpolate" and settings.channels is not None:
        recordings, extra = interpolated(recordings, settings.channels), {"montage": "interpolate"}
    # All bands that the filter lets through cost no more than one, and another choice of bands finds them cached.
    every = settings.model_copy(update={"bands": filter_bands(settings)})
    if not settings.cache:
        return band_power(recordings, every).pick(bands)
    key = {
        "reader": name,
        "features": FEATURES,
        "ngd_timm": __version__,
        "mne": importlib.metadata.version("mne"),
        "settings": settings.model_dump(mode="json", include={"channels", *SIGNAL_KEYS}) | extra,
        **{name: value for name, value in _columns(name, settings).items() if name != "ratings"},
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
    except (OSError, InputError) as error:
        logger.warning("band power is not cached: %s; set XDG_CACHE_HOME to a folder that can be written", error)
    return data
