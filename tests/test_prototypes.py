"""The prototype grid: what it averages, what it refuses, and the Mantel test."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binom

from ngd_timm.core.affect import cell_of
from ngd_timm.core.errors import InputError
from ngd_timm.grid.imported import import_grid
from ngd_timm.grid.mantel import HeldOut, mantel_test
from ngd_timm.grid.prototypes import PrototypeGrid, grid_versions
from ngd_timm.grid.verdict import grid_verdict


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def sample(n: int = 60, dim: int = 7, count: int = 6, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, dim)), rng.uniform(-1, 1, (n, 2)), rng.integers(0, count, n)


def slow_build(
    embeddings: np.ndarray, va: np.ndarray, subjects: np.ndarray, size: int, min_subjects: int
) -> np.ndarray:
    """The formula, cell by cell and subject by subject."""
    rows = unit(embeddings)
    cells = cell_of(va, size)
    filled: dict[int, np.ndarray] = {}
    for cell in range(size * size):
        present = sorted(set(subjects[cells == cell]))
        if len(present) >= min_subjects and present:
            means = [rows[(cells == cell) & (subjects == subject)].mean(0) for subject in present]
            filled[cell] = unit(np.mean(means, 0))
    out = np.zeros((size * size, rows.shape[1]))
    for cell in range(size * size):
        if cell in filled:
            out[cell] = filled[cell]
            continue
        squared = {k: (k // size - cell // size) ** 2 + (k % size - cell % size) ** 2 for k in filled}
        near = [filled[k] for k in filled if squared[k] == min(squared.values())]
        out[cell] = unit(np.mean(near, 0))
    return out


@pytest.mark.parametrize("min_subjects", [1, 2, 3])
@pytest.mark.parametrize("size", [3, 5])
def test_build_equals_a_slow_reference_with_subject_weights_and_filled_gaps(size: int, min_subjects: int) -> None:
    embeddings, va, subjects = sample()
    grid = PrototypeGrid.build(embeddings, va, subjects, size=size, min_subjects=min_subjects)
    expected = slow_build(embeddings, va, subjects, size, min_subjects)
    np.testing.assert_allclose(grid.prototypes.numpy(), expected, atol=1e-6)


def test_a_point_on_the_upper_edge_belongs_to_the_last_cell() -> None:
    grid = PrototypeGrid.build(np.eye(2), np.array([[1.0, 1.0], [-1.0, 1.0]]))
    assert grid.counts.nonzero().flatten().tolist() == [4, 24]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"embeddings": np.zeros((4, 3))}, "row 0 is zero"),
        ({"embeddings": np.array([[1.0, 2], [np.nan, 1], [1, 1], [1, 1]])}, "row 1 is not finite"),
        ({"embeddings": np.ones(4)}, "shape (N, D)"),
        ({"valence_arousal": np.full((4, 2), 5.0)}, "rating_to_va"),
        ({"valence_arousal": np.zeros((3, 2))}, "shape (4, 2)"),
        ({"subjects": None, "min_subjects": 3}, "needs subjects"),
        ({"subjects": np.arange(3)}, "shape (4,)"),
        ({"min_subjects": 0}, "at least 1"),
        ({"min_subjects": 5}, "no cell holds 5 subjects"),
        ({"size": 1}, "2 to 64"),
    ],
)
def test_build_refuses_what_it_cannot_use(change: dict, words: str) -> None:
    good = {"embeddings": np.ones((4, 3)), "valence_arousal": np.zeros((4, 2)), "subjects": np.arange(4)}
    with pytest.raises(InputError) as caught:
        PrototypeGrid.build(**{**good, **change})
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_centring_takes_out_the_mean_of_filled_rows_only() -> None:
    rng = np.random.default_rng(0)
    embeddings = np.array([5.0, 0, 0, 0]) + rng.standard_normal((200, 4))
    va = np.clip(rng.normal(-0.4, 0.4, (200, 2)), -1, 1)
    grid = PrototypeGrid.build(embeddings, va)
    centred = PrototypeGrid.build(embeddings, va, center=True)
    own = grid.counts > 0
    assert not own.all()
    rows = grid.prototypes.double()
    expected = torch.nn.functional.normalize(rows - rows[own].mean(0))[own]
    torch.testing.assert_close(centred.prototypes.double()[own], expected, atol=1e-6, rtol=0)
    assert grid.mean_cosine > 0.9
    assert abs(centred.mean_cosine) < 0.4
    assert (grid.metadata["centered"], centred.metadata["centered"]) == ("false", "true")
    torch.testing.assert_close(grid.centered().prototypes, centred.prototypes)


def test_centring_a_grid_of_one_filled_cell_is_refused() -> None:
    with pytest.raises(InputError, match="center=False"):
        PrototypeGrid.build(np.ones((3, 2)), np.zeros((3, 2)), center=True)


def test_save_and_load_give_the_same_grid(tmp_path: Path) -> None:
    embeddings, va, subjects = sample()
    grid = PrototypeGrid.build(embeddings, va, subjects, metadata={"dataset": "made up", "note": "ä\n"})
    grid.save(tmp_path / "grid.safetensors")
    again = PrototypeGrid.load(tmp_path / "grid.safetensors")
    assert again.sha256 == grid.sha256
    assert again.metadata == grid.metadata
    assert torch.equal(again.prototypes, grid.prototypes)
    assert [p.name for p in tmp_path.iterdir()] == ["grid.safetensors"]


def test_sha256_depends_on_the_tensors_and_not_on_the_metadata() -> None:
    embeddings, va, subjects = sample()
    one = PrototypeGrid.build(embeddings, va, subjects, metadata={"a": "1"})
    two = PrototypeGrid.build(embeddings, va, subjects, metadata={"b": "2"})
    assert one.sha256 == two.sha256
    counts = one.counts.clone()
    counts[0] += 1
    assert PrototypeGrid(one.prototypes, counts, one.centers, 5).sha256 != one.sha256


def test_sha256_is_the_same_on_every_machine() -> None:
    rows = torch.eye(4)
    counts = torch.arange(4)
    plane = torch.tensor([[-0.5, -0.5], [-0.5, 0.5], [0.5, -0.5], [0.5, 0.5]])
    expected = "9406489a3250a15a523cea8c955db3a3037a44f6b22aab4f453a316c2ebaba75"
    assert PrototypeGrid(rows, counts, plane, 2).sha256 == expected


def test_a_bit_flipped_anywhere_in_the_file_is_refused_with_the_name_of_the_file(tmp_path: Path) -> None:
    embeddings, va, subjects = sample(dim=3)
    path = tmp_path / "grid.safetensors"
    PrototypeGrid.build(embeddings, va, subjects, size=2, metadata={"dataset": "made up"}).save(path)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(bytes(damaged))
        with pytest.raises(InputError, match=r"grid\.safetensors"):
            PrototypeGrid.load(path)


def test_metadata_must_be_strings_and_not_the_files_own_keys() -> None:
    grid = PrototypeGrid.random(4)
    with pytest.raises(InputError, match="strings"):
        PrototypeGrid(grid.prototypes, grid.counts, grid.centers, 5, {"n": 3})  # type: ignore[dict-item]
    with pytest.raises(InputError, match="sha256"):
        PrototypeGrid(grid.prototypes, grid.counts, grid.centers, 5, {"sha256": "x"})


def test_a_random_grid_is_orthonormal_where_the_width_allows_and_depends_on_its_seed() -> None:
    grid = PrototypeGrid.random(32, seed=3)
    torch.testing.assert_close(grid.prototypes @ grid.prototypes.T, torch.eye(25), atol=1e-5, rtol=0)
    assert PrototypeGrid.random(32, seed=3).sha256 == grid.sha256 != PrototypeGrid.random(32, seed=4).sha256
    assert PrototypeGrid.random(8).prototypes.norm(dim=1).allclose(torch.ones(25))
    assert grid.metadata["control"] == "random"


def test_a_shuffled_grid_has_the_same_rows_in_other_cells() -> None:
    embeddings, va, subjects = sample(400)
    grid = PrototypeGrid.build(embeddings, va, subjects)
    other = grid.shuffled(seed=1)
    assert not torch.equal(other.prototypes, grid.prototypes)
    assert sorted(map(tuple, other.prototypes.tolist())) == sorted(map(tuple, grid.prototypes.tolist()))
    assert other.mean_cosine == pytest.approx(grid.mean_cosine)
    assert torch.equal(other.centers, grid.centers)
    assert other.metadata["shuffled_from"] == grid.sha256


def test_mean_cosine_is_the_mean_over_pairs_of_different_cells() -> None:
    embeddings, va, _ = sample()
    rows = PrototypeGrid.build(embeddings, va, size=3).prototypes.numpy()
    pairs = [float(rows[i] @ rows[j]) for i in range(9) for j in range(9) if i != j]
    assert PrototypeGrid.build(embeddings, va, size=3).mean_cosine == pytest.approx(np.mean(pairs), abs=1e-6)


def planted(strength: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Ten subjects, eight trials of three windows; two directions of the embedding follow the plane."""
    rng = np.random.default_rng(seed)
    subjects = np.repeat(np.arange(10), 24)
    trials = np.tile(np.repeat(np.arange(8), 3), 10)
    va = np.repeat(rng.uniform(-1, 1, (80, 2)), 3, axis=0)
    embeddings = rng.standard_normal((240, 6)) + np.eye(6)[0] * 2
    embeddings[:, 2:4] += strength * va
    return embeddings, va, subjects, trials


