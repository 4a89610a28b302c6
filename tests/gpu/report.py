"""EEG maps a second on the device, and all that tests/gpu/run.sh measured as FOLDER/report.json and FOLDER/table.md."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import timm
import torch

from ngd_timm.core.devices import processor_name
from ngd_timm.eeg import TopomapOperator
from ngd_timm.eeg.signal.recording import EMOTIV_14

ROUNDS, SECONDS, BATCH = 5, 0.5, 320


def maps_per_second(device: torch.device, size: int) -> list[float]:
    """Of each round, with batches of an EEG teacher: 64 samples of five bands."""
    operator = TopomapOperator(EMOTIV_14, size=size)
    values = torch.randn(BATCH, len(EMOTIV_14), device=device)
    operator(values)
    rates = []
    for _ in range(ROUNDS):
        calls, began = 0, time.perf_counter()
        while time.perf_counter() - began < SECONDS:
            operator(values)
            if device.type == "cuda":
                torch.cuda.synchronize()
            calls += 1
        rates.append(calls * BATCH / (time.perf_counter() - began))
    return rates


def rows(report: dict[str, Any]) -> list[str]:
    lines = [
        "| what | median | least to most | n | the full objective over it | peak memory |",
        "|---|---|---|---|---|---|",
    ]
    for run in report["training"]:
        for name, rates in run["images_per_second"].items():
            ratio = run["ours_over"].get(name)
            beside = (
                "" if ratio is None else f"{statistics.median(ratio):.2f} times ({ratio[0]:.2f} to {ratio[-1]:.2f})"
            )
            peak = f"{run['peak_bytes'][name] / 2**20:,.0f} MiB" if run["peak_bytes"][name] else ""
            span = f"{min(rates):,.0f} to {max(rates):,.0f}"
            what = f"{run['backbone']}, {run['size']} px, batch {run['batch']}, {name}"
            lines.append(
                f"| {what} | {statistics.median(rates):,.0f} images/s | {span} | {len(rates)} | {beside} | {peak} |"
            )
    for size, rates in report["eeg_maps"].items():
        span, what = f"{min(rates):,.0f} to {max(rates):,.0f}", f"EEG maps at {size} px, {BATCH} a call"
        lines.append(f"| {what} | {statistics.median(rates):,.0f} maps/s | {span} | {len(rates)} | | |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    device = torch.device(os.environ.get("NGD_GPU_DEVICE", "cuda"))
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name()
    runs = sorted((json.loads(file.read_text()) for file in folder.glob("[0-9]*.json")), key=lambda run: run["size"])
    report = {
        "device": name,
        "torch": torch.__version__,
        "timm": timm.__version__,
        "tests": (folder / "tests.txt").read_text().strip().splitlines()[-1],
        "training": runs,
        "eeg_maps": {size: maps_per_second(device, size) for size in (32, 224)},
    }
    (folder / "report.json").write_text(json.dumps(report, indent=2))
    title = f"{name}, torch {torch.__version__}, timm {timm.__version__}; tests: {report['tests']}"
    (folder / "table.md").write_text("\n".join([title, "", *rows(report)]) + "\n")
    print((folder / "table.md").read_text())


if __name__ == "__main__":
    main()
