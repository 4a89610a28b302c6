"""The images of README.md and the docs, from a demo run and the bundled artifacts.

    ngd demo --out ngd_demo
    python docs/make_images.py ngd_demo            all but report.png
    python docs/make_images.py ngd_demo --chromium chromium

Needs scikit-image, whose photograph of Eileen Collins is NASA's and in the public domain.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from PIL import Image

import ngd_timm
from ngd_timm.eeg import TopomapOperator
from ngd_timm.eeg.signal.bandpower import load_bandpower
from ngd_timm.predict.annotate import draw_photo

IMAGES = Path(__file__).parent / "images"
INK, BLUE, ORANGE, GREEN = "#222222", "#0072B2", "#D55E00", "#009E73"


def save(figure: Figure, name: str) -> None:
    # white behind the ink, so that it is legible on a dark page too
    figure.savefig(IMAGES / name, dpi=120, facecolor="white", bbox_inches="tight", metadata={"Software": None})


def flow() -> None:
    figure = Figure(figsize=(10, 2.9))
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, 100), ylim=(0, 30))
    ax.axis("off")

    def box(x: float, y: float, text: str, color: str, width: float = 15) -> None:
        ax.add_patch(FancyBboxPatch((x, y), width, 7, boxstyle="round,pad=.3", fc="white", ec=color, lw=1.6))
        ax.text(x + width / 2, y + 3.5, text, ha="center", va="center", color=INK, fontsize=9.5)

    def arrow(start: tuple[float, float], end: tuple[float, float]) -> None:
        ax.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=12, color="#666666", lw=1.3))

    top = ("EEG\nrecordings", "band\npower", "topographic\nmaps", "teacher\n(timm)", "5×5 grid of\nprototypes")
    for i, text in enumerate(top):
        box(2 + 20 * i, 20, text, BLUE if i < 4 else ORANGE)
        if i:
            arrow((-2.6 + 20 * i, 23.5), (1.6 + 20 * i, 23.5))
    bottom = ("faces", "any timm\nbackbone", "logits,\nembedding", "CE + KD +\nProto-KD + D-Geo")
    for i, text in enumerate(bottom):
        box(2 + 20 * i, 9, text, GREEN, 15 if i < 3 else 35)
        if i:
            arrow((-2.6 + 20 * i, 12.5), (1.6 + 20 * i, 12.5))
    arrow((89.5, 19.6), (89.5, 16.6))
    ax.text(90.5, 18, "frozen", fontsize=8, color="#666666", va="center")
    box(22, 0.5, "the bare timm model: no EEG, no grid, no ngd_timm", GREEN, 55)
    arrow((29.5, 8.6), (29.5, 8.0))
    save(figure, "flow.png")


def prediction() -> None:
    from skimage import data

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "photo.png"
        Image.fromarray(data.astronaut()).save(file)
        (photo,) = ngd_timm.Predictor().photos([file])
        draw_photo(photo, IMAGES / "prediction.png")
    with Image.open(IMAGES / "prediction.png") as drawn:
        drawn.convert("P", palette=Image.Palette.ADAPTIVE).save(IMAGES / "prediction.png", optimize=True)


def grid() -> None:
    bundled = ngd_timm.PrototypeGrid.default()
    size, counts = bundled.size, bundled.counts.reshape(bundled.size, bundled.size).T.numpy()
    figure = Figure(figsize=(9, 4), layout="constrained")
    plane, cosines = figure.subplots(1, 2)
    plane.imshow(counts, origin="lower", extent=(-1, 1, -1, 1), cmap="Blues")
    edges = np.linspace(-1, 1, size + 1)
    plane.set(
        xlabel="valence", ylabel="arousal", title="trial windows averaged in each cell", xticks=edges, yticks=edges
    )
    for name, (valence, arousal) in ngd_timm.ANCHORS.items():
        plane.plot(valence, arousal, "o", color=ORANGE, ms=4)
        x, y = {"fear": (-26, 5), "contempt": (5, -9), "sadness": (5, -9), "happiness": (-46, -9)}.get(name, (5, 4))
        box = {"fc": "white", "ec": "none", "alpha": 0.75, "pad": 0.6}
        plane.annotate(name, (valence, arousal), (x, y), textcoords="offset points", fontsize=8, color=INK, bbox=box)
    drawn = cosines.imshow(bundled.prototypes @ bundled.prototypes.T, cmap="viridis")
    cosines.set(title="cosines between the 25 prototypes", xlabel="cell", ylabel="cell")
    figure.colorbar(drawn, ax=cosines, shrink=0.8)
    save(figure, "grid.png")


def topomaps(demo: Path) -> None:
    power = load_bandpower(next((demo / "eeg").glob("*.npz")), "bandpower")
    log = np.log(power.power[power.subject == power.subject[0]])
    scores = (log - log.mean(axis=0)) / log.std(axis=0)  # (windows, bands, channels), as the teacher gets them
    maps = TopomapOperator(power.channels, size=64)(torch.from_numpy(scores[0]).float())  # (bands, 64, 64)
    figure = Figure(figsize=(2.2 * len(power.bands), 2.5), layout="constrained")
    for ax, band, values in zip(figure.subplots(1, len(power.bands)), power.bands, np.asarray(maps), strict=True):
        ax.imshow(values, origin="lower", cmap="RdBu_r", vmin=-2, vmax=2)
        ax.set_title(band)
        ax.axis("off")
    save(figure, "topomaps.png")


def ablation() -> None:
    """The differences that `ngd results` wrote into docs/results.json, on FER+ test, with both intervals."""
    entry = json.loads((Path(__file__).parent / "results.json").read_text(encoding="utf-8"))["sets"][
        "ferplus:test, majority"
    ]
    differences = {(d["a"], d["b"]): d["8way"]["acc"] for d in entry["differences"]}
    rows = {
        "logit KD": ("b1_kd", "b0_ce"),
        "Proto-KD": ("b2_share", "b1_kd"),
        "D-Geo": ("b3_share", "b2_share"),
        "Proto-KD and D-Geo": ("b3_share", "b1_kd"),
        "EEG grid − random grid": ("b2_share", "c_random"),
        "EEG grid − shuffled grid": ("b2_share", "c_shuffled"),
        "EEG grid − V/A alone": ("b2_share", "c_va"),
    }
    figure = Figure(figsize=(7, 3.4), layout="constrained")
    ax = figure.subplots()
    for y, pair in enumerate(rows.values()):
        ax.plot(differences[pair]["seed_ci95"], (-y - 0.17, -y - 0.17), color="#999999", lw=1.5)
        ax.plot(differences[pair]["ci95"], (-y, -y), color=BLUE, lw=3)
        ax.plot(differences[pair]["mean"], -y, "o", color=INK)
    ax.axvline(0, color=INK, lw=0.8)
    ax.set_yticks([-y for y in range(len(rows))], rows)
    ax.set_xlabel(f"points of accuracy on FER+ test, n = {entry['n']:,}; blue: 95 % over images, grey: over 3 seeds")
    save(figure, "ablation.png")


def report(demo: Path, chromium: str) -> None:
    shot = IMAGES / "report.png"
    with tempfile.TemporaryDirectory() as profile:
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={profile}"]
        options += ["--window-size=1100,2700", f"--screenshot={shot}"]
        subprocess.run([chromium, *options, (demo / "report.html").resolve().as_uri()], check=True)
    part = Image.open(shot).crop((0, 1165, 1100, 2610))  # grid and faces
    part.convert("P", palette=Image.Palette.ADAPTIVE).save(shot)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("demo", type=Path, help="a folder that `ngd demo` wrote")
    parser.add_argument("--chromium", help="a browser, for the screenshot of the report")
    options = parser.parse_args()
    IMAGES.mkdir(exist_ok=True)
    flow()
    prediction()
    grid()
    topomaps(options.demo)
    ablation()
    if options.chromium:
        report(options.demo, options.chromium)


if __name__ == "__main__":
    main()
