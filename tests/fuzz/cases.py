"""Draws altered files of an artifact, and counts how the commands that read them end."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from typing import Any

from edits import MARKER, Edit, apply, edits
from harness import Artifact, Tally, check, import_what_it_did
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st


def fuzz(artifact: Artifact, folder: Path, links: dict[str, Path]) -> Tally:
    """Run an artifact's commands on altered copies of it; with --hypothesis-profile=long on many."""
    long = settings.default == settings.get_profile("long")
    template, case = folder / "template", folder / "case"
    template.mkdir()
    (folder / "elsewhere.bin").write_bytes(b"of somebody else")
    for name, target in links.items():
        if target.is_dir():
            (template / name).symlink_to(target)
        else:
            shutil.copy(target, template / name)
    files = [path.relative_to(template) for path in artifact.write(template)]
    commands = artifact.commands + (artifact.slow if long else ())
    tally = Tally()

    def fresh() -> None:
        shutil.rmtree(case, ignore_errors=True)
        case.mkdir()
        shutil.copytree(template, case / "work", symlinks=True)

    def alter(changes: list[Edit]) -> None:
        """In a process of its own: SciPy crashes where it reads what an earlier edit damaged."""
        child = os.fork()
        if not child:
            with contextlib.suppress(BaseException):
                for change in changes:
                    apply(change, [case / "work" / file for file in files], case)
                artifact.sign(case / "work")
            os._exit(0)
        os.waitpid(child, 0)

    def one(changes: list[Edit], command: str) -> None:
        fresh()
        if changes:
            alter(changes)
        if (case / MARKER).exists():  # an edit read what an earlier one had put in
            (case / MARKER).rmdir()
        ending, problem = check(artifact, case, command.split())
        if (case / MARKER).exists():
            problem = f"runs what a pickle says\n{problem}"
        tally.add(ending, problem, f"ngd {command}, after {changes}")

    for command in dict.fromkeys(artifact.commands):
        one([], command)
        import_what_it_did(case)
    shown: Any = settings(
        max_examples=artifact.long if long else artifact.short,
        derandomize=not long,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    shown(given(changes=edits, command=st.sampled_from(commands))(one))()
    shutil.rmtree(case)
    return tally
