"""What goes to the Hub of a grid: its file, card, licence and plot, in which no path and no subject is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ngd_timm.core.errors import InputError
from ngd_timm.core.files import write_text
from ngd_timm.core.hub import target
from ngd_timm.core.paths import without_paths
from ngd_timm.grid.card import grid_card, grid_licence
from ngd_timm.grid.prototypes import GRID_FILE, PrototypeGrid

_MIN_SUBJECTS = 3
PLOT = "grid.png"


def stage_grid(grid: PrototypeGrid, folder: str | Path, repo_id: str) -> None:
    """Write what goes to the Hub of a grid: grid.safetensors, README.md, LICENSE and grid.png."""
    target(repo_id)
    if reason := unfit_to_publish(grid):
        raise InputError(f"this grid is not fit to publish: {reason}")
    folder, name = Path(folder), repo_id.partition("/")[2]
    grid = replace(grid, metadata=without_paths(grid.metadata))
    grid.save(folder / GRID_FILE)
    write_text(folder / "README.md", grid_card(grid, name, repo_id))
    write_text(folder / "LICENSE", grid_licence(grid, name))
    grid.plot(folder / PLOT)


def unfit_to_publish(grid: PrototypeGrid) -> str | None:
    """Why a grid may not be published, or None."""
    notes = grid.metadata
    if "control" in notes:
        return f"it is a control ({notes['control']}), which anybody can make from its seed"
    if "dataset" not in notes or "subjects_per_cell" not in notes:
        return (
            "it doesn't say whose data it holds; build it with subjects=, min_subjects=3 and "
            "metadata={'dataset': ...}, or with: ngd prototypes build RUN --min-subjects 3"
        )
    few = sum(0 < int(n) < _MIN_SUBJECTS for n in notes["subjects_per_cell"].split(","))
    if few and "simulated" not in notes:
        return (
            f"{few} of its cells average fewer than {_MIN_SUBJECTS} people, which would publish a person's row; "
            f"build it with: ngd prototypes build RUN --min-subjects {_MIN_SUBJECTS}"
        )
    return None
