"""Cached band power, keyed by the bytes of the recordings and the settings."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ngd_timm.core.errors import InputError
from ngd_timm.core.files import sha256_file
from ngd_timm.eeg.signal.bandpower import BandPower, load_bandpower, save_bandpower

logger = logging.getLogger("ngd_timm.eeg")


def cache_folder() -> Path:
    """`$NGD_CACHE`, else `$XDG_CACHE_HOME/ngd_timm`, else `~/.cache/ngd_timm`."""
    if own := os.environ.get("NGD_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "ngd_timm"


def cached(settings: Mapping[str, object], files: Sequence[Path], compute: Callable[[], BandPower]) -> BandPower:
    """The band power of these files (by bytes and relative place) and settings (any JSON): cached, or computed."""
    path = cache_folder() / f"{_key(settings, files)}.npz"
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
        logger.warning("band power is not cached: %s; set NGD_CACHE to a folder that can be written", error)
    return data


def _key(settings: Mapping[str, object], files: Sequence[Path]) -> str:
    resolved = [Path(file).resolve() for file in files]
    root = Path(os.path.commonpath([file.parent for file in resolved])) if resolved else Path()
    contents = sorted((file.relative_to(root).as_posix(), sha256_file(file)) for file in resolved)
    return hashlib.sha256(json.dumps([dict(settings), contents], sort_keys=True).encode()).hexdigest()
