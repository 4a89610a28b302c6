"""MAHNOB-HCI as it is downloaded: a folder a session, with its ratings in session.xml and its EEG in a BDF file."""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.parsers import expat
from xml.sax.saxutils import quoteattr

import numpy as np

from ngd_timm.core.affect import rating_to_va, va_to_rating
from ngd_timm.core.errors import InputError
from ngd_timm.core.files import write_text
from ngd_timm.eeg.readers.bdf import bdf_patient, write_bdf
from ngd_timm.eeg.signal.electrodes import BIOSEMI_32
from ngd_timm.eeg.signal.recording import Recording, RecordingSet

__all__ = ["CHANNELS", "SESSIONS_A_SUBJECT", "read_mahnob", "write_mahnob"]

logger = logging.getLogger("ngd_timm.eeg")

CHANNELS = BIOSEMI_32
"""The 32 EEG electrodes, in the files' order."""

SESSIONS_A_SUBJECT = 130
"""The numbers set aside for a subject, of which 40 are films."""

DATASET = "MAHNOB-HCI (Soleymani et al. 2012), 32-channel BioSemi, film clips"

_OTHERS = (*(f"EXG{i}" for i in range(1, 9)), "GSR1", "GSR2", "Erg1", "Erg2", "Resp", "Temp")
_RATING_LOW, _RATING_HIGH = 1.0, 9.0
_TRIGGER_BITS = 0xFFFF  # above them BioSemi keeps its own state: CMS in range, battery, a new recording
_SIMULATED = "simulated"
_REFERENCE = "average of the 32 electrodes; BioSemi's signals come without one"


@dataclass(frozen=True)
class _Session:
    number: int
    subject: int
    valence_arousal: tuple[float, float] | None
    xml: Path
    bdf: Path


def read_mahnob(root: str | Path) -> RecordingSet:
    """MAHNOB-HCI's emotion-elicitation sessions: the film clips with their ratings, and the neutral ones without.

    The signal lies between the two marks of the Status channel, the rest before the first is the baseline. Both are
    referenced to the average of the 32 electrodes: BioSemi's files hold the electrodes against CMS, with all that is
    common to them. A trial's number is its session's.

    Sessions of the other experiments have no such EEG file, and are left out; so is, with a warning, a session without
    two marks, a cut file for one. That only reading shows: each iteration counts them anew in the set's notes, which
    are complete when it ends.

    Args:
        root: The folder `Sessions`, or the one that holds it.

    Raises:
        InputError: Names the file and what is wrong with it.

    Reference:
        Soleymani, Lichtenauer, Pun and Pantic, "A multimodal database for affect recognition and implicit tagging",
        IEEE Trans. Affective Computing 3 (2012), 42-55. BioSemi, "What is the function of the CMS and DRL electrodes",
        www.biosemi.com/faq/cms&drl.htm
    """
    folder = Path(root)
    folder = folder / "Sessions" if (folder / "Sessions").is_dir() else folder
    if not folder.is_dir():
        raise InputError(f"no folder {folder}; set data.root to MAHNOB-HCI's Sessions, or to the folder that holds it")
    sessions: list[_Session] = []
    left_out: Counter[str] = Counter()
    for path in sorted(p for p in folder.iterdir() if p.is_dir() and p.name.isdecimal()):
        if not (path / "session.xml").is_file():
            left_out["without session.xml"] += 1
            continue
        files = sorted(path.glob("Part_*_emotion.bdf"))
        if len(files) > 1:
            raise InputError(f"{path}: {len(files)} EEG files; a session has one Part_*_emotion.bdf")
        if files:
            sessions.append(_open(path / "session.xml", files[0]))
        else:
            left_out["without an EEG file"] += 1
    if not sessions:
        raise InputError(f"{folder} holds no session with session.xml and Part_*_emotion.bdf")
    sessions.sort(key=lambda session: session.number)
    marked = [bdf_patient(session.bdf) == _SIMULATED for session in sessions]
    if any(marked) and not all(marked):
        raise InputError(f"{folder} mixes recordings with simulated ones, {sessions[marked.index(True)].bdf} for one")
    notes: dict[str, str] = {}
    _note(notes, left_out)
    return RecordingSet(
        dataset="simulated recordings in MAHNOB-HCI's layout" if all(marked) else DATASET,
        files=tuple(file for session in sessions for file in (session.xml, session.bdf)),
        read=lambda: _read_all(sessions, left_out, notes),
        notes=notes,
        simulated=all(marked),
    )


