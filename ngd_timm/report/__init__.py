"""HTML pages, plots and tables of a run, an ablation, a teacher or the demo. May import evaluate and eeg."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from ngd_timm.core.errors import InputError, one_line
from ngd_timm.report.ablation import write_ablation_report
from ngd_timm.report.run import write_report
from ngd_timm.report.teacher import write_teacher_report

logger = logging.getLogger("ngd_timm.report")


def write_page(folder: str | Path, mistakes: int = 0) -> Path:
    """Write report.html of a student's run, an EEG teacher's run or an ablation, from the files that are there."""
    folder = Path(folder)
    for file, write, reason in (
        ("ablation.json", write_ablation_report, "an ablation's report shows no mistakes; give one of its runs"),
        ("embeddings.safetensors", write_teacher_report, "an EEG teacher's report has no faces to show mistakes of"),
    ):
        if (folder / file).is_file():
            if mistakes:
                raise InputError(reason)
            return write(folder)
    return write_report(folder, mistakes)


def try_page(folder: str | Path, write: Callable[[Path], Path] = write_page) -> bool:
    """Whether the page could be written; a failure is logged and does not end what came before, or comes after."""
    try:
        logger.info("report: %s", write(Path(folder)))
    except Exception as error:
        reason = f"{type(error).__name__}: {one_line(error)}"
        logger.warning("report.html is not written (%s); try again: ngd report %s", reason, folder)
        return False
    return True
