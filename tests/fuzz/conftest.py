"""A test of each artifact; the counts go into the test's report, for tests/conftest.py to print."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cases import fuzz
from faults import RAMP, encoded
from harness import Artifact


@pytest.fixture
def holds(
    student: Path, faces: Path, trained_run: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> Callable[[str, Artifact], None]:
    """Fuzz an artifact: every command reads what was altered, or refuses it in one line and writes nothing."""

    if sys.platform != "linux":
        pytest.skip("what a case took is read from /proc")

    def run(name: str, artifact: Artifact) -> None:
        (tmp_path / "face.png").write_bytes(encoded(RAMP))
        links = {"student": student, "faces": faces, "trained": trained_run, "face.png": tmp_path / "face.png"}
        tally = fuzz(artifact, tmp_path, links)
        request.node.user_properties.append(("fuzz", tally.line(name)))
        if tally.failures:
            shown = "\n\n".join(tally.failures.values())
            pytest.fail(f"{tally.failed} of {tally.tried} cases, a case of each kind:\n\n{shown}", pytrace=False)

    return run
