"""Folders of anybody's disk leave a text, and nothing else does."""

from __future__ import annotations

import pytest

from ngd_timm.core.paths import without_paths


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("/home/anna/private/x.bdf", "x.bdf"),
        ("/home/anna/private eeg/DREAMER.mat", "DREAMER.mat"),
        ("/home/anna,bob/x.npz", "x.npz"),
        ("/home/anna/", "anna"),
        ("/data.mat", "data.mat"),
        ("x=../anna/private/a.npz", "x=a.npz"),
        ("~/anna/x", "x"),
        ("anna/private/a.npz", "a.npz"),
        ("C:\\anna b\\x.mat", "x.mat"),
        ("\\\\server\\anna\\x.mat", "x.mat"),
        ("source:/home/anna/x.mat", "source:x.mat"),
        ("read /home/a/x.bdf and /home/b/y.bdf, twice", "read x.bdf and y.bdf, twice"),
    ],
)
def test_a_path_is_cut_to_its_end(text: str, left: str) -> None:
    assert without_paths(text) == left
    assert without_paths({"a": [text], text: 1}) == {"a": [left], left: 1}


@pytest.mark.parametrize(
    "text",
    [
        "ratio 3 / 4 / 5 done",
        "dB/Hz",
        "µV²/Hz",
        "and/or",
        "2026/11/22",
        "22/11/2026, 1/f",
        "https://doi.org/10.1/x.pdf",
    ],
)
def test_ordinary_text_stays(text: str) -> None:
    assert without_paths(text) == text