def test_mantel_finds_a_planted_geometry_and_not_a_missing_one() -> None:
    result = mantel_test(*planted(3.0), size=4, permutations=199)
    assert result.r > 0.5
    assert result.p == pytest.approx(1 / 200)
    p_values = [mantel_test(*planted(0.0, seed), size=4, permutations=99).p for seed in range(8)]
    assert np.mean(p_values) > 0.2


def test_mantel_r_equals_a_slow_reference_and_the_grids_own() -> None:
    embeddings, va, subjects, trials = planted(1.0)
    for center in (False, True):
        grid = PrototypeGrid.build(embeddings, va, subjects, size=4, min_subjects=2, center=center)
        cosines, distances = [], []
        for i in range(16):
            for j in range(i):
                if grid.counts[i] and grid.counts[j]:
                    cosines.append(float(grid.prototypes[i].double() @ grid.prototypes[j].double()))
                    distances.append(np.hypot(i // 4 - j // 4, i % 4 - j % 4))
        expected = -np.corrcoef(cosines, distances)[0, 1]
        result = mantel_test(embeddings, va, subjects, trials, 4, 5, min_subjects=2, center=center)
        assert result.r == pytest.approx(expected, abs=1e-6)
        assert grid.mantel_r == pytest.approx(expected, abs=1e-6)


def test_of_grids_that_know_nothing_one_in_twenty_passes_the_declared_test() -> None:
    """A thousand of GAMEEMO's shape: tests/benchmarks/null_grids.py."""
    passed, grids, permutations = 0, 150, 79
    for seed in range(grids):
        rng = np.random.default_rng(seed)
        subjects, trials = np.indices((8, 5)).reshape(2, -1)
        va = rng.uniform(-1, 1, (40, 2)) * rng.uniform(0.3, 1, 8)[subjects, None]
        embeddings = rng.standard_normal((40, 5)) + rng.standard_normal((8, 5))[subjects] + 2
        p = mantel_test(embeddings, va, subjects, trials, 3, permutations, seed, center=True).p
        passed += "the grid follows" in grid_verdict(3, p, {("3", "mantel"): 0.001})[0]
    rate = 3 / (1 + permutations)  # of p below .05
    low, high = binom.interval(0.99, grids, rate)
    assert low <= passed <= high


def test_of_embeddings_that_know_a_stimulus_and_not_its_rating_few_pass_with_stimuli_held_out() -> None:
    """By the subjects' trials many pass; by stimuli few do, also where subjects met different ones."""
    passed = np.zeros(3, dtype=int)
    for seed in range(40):
        rng = np.random.default_rng(seed)
        subjects, stimuli = np.indices((24, 12)).reshape(2, -1)
        va = np.clip(rng.normal(0, 0.4, (12, 2))[stimuli] + rng.normal(0, 0.4, (288, 2)), -1, 1)
        embeddings = rng.standard_normal((12, 6))[stimuli] + rng.standard_normal((288, 6)) + 2
        every = np.ones(288, dtype=bool)
        met = rng.random((24, 12)).argsort(axis=1).reshape(-1) < 8
        for k, (folds, own) in enumerate(((0, every), (2, every), (1, met))):
            held_out = HeldOut(stimuli[own], stimuli[own] % folds) if folds else None
            rows = (embeddings[own], va[own], subjects[own], stimuli[own], 3, 39, seed)
            passed[k] += mantel_test(*rows, center=True, held_out=held_out).p < 0.05
    assert passed[0] > 15
    assert max(passed[1:]) <= binom.ppf(0.995, 40, 1 / 40)


def test_affect_that_is_a_stimulus_own_passes_with_stimuli_held_out_and_a_fold_of_one_is_refused() -> None:
    rng = np.random.default_rng(0)
    subjects, stimuli = np.indices((6, 12)).reshape(2, -1)
    va = rng.uniform(-1, 1, (12, 2))[stimuli]
    embeddings = np.column_stack([3 * va, rng.standard_normal((72, 3)) + 2])
    rows = (embeddings, va, subjects, stimuli, 3, 199)
    assert mantel_test(*rows, center=True, held_out=HeldOut(stimuli, stimuli % 3)).p < 0.02
    with pytest.raises(InputError, match="one stimulus"):
        mantel_test(*rows, held_out=HeldOut(stimuli, stimuli))


def test_mantel_refuses_a_trial_with_two_ratings_and_subjects_with_one_trial() -> None:
    embeddings, va, subjects, trials = planted(1.0)
    with pytest.raises(InputError, match="more than one"):
        mantel_test(embeddings, va + np.linspace(0, 1e-3, 240)[:, None] * np.sign(-va), subjects, trials)
    with pytest.raises(InputError, match="nothing to permute"):
        mantel_test(embeddings, va, subjects * 8 + trials, np.zeros(240))


def test_the_packaged_grid_loads_offline_and_says_whose_it_is(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="ngd_timm"):
        grid = PrototypeGrid.default()
    assert "GAMEEMO" in caplog.text
    assert "not the paper's" in caplog.text
    assert grid.size == 5
    assert PrototypeGrid.default("gameemo-v2").metadata["dataset"].startswith("GAMEEMO")
    assert min(int(n) for n in grid.metadata["subjects_per_cell"].split(",") if n != "0") >= 3
    assert not any("simulated" in (key + value).lower() for key, value in grid.metadata.items())


def test_versions_are_found_by_folder_and_the_newest_has_the_highest_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed, name in enumerate(["gameemo-v2", "gameemo-v10", "other-v9"]):
        PrototypeGrid.random(8, seed=seed).save(tmp_path / name / "grid.safetensors")
    (tmp_path / "templates").mkdir()
    (tmp_path / "gameemo-v99").mkdir()
    for module in ("core.files", "grid.prototypes"):
        monkeypatch.setattr(f"ngd_timm.{module}.packaged", lambda _: tmp_path)
    assert grid_versions() == ["gameemo-v2", "other-v9", "gameemo-v10"]
    assert PrototypeGrid.default().sha256 == PrototypeGrid.random(8, seed=1).sha256
    assert PrototypeGrid.default("gameemo-v2").sha256 == PrototypeGrid.random(8, seed=0).sha256
    with pytest.raises(InputError, match="did you mean 'gameemo-v2'"):
        PrototypeGrid.default("gameemo-v3")


def test_a_spec_names_a_version_or_a_file(tmp_path: Path) -> None:
    PrototypeGrid.random(9).save(tmp_path / "mine.safetensors")
    assert PrototypeGrid.from_spec(str(tmp_path / "mine.safetensors")).dim == 9
    assert PrototypeGrid.from_spec("gameemo-v1").metadata == PrototypeGrid.default("gameemo-v1").metadata
    with pytest.raises(InputError, match="unknown grid 'gameemo-v0'"):
        PrototypeGrid.from_spec("gameemo-v0")
    with pytest.raises(InputError, match="no grid file"):
        PrototypeGrid.from_spec("absent/grid.safetensors")


@pytest.mark.parametrize("kind", ["npz", "pt"])
@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("order", ["valence-major", "arousal-major"])
def test_prototypes_of_others_become_the_grid_that_they_describe(
    kind: str, flat: bool, order: str, tmp_path: Path, ngd: Callable[..., Any]
) -> None:
    cells = [(v, a) for v in range(3) for a in range(3)]
    theirs = np.random.default_rng(0).normal(size=(3, 3, 6))  # [valence, arousal]
    counts = np.arange(9).reshape(3, 3)
    arrays = {"proto": theirs, "n": counts}
    if order == "arousal-major":
        arrays = {key: value.swapaxes(0, 1) for key, value in arrays.items()}
    if flat:
        arrays = {key: value.reshape(9, *value.shape[2:]) for key, value in arrays.items()}
    arrays["theta"] = np.zeros(2)
    path = tmp_path / f"theirs.{kind}"
    if kind == "npz":
        np.savez(path, **arrays)
    else:
        torch.save({key: torch.tensor(value) for key, value in arrays.items()}, path)
    out = tmp_path / "grid.safetensors"
    assert (
        ngd(
            "prototypes",
            "import",
            str(path),
            "--prototypes",
            "proto",
            "--counts",
            "n",
            "--order",
            order,
            "--out",
            str(out),
        ).returncode
        == 0
    )
    assert "not_read: theta" in ngd("prototypes", "show", str(out)).stdout
    grid = PrototypeGrid.from_spec(str(out))
    for k, (v, a) in enumerate(cells):
        np.testing.assert_allclose(grid.prototypes[k], theirs[v, a] / np.linalg.norm(theirs[v, a]), atol=1e-6)
        assert grid.counts[k] == counts[v, a]
    assert hashlib.sha256(path.read_bytes()).hexdigest() == grid.metadata["source_sha256"]
    assert str(tmp_path) not in str(grid.metadata)


def test_an_empty_cell_of_others_is_filled_from_its_nearest_and_an_order_in_the_file_counts(tmp_path: Path) -> None:
    rows = np.eye(4)
    rows[1] = 0  # in arousal-major order: high valence, low arousal
    np.savez(tmp_path / "theirs.npz", prototypes=rows, counts=[5, 0, 5, 5], order="arousal-major")
    grid = import_grid(tmp_path / "theirs.npz")
    assert grid.counts.tolist() == [5, 5, 0, 5]
    np.testing.assert_allclose(grid.prototypes[2], (rows[0] + rows[3]) / np.sqrt(2), atol=1e-6)
    assert grid.metadata["order"].startswith("arousal-major, as the file says")


@pytest.mark.parametrize("kind", [np.float32, np.uint8])  # a scale from 1 to 9 has whole numbers
@pytest.mark.parametrize(("order", "column"), [("valence-major", 0), ("arousal-major", 1)])
def test_centres_of_others_must_ascend_and_tell_which_of_their_columns_is_valence(
    order: str, column: int, kind: type, tmp_path: Path
) -> None:
    centers = np.array([(1, 2), (1, 8), (9, 2), (9, 8)], kind)  # the first column follows the first axis
    np.savez(tmp_path / "theirs.npz", prototypes=np.eye(4), centers=centers)
    metadata = import_grid(tmp_path / "theirs.npz", order=order).metadata
    assert metadata["provenance"].endswith(f"and their column {column} is taken as valence")
    assert metadata["not_read"] == "nothing"
