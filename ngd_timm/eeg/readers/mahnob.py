"""MAHNOB-HCI as it is downloaded: a folder a session, with its ratings in session.xml and its EEG in a BDF file."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from ngd_timm.core.affect import rating_to_va, va_to_rating
from ngd_timm.core.errors import InputError, one_line
from ngd_timm.core.files import atomic_path, require_regular
from ngd_timm.eeg.signal.recording import BIOSEMI_32, Recording, RecordingSet, name_indices

logger = logging.getLogger("ngd_timm.eeg")

CHANNELS = BIOSEMI_32
"""The 32 EEG electrodes, in the files' order."""

SESSIONS_A_SUBJECT = 130
"""The numbers set aside for a subject, of which 40 are films."""

_DATASET = "MAHNOB-HCI (Soleymani et al. 2012), 32-channel BioSemi, film clips"
_OTHERS = (*(f"EXG{i}" for i in range(1, 9)), "GSR1", "GSR2", "Erg1", "Erg2", "Resp", "Temp")
_LOW, _HIGH = 1.0, 9.0  # rating scale
_TRIGGER_BITS = 0xFFFF  # BioSemi's own bits are above them: CMS in range, battery, a new recording
_SIMULATED = "simulated"  # in the header's patient field
_PHYSICAL, _DIGITAL = (-262144, 262143), (-(2**23), 2**23 - 1)  # µV and 24 bits, as BioSemi writes them
_REFERENCE = "average of the 32 electrodes; BioSemi's signals come without one"


@dataclass(frozen=True)
class _Session:
    number: int
    subject: int
    valence_arousal: tuple[float, float] | None
    xml: Path
    bdf: Path
    clip: str | None


def read_mahnob(root: str | Path) -> RecordingSet:
    """MAHNOB-HCI's emotion-elicitation sessions: the film clips with their ratings, and the neutral ones without.

    The signal lies between the two marks of the Status channel, the rest before the first is the baseline. Both are
    referenced to the average of the 32 electrodes: BioSemi's files hold the electrodes against CMS, with all that is
    common to them (www.biosemi.com/faq/cms&drl.htm). A trial's number is its session's, its stimulus the clip's file.
    """
    folder = Path(root) / "Sessions" if (Path(root) / "Sessions").is_dir() else Path(root)
    if not folder.is_dir():
        raise InputError(f"no folder {folder}; set data.root to MAHNOB-HCI's Sessions, or to the folder that holds it")
    sessions: list[_Session] = []
    left_out: Counter[str] = Counter()
    for path in sorted(p for p in folder.iterdir() if p.is_dir() and p.name.isdecimal()):
        xml, bdfs = path / "session.xml", sorted(path.glob("Part_*_emotion.bdf"))
        if len(bdfs) > 1:
            raise InputError(f"{path}: {len(bdfs)} EEG files; a session has one Part_*_emotion.bdf")
        if not xml.is_file():
            left_out["without session.xml"] += 1
        elif not bdfs:
            left_out["without an EEG file"] += 1
        else:
            sessions.append(_open_session(xml, bdfs[0]))
    if not sessions:
        raise InputError(f"{folder} holds no session with session.xml and Part_*_emotion.bdf")
    sessions.sort(key=lambda session: session.number)
    marked = [_patient(session.bdf) == _SIMULATED for session in sessions]
    if any(marked) and not all(marked):
        raise InputError(f"{folder} mixes recordings with simulated ones, {sessions[marked.index(True)].bdf} for one")
    notes = {"reference": _REFERENCE}
    _note_left_out(notes, left_out)
    return RecordingSet(
        dataset="simulated recordings in MAHNOB-HCI's layout" if all(marked) else _DATASET,
        files=tuple(file for session in sessions for file in (session.xml, session.bdf)),
        read=lambda: _read_all(sessions, left_out, notes),
        notes=notes,
        simulated=all(marked),
    )


def write_mahnob(root: str | Path, recordings: Iterable[Recording]) -> None:
    """Write recordings of the 32 electrodes in MAHNOB-HCI's layout, marked as simulated.

    Unrated recordings become neutral clips; a file always has rest before and after the clip.
    """
    for recording in recordings:
        within = (recording.trial - 1) % SESSIONS_A_SUBJECT + 1
        number = (recording.subject - 1) * SESSIONS_A_SUBJECT + within
        folder = Path(root) / "Sessions" / str(number)
        signal, status = _with_rest(recording.pick(CHANNELS))
        signals = np.concatenate([signal, np.zeros((len(_OTHERS), signal.shape[1]))])
        kind = "N" if recording.valence_arousal is None else "S"
        name = f"Part_{recording.subject}_{kind}_Trial{(within + 1) // 2}_emotion.bdf"
        with atomic_path(folder / "session.xml") as temporary:
            _session_xml(recording, number, within).write(temporary, "UTF-8", xml_declaration=True)
        write_bdf(folder / name, signals, recording.sfreq, (*CHANNELS, *_OTHERS), status)


def write_bdf(path: Path, signals: np.ndarray, sfreq: float, channels: Sequence[str], status: np.ndarray) -> None:
    """Write (C, T) µV and (T,) Status bits as BDF with records of 1 s; `channels` are C names, T is whole seconds."""
    from edfio import Bdf, BdfSignal

    signed = ((status.astype(np.int32) << 8) >> 8).astype(np.float64)  # the 24 bits as two's complement
    try:
        columns = [
            BdfSignal(values, sfreq, label=name, physical_dimension="uV", physical_range=_PHYSICAL)
            for name, values in zip(channels, signals.astype(np.float64), strict=True)
        ]
        columns.append(BdfSignal(signed, sfreq, label="Status", physical_dimension="Boolean", physical_range=_DIGITAL))
        bdf = Bdf(columns, data_record_duration=1)
        bdf.local_patient_identification = _SIMULATED
    except ValueError as error:
        raise InputError(f"{path}: can't be written as BDF in records of 1 s ({error})") from None
    with atomic_path(path) as temporary:
        bdf.write(temporary)


