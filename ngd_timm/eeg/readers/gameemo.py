"""GAMEEMO (Alakus et al. 2020): 28 subjects, four games of 5 minutes, 14-channel Emotiv EPOC+ at 128 Hz, as CSV."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ngd_timm.core.affect import rating_to_va, va_to_rating
from ngd_timm.core.errors import InputError, one_line
from ngd_timm.core.files import atomic_path, require_regular, write_text
from ngd_timm.core.table import read_table
from ngd_timm.eeg.signal.recording import Recording, RecordingSet

CHANNELS = ("AF3", "AF4", "F3", "F4", "F7", "F8", "FC5", "FC6", "O1", "O2", "P7", "P8", "T7", "T8")
"""The columns of the files, in their order."""

GAMES = 4

_FOLDER, _SIGNALS, _RATINGS = "GAMEEMO", Path("Preprocessed EEG Data", ".csv format"), "ratings.csv"
_COLUMNS = ("subject", "game", "valence", "arousal")
_MARKER = "SIMULATED.txt"
_DATASET = "GAMEEMO (Alakus et al. 2020), 14-channel Emotiv EPOC+ at 128 Hz, four games a person"
_SFREQ, _LOW, _HIGH = 128.0, 1.0, 9.0
_NOTES = {
    "as supplied": "preprocessed by GAMEEMO's authors, 128 Hz, read as µV; no baseline",
    "trial": "the same game for everyone (boring, calm, horror, funny), in one order",
}


def holds_signals(root: str | Path) -> bool:
    """Whether GAMEEMO's folders of subjects lie there, and not a file of its band power."""
    return bool(_subjects(Path(root)))


def read_gameemo(root: str | Path) -> RecordingSet:
    """Open GAMEEMO's `(S01)/Preprocessed EEG Data/.csv format/S01G1AllChannels.csv` …: a column a channel, in µV.

    Its ratings are circles on scanned SAM forms (`SAM Ratings/G1.pdf`), so they are read from a CSV of your own beside
    the folders: `ratings.csv` with the columns `subject, game, valence, arousal`, the scale being 1 to 9. A game
    without a row there is unrated.

    Reference:
        The layout as https://github.com/Joelsp19/EEGEmotionClassificationGAMEEMO reads it (`utils.py`; its
        `extract_SAM_scores.py` measures the forms, and its `final_SAM_scores.csv` is the result).
    """
    folder = Path(root) / _FOLDER if (Path(root) / _FOLDER).is_dir() else Path(root)
    files: dict[tuple[int, int], Path] = {}
    for subject, place in _subjects(folder).items():
        for path in sorted((place / _SIGNALS).glob("*.csv")):
            name = re.fullmatch(r"S(\d+)G(\d+)AllChannels\.csv", path.name, re.IGNORECASE)
            if not name or int(name[1]) != subject:
                continue
            if (other := files.setdefault((subject, int(name[2])), path)) != path:
                raise InputError(f"{place / _SIGNALS}: {other.name} and {path.name} are the same game; remove one")
    if not files:
        raise InputError(f"no (S01)/{_SIGNALS}/S01G1AllChannels.csv … in {folder}; give the folder that holds (S01)")
    ratings = _read_ratings(folder / _RATINGS)
    strangers = [f"subject {subject}, game {game}" for subject, game in ratings if (subject, game) not in files]
    if strangers:
        raise InputError(f"{folder / _RATINGS}: there is no recording of {strangers[0]}")
    marker = folder / _MARKER
    simulated = marker.is_file()
    return RecordingSet(
        dataset="simulated recordings in GAMEEMO's layout" if simulated else _DATASET,
        files=(*files.values(), folder / _RATINGS, *([marker] if simulated else [])),
        read=lambda: (_read(path, *key, ratings.get(key)) for key, path in files.items()),
        notes=_NOTES,
        simulated=simulated,
    )


def write_gameemo(root: str | Path, recordings: Iterable[Recording]) -> None:
    """Write recordings (128 Hz, all `CHANNELS`, games 1 to 4) in GAMEEMO's layout, marked as simulated."""
    folder = Path(root) / _FOLDER
    write_text(folder / _MARKER, "These recordings are simulated: nobody's EEG, in the layout of GAMEEMO.\n")
    rows = [",".join(_COLUMNS)]
    for recording in recordings:
        name = f"S{recording.subject:02d}"
        with atomic_path(folder / f"({name})" / _SIGNALS / f"{name}G{recording.trial}AllChannels.csv") as temporary:
            # the originals' lines end with a comma
            header, signal = ",".join(CHANNELS), recording.pick(CHANNELS).signal.T
            np.savetxt(temporary, signal, fmt="%.4f", delimiter=",", newline=",\n", header=header, comments="")
        if recording.valence_arousal is not None:
            valence, arousal = va_to_rating(np.array(recording.valence_arousal), _LOW, _HIGH).tolist()
            rows.append(f"{recording.subject},{recording.trial},{valence:.12g},{arousal:.12g}")
    write_text(folder / _RATINGS, "\n".join(rows) + "\n")


def _subjects(root: Path) -> dict[int, Path]:
    root = root / _FOLDER if (root / _FOLDER).is_dir() else root
    subjects: dict[int, Path] = {}
    for path in sorted(path for path in root.glob("(S*)") if path.is_dir()):
        name = re.fullmatch(r"\(S(\d+)\)", path.name)
        if name and (other := subjects.setdefault(int(name[1]), path)) != path:
            raise InputError(f"{root}: {other.name} and {path.name} are the same subject; remove one")
    return subjects


def _read_ratings(path: Path) -> dict[tuple[int, int], tuple[float, float]]:
    if not path.is_file():
        raise InputError(
            f"no file {path}: GAMEEMO's ratings are scanned forms; write them down there as a CSV with the columns "
            f"{', '.join(_COLUMNS)} (ratings from 1 to 9)"
        )
    ratings: dict[tuple[int, int], tuple[float, float]] = {}
    columns, table = read_table(path)
    missing = [name for name in _COLUMNS if name not in columns]
    if missing:
        raise InputError(f"{path}: lacks the column {', '.join(missing)}; it has {columns}")
    for where, row in table.items():
        try:
            key = int(row["subject"]), int(row["game"])
            rating = np.array([float(row["valence"]), float(row["arousal"])])
            valence, arousal = rating_to_va(rating, _LOW, _HIGH).tolist()
        except ValueError as error:
            raise InputError(f"{where}: {error}") from None
        if ratings.setdefault(key, (valence, arousal)) != (valence, arousal):
            raise InputError(f"{where}: subject {key[0]}, game {key[1]} has another rating in an earlier row")
    return ratings


def _read(path: Path, subject: int, game: int, rating: tuple[float, float] | None) -> Recording:
    require_regular(path)
    try:
        with open(path, encoding="utf-8-sig") as handle:
            header = [name.strip() for name in handle.readline().split(",")]
            missing = [name for name in CHANNELS if name not in header]
            if missing:
                raise InputError(f"lacks the column {', '.join(missing)}; GAMEEMO's files have {', '.join(CHANNELS)}")
            columns = [header.index(name) for name in CHANNELS]
            signal = np.loadtxt(handle, dtype=np.float32, delimiter=",", usecols=columns, ndmin=2)
        return Recording(subject, game, np.ascontiguousarray(signal.T), _SFREQ, CHANNELS, rating, stimulus=str(game))
    except ValueError as error:  # InputError is one
        raise InputError(f"{path}: {one_line(error)}") from None
