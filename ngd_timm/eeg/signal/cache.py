"""Band power that has been computed once: kept by the hash of the recordings' bytes and of the settings."""

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

__all__ = ["cache_folder", "cached"]

logger = logging.getLogger("ngd_timm.eeg")


def cache_folder() -> Path:
    """`$NGD_CACHE`, else `$XDG_CACHE_HOME/ngd_timm`, else `~/.cache/ngd_timm`."""
    own, user = os.environ.get("NGD_CACHE"), os.environ.get("XDG_CACHE_HOME")
    if own:
        return Path(own).expanduser()
    return (Path(user) if user else Path("~/.cache").expanduser()) / "ngd_timm"


def cached(key_parts: Mapping[str, object], files: Sequence[Path], make: Callable[[], BandPower]) -> BandPower:
    """What `make` gives for these files and settings, from the cache if it is there and whole.

    A file counts by its bytes and by its place among the others, not by where they all lie. An entry is written to a
    temporary name and renamed: it is whole or absent, and two processes that make it at once don't meet.

    Args:
        key_parts: What else decides the result; anything JSON can hold.
        files: All files that `make` reads.
        make: Computes the band power.

    Example:
        >>> import tempfile
        >>> from unittest import mock
        >>> from ngd_timm.eeg.simulate.power import simulate_bandpower
        >>> with mock.patch.dict(os.environ, NGD_CACHE=tempfile.mkdtemp()):
        ...     first = cached({"seed": 0}, [], lambda: simulate_bandpower(2, 2, 2))
        ...     again = cached({"seed": 0}, [], lambda: 1 / 0)
        >>> again.sha256 == first.sha256
        True
    """
    path = cache_folder() / f"{_key(key_parts, files)}.npz"
    if path.is_file():
        try:
            data = load_bandpower(path)
        except (InputError, RuntimeError) as error:  # RuntimeError: a header that speaks of encryption or compression
            logger.warning("a damaged cache entry is made again: %s", error)
        else:
            logger.info("%s: band power from the cache, %s; data.cache=false computes it again", data.dataset, path)
            return data
    data = make()
    try:
        # Rows of people's EEG: a new folder is for its owner alone.
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        save_bandpower(path, data)
    except OSError as error:
        logger.warning("band power is not cached: %s; set NGD_CACHE to a folder that can be written", error)
    return data


def _key(key_parts: Mapping[str, object], files: Sequence[Path]) -> str:
    resolved = [Path(file).resolve() for file in files]
    root = Path(os.path.commonpath([file.parent for file in resolved])) if resolved else Path()
    contents = sorted((file.relative_to(root).as_posix(), sha256_file(file)) for file in resolved)
    return hashlib.sha256(json.dumps([dict(key_parts), contents], sort_keys=True).encode()).hexdigest()