def write_mahnob(root: str | Path, recordings: Iterable[Recording]) -> None:
    """Write recordings in MAHNOB-HCI's layout, marked as simulated: what `read_mahnob` reads, for tests without it.

    Session numbers are the original's, 130 set aside a subject; a trial's number counts within them. A file has rest
    before the clip always: noise, where a recording has no baseline. After the clip there is at least a second of it.

    Args:
        root: The folder that gets `Sessions`.
        recordings: With the 32 electrodes of `CHANNELS`; unrated ones become neutral clips.

    Raises:
        InputError: Electrodes lack, or two recordings are of one trial.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> signal = np.random.default_rng(0).normal(0, 10, (32, 256))
        >>> write_mahnob(folder, [Recording(2, 1, signal, 128.0, CHANNELS, (0.5, -0.5), baseline=signal)])
        >>> recordings = read_mahnob(folder)
        >>> [(r.subject, r.trial, r.seconds, r.valence_arousal) for r in recordings], recordings.simulated
        ([(2, 131, 2.0, (0.5, -0.5))], True)
    """
    for recording in recordings:
        within = (recording.trial - 1) % SESSIONS_A_SUBJECT + 1
        number = (recording.subject - 1) * SESSIONS_A_SUBJECT + within
        folder = Path(root) / "Sessions" / str(number)
        if folder.exists():
            raise InputError(f"{recording}: {folder} is there already; a session holds one trial")
        kind = "N" if recording.valence_arousal is None else "S"
        name = f"Part_{recording.subject}_{kind}_Trial{(within + 1) // 2}_emotion.bdf"
        write_text(folder / "session.xml", _session_xml(recording, number, within))
        signal, status = _with_rest(recording.pick(CHANNELS))
        signals = np.concatenate([signal, np.zeros((len(_OTHERS), signal.shape[1]))])
        write_bdf(folder / name, signals, recording.sfreq, (*CHANNELS, *_OTHERS), status, patient=_SIMULATED)


def _open(xml: Path, bdf: Path) -> _Session:
    session, subject = _attributes(xml)
    ratings = [session.get(key) for key in ("feltVlnc", "feltArsl")]
    va = None
    if session.get("isStim") != "0" and all(ratings):
        try:
            valence, arousal = rating_to_va(np.array(ratings, dtype=np.float64), _RATING_LOW, _RATING_HIGH)
        except ValueError as error:
            raise InputError(f"{xml}: feltVlnc and feltArsl: {error}") from None
        va = (float(valence), float(arousal))
    return _Session(int(xml.parent.name), subject, va, xml, bdf)


def _attributes(xml: Path) -> tuple[dict[str, str], int]:
    """The session's own attributes, and its subject's number."""
    elements: list[tuple[str, dict[str, str]]] = []

    def refuse(*_: Any) -> None:
        raise InputError(f"{xml}: has a DOCTYPE, which session files don't and which could blow up; refused")

    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = lambda name, attributes: elements.append((name, attributes))
    try:
        parser.Parse(xml.read_bytes(), True)
    except expat.ExpatError as error:
        raise InputError(f"{xml}: not readable as XML ({error})") from None
    name, session = elements[0]
    subjects = [attributes.get("id", "") for name, attributes in elements if name == "subject"]
    if name != "session" or len(subjects) != 1 or not subjects[0].isdecimal():
        raise InputError(f'{xml}: must be a <session> with one <subject id="…">, a number')
    return session, int(subjects[0])


def _note(notes: dict[str, str], left_out: Counter[str]) -> None:
    notes.clear()
    notes["reference"] = _REFERENCE
    if left_out:
        notes["sessions left out"] = ", ".join(f"{n} {why}" for why, n in left_out.items())


