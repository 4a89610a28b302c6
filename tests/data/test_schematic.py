from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ngd_timm.core.affect import CLASSES, anchors
from ngd_timm.core.errors import InputError
from ngd_timm.data import load_split
from ngd_timm.data.synthetic.schematic import DOMAINS, draw_face, write_schematic


@pytest.mark.parametrize("domain", DOMAINS)
def test_a_face_is_a_function_of_its_arguments(domain: str) -> None:
    first, again = (np.asarray(draw_face("fear", domain=domain, seed=4)) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert (first != np.asarray(draw_face("fear", domain=domain, seed=5))).any()
    assert first.shape[:2] == (48, 48)


def mean_face(expression: str, domain: str, n: int = 10) -> np.ndarray:
    faces = [np.asarray(draw_face(expression, domain=domain, seed=s).convert("L"), float) for s in range(n)]
    return np.mean(faces, axis=0)


def test_the_eight_expressions_differ_on_the_same_faces() -> None:
    faces = [mean_face(c, "pencil") for c in CLASSES]
    for i in range(8):
        for j in range(i):
            assert np.abs(faces[i] - faces[j]).mean() > 0.8, (CLASSES[i], CLASSES[j])


def test_the_two_domains_look_different() -> None:
    pencil, paint = mean_face("neutral", "pencil"), mean_face("neutral", "paint")
    assert pencil.mean() > paint.mean() + 40
    assert draw_face("neutral", domain="pencil").mode == "L"
    assert draw_face("neutral", domain="paint").mode == "RGB"


def test_intensity_shows_in_the_face() -> None:
    rest = np.asarray(draw_face("surprise", anchors(["surprise"])[0] * 0.3, seed=1), float)
    full = np.asarray(draw_face("surprise", anchors(["surprise"])[0], seed=1), float)
    assert np.abs(rest - full).mean() > 1


def test_a_written_set_is_balanced_and_loads_with_valence_and_arousal(tmp_path: Path) -> None:
    folder = write_schematic(tmp_path / "s", "paint", n_train=20, n_valid=16, n_test=8, seed=3, image_size=32)
    dataset, report = load_split("schematic", folder, "train")
    assert sorted(report.counts.values()) == [2, 2, 2, 2, 3, 3, 3, 3]
    assert dataset[0]["image"].size == (32, 32)
    va = np.stack([dataset["valence"][:], dataset["arousal"][:]], axis=1)
    happy = np.array(dataset["label"][:]) == CLASSES.index("happiness")
    assert (va[happy, 0] > 0).all()
    assert [load_split("schematic", folder, s)[1].kept for s in ("valid", "test")] == [16, 8]


def test_the_same_seed_writes_the_same_set_and_another_one_other_faces(tmp_path: Path) -> None:
    hashes = [
        load_split("schematic", write_schematic(tmp_path / str(i), "pencil", 8, 8, 8, seed=s), "train")[1].sha256
        for i, s in enumerate((0, 0, 1))
    ]
    assert hashes[0] == hashes[1] != hashes[2]


def test_wrong_names_and_empty_splits_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="did you mean 'pencil'"):
        draw_face("fear", domain="pencl")
    with pytest.raises(InputError, match="did you mean 'happiness'"):
        draw_face("hapiness")
    with pytest.raises(InputError, match="every split needs an image"):
        write_schematic(tmp_path / "s", "paint", 8, 0, 8, seed=0)
    assert not (tmp_path / "s").exists()
