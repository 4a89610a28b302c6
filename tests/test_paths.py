"""Folders of anybody's disk leave a text, and nothing else does."""

from __future__ import annotations

import pytest

from ngd_timm.core.commands import shown_command, without_folders
from ngd_timm.core.paths import without_paths
from ngd_timm.core.recipe import Recipe
from ngd_timm.core.teacher_recipe import TeacherRecipe


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
        f"ann/faces.v1@{'0123abcd' * 5}",  # a data set on the Hub at a commit
    ],
)
def test_ordinary_text_stays(text: str) -> None:
    assert without_paths(text) == text


@pytest.mark.parametrize(
    ("argument", "shown"),
    [
        ("optim.epochs=12", "optim.epochs=12"),
        ("loss.ramp=[0, 0.6]", "'loss.ramp=[0, 0.6]'"),
        ("/home/anna/mine.yaml", "mine.yaml"),
        ("data.root=/home/anna/my faces", "'data.root=my faces'"),
        ("data.root=C:\\anna\\faces", "data.root=faces"),
        ("data.root=anna/ck,apex_frames=3,labels=anna/x.csv", "data.root=ck,apex_frames=3,labels=x.csv"),
        ("data.root=anna/ck,names=angry/sad/-,label=who", "data.root=ck,names=angry/sad/-,label=who"),
        ("b1_kd:teacher=[/home/anna/b0-0, hf-hub:user/student]", '\'b1_kd:teacher=["b0-0", "hf-hub:user/student"]\''),
        ("eval={ckplus: '/home/anna/ck,apex_frames=3'}", '\'eval={"ckplus": "ck,apex_frames=3"}\''),
        (
            "data.support={name: bandpower, root: ../anna/b.npz}",
            '\'data.support={"name": "bandpower", "root": "b.npz"}\'',
        ),
        ("student.backbone=local-dir:/home/anna/b", "student.backbone=local-dir:b"),
        ("grid=hf-hub:user/grid@v1", "grid=hf-hub:user/grid@v1"),
        *(
            (local, "")
            for local in ("out=/home/anna/run", "device=cuda", "b1_kd:kd_cache=/home/anna/c", "data.cache=false")
        ),
    ],
)
def test_the_command_of_a_run_is_shown_without_folders_and_without_what_one_machine_needs(
    argument: str, shown: str
) -> None:
    line = shown_command({"command": ["ngd", "train", "b0_ce", argument]}, "")
    assert line == f"ngd train b0_ce {shown}".strip()


def test_a_run_without_a_command_is_shown_with_its_recipe() -> None:
    for fingerprint in ({}, {"command": None}, {"command": "x"}):
        assert shown_command(fingerprint, "ngd train recipe.yaml") == "ngd train recipe.yaml"


def test_a_recipe_that_is_published_names_no_folder() -> None:
    student = Recipe.model_validate(
        {
            "name": "mine",
            "out": "/home/anna/run",
            "data": {
                "root": "/home/anna/faces,labels=/home/anna/x.csv",
                "unlabelled": ["/home/anna/crops.parquet,part=0/2,by=subject", "anna/crops"],
            },
            "loss": {"kd": 0.3},
            "eval": {"ckplus": "anna/ck"},
            "teacher": ["/home/anna/a", "hf-hub:user/b"],
            "kd_cache": "/home/anna/cache",
        }
    )
    support = {"name": "bandpower", "root": "../anna/b.npz"}
    places = {"root": "C:\\anna\\eeg", "ratings": "/home/anna/trials.tsv", "support": support}
    eeg = TeacherRecipe.model_validate({"name": "mine", "data": {"name": "bids", **places}})
    for recipe in (student, eeg):
        assert "anna" not in without_folders(recipe).model_dump_json()
    shown = without_folders(student)
    assert (shown.data.root, shown.teacher) == ("faces,labels=x.csv", ("a", "hf-hub:user/b"))
    assert shown.data.unlabelled == ("crops.parquet,part=0/2,by=subject", "crops")