def _read_all(sessions: Iterable[_Session], unopened: Counter[str], notes: dict[str, str]) -> Iterator[Recording]:
    left_out = unopened.copy()
    _note(notes, left_out)
    for session in sessions:
        recording = _read(session)
        if recording is not None:
            yield recording
        else:
            left_out["without two stimulus marks"] += 1
            _note(notes, left_out)


def _read(session: _Session) -> Recording | None:
    import mne

    with _named(session.bdf):
        raw = mne.io.read_raw_bdf(session.bdf, preload=False, verbose="error")
    missing = [name for name in (*CHANNELS, "Status") if name not in raw.ch_names]
    if missing:
        raise InputError(f"{session.bdf} lacks the channels {', '.join(missing)}; it has {', '.join(raw.ch_names)}")
    with _named(session.bdf):
        status = raw.get_data(picks=["Status"], verbose="error")[0].astype(np.int64) & _TRIGGER_BITS
    marks = np.flatnonzero(np.diff(status) > 0) + 1
    if len(marks) != 2:
        logger.warning("session %d left out: %d stimulus marks in its EEG, not 2", session.number, len(marks))
        return None
    start, stop = marks.tolist()
    with _named(session.bdf):
        signal = _referenced(raw.get_data(picks=list(CHANNELS), stop=stop, units="uV", verbose="error"))
    return Recording(
        subject=session.subject,
        trial=session.number,
        signal=signal[:, start:],
        sfreq=float(raw.info["sfreq"]),
        channels=CHANNELS,
        valence_arousal=session.valence_arousal,
        baseline=signal[:, :start],
    )


@contextlib.contextmanager
def _named(bdf: Path) -> Iterator[None]:
    """MNE's errors about a broken file as one that names it."""
    try:
        yield
    except (ValueError, OSError, AssertionError) as error:
        raise InputError(f"{bdf}: not readable as BDF ({' '.join(str(error).split())})") from None


def _referenced(signal: np.ndarray) -> np.ndarray:
    still = signal.max(axis=1) == signal.min(axis=1)
    signal -= signal.mean(axis=0)
    signal[still] = 0  # a dead electrode must not pass for a live one by what the others had in common
    return signal.astype(np.float32)


def _with_rest(recording: Recording) -> tuple[np.ndarray, np.ndarray]:
    """(32, T) µV with rest before and after, in whole seconds, and the Status channel that marks the clip."""
    rate, length = round(recording.sfreq), recording.signal.shape[1]
    rng = np.random.default_rng(recording.trial)
    before = recording.baseline if recording.baseline is not None else rng.normal(0, 10, (len(CHANNELS), 4 * rate))
    start = before.shape[1]
    stop = start + length
    after = rng.normal(0, 10, (len(CHANNELS), rate + -stop % rate))
    pulse = min(8, length // 2)
    if not pulse:
        raise InputError(f"{recording}: {length} sample is too short for a mark at either end")
    status = np.full(stop + after.shape[1], 1 << 20)  # CMS in range
    status[0] |= 1 << 16  # a new recording
    for mark in (start, stop):
        status[mark : mark + pulse] |= 268  # what the original's marks read
    return np.concatenate([before, recording.signal, after], axis=1), status


def _session_xml(recording: Recording, number: int, within: int) -> str:
    attributes = {
        "sessionId": number,
        "date": "2000-01-01",
        "isStim": int(recording.valence_arousal is not None),
        "cutNr": within,
        "cutLenSec": f"{recording.seconds:.3f}",
        "mediaFile": "simulated.avi",
    }
    if recording.valence_arousal is not None:
        valence, arousal = va_to_rating(np.array(recording.valence_arousal), _RATING_LOW, _RATING_HIGH).tolist()
        felt = {"feltEmo": 0, "feltArsl": arousal, "feltVlnc": valence, "feltCtrl": 5, "feltPred": 5}
        attributes |= {key: f"{value:.12g}" for key, value in felt.items()}
    listed = " ".join(f"{key}={quoteattr(str(value))}" for key, value in attributes.items())
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f"<session {listed}>\n"
        f'  <subject id="{recording.subject}"/>\n'
        '  <track type="Physiological"/>\n'
        "</session>\n"
    )