class _WithoutDoctype(ElementTree.TreeBuilder):
    def doctype(self, *_: Any) -> None:
        raise InputError("has a DOCTYPE, which session files don't and which could blow up")


def _open_session(xml: Path, bdf: Path) -> _Session:
    for path in (xml, bdf):
        require_regular(path)
    try:
        parser = ElementTree.XMLParser(target=_WithoutDoctype())  # noqa: S314 - without a DOCTYPE there are no entities
        session = ElementTree.fromstring(xml.read_bytes(), parser)  # noqa: S314
        subjects = [element.get("id", "") for element in session.iter("subject")]
        if session.tag != "session" or len(subjects) != 1 or not subjects[0].isdecimal() or len(subjects[0]) > 9:
            raise InputError('must be a <session> with one <subject id="…">, a number')
        ratings, va = [session.get(key) for key in ("feltVlnc", "feltArsl")], None
        if session.get("isStim") != "0" and all(ratings):
            va = tuple(rating_to_va(np.array(ratings, dtype=np.float64), _LOW, _HIGH).tolist())
    except ElementTree.ParseError as error:
        raise InputError(f"{xml}: not readable as XML ({error})") from None
    except ValueError as error:
        raise InputError(f"{xml}: {error}") from None
    return _Session(int(xml.parent.name), int(subjects[0]), va, xml, bdf, session.get("mediaFile"))


def _patient(bdf: Path) -> str:
    with open(bdf, "rb") as handle:
        head = handle.read(256)
    if len(head) < 256 or not head.startswith(b"\xffBIOSEMI"):
        raise InputError(f"{bdf}: not a BDF file: it doesn't begin with BioSemi's header")
    return head[8:88].decode("latin-1").strip()


def _note_left_out(notes: dict[str, str], left_out: Counter[str]) -> None:
    if left_out:
        notes["sessions left out"] = ", ".join(f"{n} {why}" for why, n in left_out.items())


def _read_all(sessions: Iterable[_Session], unopened: Counter[str], notes: dict[str, str]) -> Iterator[Recording]:
    left_out = unopened.copy()
    for session in sessions:
        recording = _read_session(session)
        if recording is not None:
            yield recording
        else:
            left_out["without two stimulus marks"] += 1
            _note_left_out(notes, left_out)


def _read_session(session: _Session) -> Recording | None:
    import mne

    try:
        raw = mne.io.read_raw_bdf(session.bdf, preload=False, verbose="error")
        name_indices(session.bdf, "channel", (*CHANNELS, "Status"), raw.ch_names)
        status = raw.get_data(picks=["Status"], verbose="error")[0].astype(np.int64) & _TRIGGER_BITS
        marks = (np.flatnonzero(np.diff(status) > 0) + 1).tolist()
        if len(marks) != 2:
            logger.warning("session %d left out: %d stimulus marks in its EEG, not 2", session.number, len(marks))
            return None
        signal = _referenced(raw.get_data(picks=list(CHANNELS), stop=marks[1], units="uV", verbose="error"))
    except InputError:
        raise
    except (ValueError, OSError, AssertionError) as error:  # what MNE raises for a broken file
        raise InputError(f"{session.bdf}: not readable as BDF ({one_line(error)})") from None
    return Recording(
        subject=session.subject,
        trial=session.number,
        signal=signal[:, marks[0] :],
        sfreq=float(raw.info["sfreq"]),
        channels=CHANNELS,
        valence_arousal=session.valence_arousal,
        baseline=signal[:, : marks[0]],
        stimulus=session.clip,
    )


def _referenced(signal: np.ndarray) -> np.ndarray:
    still = np.ptp(signal, axis=1) == 0
    signal -= signal.mean(axis=0)
    signal[still] = 0  # a dead electrode must stay flat
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
    status = np.full(stop + after.shape[1], 1 << 20)  # CMS in range
    status[0] |= 1 << 16  # a new recording
    for mark in (start, stop):
        status[mark : mark + pulse] |= 268  # the value of the original's marks
    return np.concatenate([before, recording.signal, after], axis=1), status


def _session_xml(recording: Recording, number: int, within: int) -> ElementTree.ElementTree:
    attributes = {
        "sessionId": str(number),
        "date": "2000-01-01",
        "isStim": str(int(recording.valence_arousal is not None)),
        "cutNr": str(within),
        "cutLenSec": f"{recording.seconds:.3f}",
        "mediaFile": recording.stimulus or f"{within}.avi",
    }
    if recording.valence_arousal is not None:
        valence, arousal = va_to_rating(np.array(recording.valence_arousal), _LOW, _HIGH).tolist()
        felt = {"feltEmo": 0, "feltArsl": arousal, "feltVlnc": valence, "feltCtrl": 5, "feltPred": 5}
        attributes |= {key: f"{value:.12g}" for key, value in felt.items()}
    session = ElementTree.Element("session", attributes)
    ElementTree.SubElement(session, "subject", id=str(recording.subject))
    ElementTree.SubElement(session, "track", type="Physiological")
    return ElementTree.ElementTree(session)
