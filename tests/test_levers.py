"""What a recipe may add to training: few labels, images without labels, the mean of the last epochs' weights."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from tiny_runs import tiny_recipe

from ngd_timm.core.affect import CLASSES, anchors
from ngd_timm.core.errors import InputError
from ngd_timm.core.recipe import AugmentConfig
from ngd_timm.data import FaceBatches, load_split
from ngd_timm.data.synthetic.schematic import draw_face
from ngd_timm.data.unlabelled import load_unlabelled
from ngd_timm.grid.prototypes import PrototypeGrid
from ngd_timm.losses import ProtoKDLoss
from ngd_timm.train.batches import TrainingBatch, with_expected_places, with_unlabelled
from ngd_timm.train.checkpoint import Checkpoints
from ngd_timm.train.loop import train
from ngd_timm.train.setup import prepare


@pytest.fixture(scope="module")
def states(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """The checkpoints after every epoch of a run with and of one without an average."""
    kept: dict[str, list[dict[str, Any]]] = {}
    with pytest.MonkeyPatch.context() as patch:
        save = Checkpoints.save

        def save_and_keep(self: Checkpoints, *state: Any) -> None:
            save(self, *state)
            kept[self.epoch_file.parts[-3]].append(torch.load(self.epoch_file, weights_only=True))

        patch.setattr(Checkpoints, "save", save_and_keep)
        for name, more in (("plain", {}), ("swa", {"swa": 0.5})):
            kept[name] = []
            optim = {"epochs": 4, "batch_size": 16, "lr": 1e-3, **more}
            student = {"backbone": "test_resnet", "image_size": 32, "drop_rate": 0.2}
            out = tmp_path_factory.mktemp("runs") / name
            train(tiny_recipe(faces, out, optim=optim, student=student, save_every=0))
            kept[f"student of {name}"] = [load_file(out / "student" / "model.safetensors")]
    return kept


def weights(state: dict[str, Any], ema: bool = False) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = (
        state["checkpoint_ema"]["state_dict_ema"] if ema else state["checkpoint"]["state_dict"]
    )
    return {k: v for k, v in found.items() if v.is_floating_point()}


def test_an_average_is_the_mean_of_the_last_epochs_and_changes_nothing_of_the_training(states: Any) -> None:
    for plain, averaged in zip(states["plain"], states["swa"], strict=True):
        torch.testing.assert_close(weights(plain), weights(averaged), rtol=0, atol=0)
        assert torch.equal(plain["random"][0], averaged["random"][0])
    # two of four epochs: before the second of them the average is the weights themselves
    for epoch in range(3):
        torch.testing.assert_close(
            weights(states["swa"][epoch]), weights(states["swa"][epoch], ema=True), rtol=0, atol=0
        )
    one, two, mean = weights(states["swa"][2]), weights(states["swa"][3]), weights(states["swa"][3], ema=True)
    for name, value in mean.items():
        if "running" not in name:
            torch.testing.assert_close(value, (one[name] + two[name]) / 2, msg=name)
    (saved,) = states["student of swa"]
    assert torch.equal(saved["conv1.0.weight"], mean["conv1.0.weight"])


def test_an_averages_batch_norm_is_estimated_anew(states: Any) -> None:
    one, two, mean = weights(states["swa"][2]), weights(states["swa"][3]), weights(states["swa"][3], ema=True)
    names = [name for name in mean if name.endswith("running_var")]
    assert names
    for name in names:
        assert not torch.equal(mean[name], two[name])
        assert not torch.allclose(mean[name], (one[name] + two[name]) / 2)


def few(faces: Path, fraction: float | None) -> tuple[dict[str, str], Any]:
    dataset, report = load_split("schematic", faces, "train", label_fraction=fraction)
    return dict(zip(dataset["source"][:], dataset["label"][:], strict=True)), report


def test_a_share_of_the_labels_keeps_every_class_and_lies_within_a_larger_share(faces: Path) -> None:
    whole, _ = few(faces, None)
    kept = {fraction: few(faces, fraction)[0] for fraction in (0.01, 0.3, 0.7, 1.0)}
    assert kept[1.0] == whole
    for small, large in ((0.01, 0.3), (0.3, 0.7), (0.7, 1.0)):
        assert kept[small].items() < kept[large].items()
    rows, report = few(faces, 0.5)
    for c, name in enumerate(CLASSES):
        n = list(whole.values()).count(c)
        assert list(kept[0.01].values()).count(c) == 1
        assert report.counts[name] == list(rows.values()).count(c) == round(0.5 * n)
    assert report.dropped == {"beyond label_fraction=0.5": len(whole) - len(rows)}
    assert len(load_split("schematic", faces, "valid", label_fraction=0.5)[0]) == 16


def test_which_labels_are_kept_depends_on_names_not_on_their_order(faces: Path, tmp_path: Path) -> None:
    table = pq.read_table(faces / "train.parquet")
    pq.write_table(table.take(pa.array(range(table.num_rows - 1, -1, -1))), tmp_path / "train.parquet")
    before, after = (load_split("schematic", root, "train", label_fraction=0.4)[0] for root in (faces, tmp_path))
    assert set(before["file_name"][:]) == set(after["file_name"][:])


def test_a_run_of_few_labels_trains_on_those_alone(faces: Path, tmp_path: Path) -> None:
    data = {"name": "schematic", "root": str(faces), "workers": 0, "label_fraction": 0.4}
    setup = prepare(tiny_recipe(faces, tmp_path / "run", data=data))
    report = setup.fingerprint["data"]["train"]
    assert report["kept"] == sum(report["counts"].values()) < 48 / 2
    assert len(setup.valid.dataset) == 16


def test_an_epoch_of_several_passes_draws_every_image_as_often_each_time_in_another_order(faces: Path) -> None:
    dataset, _ = load_split("schematic", faces, "train", limit=20)
    options: dict[str, Any] = {"image_size": 32, "train": True, "augment": AugmentConfig()}
    batches = FaceBatches(dataset, batch_size=12, epoch_repeats=3, **options)
    batches.set_epoch(1)
    drawn = list(batches)
    assert len(drawn) == len(batches) == 5
    rows = torch.cat([batch.index for batch in drawn]).tolist()
    # passes 3, 4 and 5 of the run
    single = FaceBatches(dataset, batch_size=20, **options)
    for number in range(3):
        single.set_epoch(3 + number)
        (whole,) = single
        assert rows[20 * number : 20 * (number + 1)] == whole.index.tolist()
    assert not torch.equal(drawn[0].images, drawn[1].images)
    # a set smaller than a batch does, where it is repeated
    assert len(FaceBatches(dataset, batch_size=32, epoch_repeats=2, **options)) == 1
    assert len(FaceBatches(dataset, image_size=32, batch_size=10, epoch_repeats=2)) == 2, "evaluation reads once"
    with pytest.raises(InputError, match="epoch_repeats must be at least 1, got 0"):
        FaceBatches(dataset, epoch_repeats=0, **options)


@pytest.fixture
def people(tmp_path: Path) -> Path:
    """A parquet of drawn faces of eight subjects, with labels of no class."""
    rows = [
        {"image": _png(n), "label": "bored", "subject": f"person {n % 8}", "file_name": f"{n}.png"} for n in range(32)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "people.parquet")
    return tmp_path / "people.parquet"


def _png(seed: int) -> bytes:
    import io

    buffer = io.BytesIO()
    draw_face(CLASSES[seed % 8], seed=seed, image_size=32).save(buffer, format="PNG")
    return buffer.getvalue()


def test_parts_by_subject_share_no_subject_and_are_the_set_together(people: Path) -> None:
    table = pq.read_table(people)
    labelled = people.with_name("labelled.parquet")
    labels = pa.array(["fear"] * table.num_rows)
    pq.write_table(table.set_column(table.column_names.index("label"), "label", labels), labelled)
    parts = [load_split("fer2013", f"{labelled},part={n}/2,by=subject")[0] for n in range(2)]
    subjects = [set(part["subject"][:]) for part in parts]
    assert all(subjects)
    assert not subjects[0] & subjects[1]
    assert sum(map(len, parts)) == 32
    images, report = load_unlabelled("fer2013", [f"{labelled},part=0/2,by=subject"], CLASSES)
    assert images["source"][:] == parts[0]["source"][:]
    assert report.dropped == {"of another part than 0/2 by subject": len(parts[1])}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("part=2/2", r"part=2/2: parts are counted from 0; give 0/2 to 1/2"),
        ("part=half", "part must be a part of so many, counted from 0, such as 0/2, got 'half'"),
        ("by=subject", "by=… says what part=… goes by; give both"),
        ("part=0/2,by=age", "by must be subject, file_name or source"),
    ],
)
def test_a_part_that_is_none_is_refused(people: Path, options: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_unlabelled("fer2013", [f"{people},{options}"], CLASSES)


def test_a_part_by_what_the_images_lack_is_refused(faces: Path) -> None:
    with pytest.raises(InputError, match=r"48 of 48 images have no subject, which part=… goes by"):
        load_split("schematic", f"{faces},part=0/2,by=subject", "train")


def test_unlabelled_images_come_of_any_class_or_of_a_plain_folder(people: Path, faces: Path, tmp_path: Path) -> None:
    folder = tmp_path / "crops"
    (folder / "more").mkdir(parents=True)
    for n in range(3):
        (folder / f"{n}.png").write_bytes(_png(n))
    shutil.copy(folder / "0.png", folder / "more" / "3.png")
    images, report = load_unlabelled("fer2013", [str(people), str(folder), f"{faces}:test"], CLASSES)
    assert (len(images), report.read, set(images["label"][:])) == (32 + 4 + 16, 52, {-100})
    again = load_unlabelled("fer2013", [str(people), str(folder)], CLASSES)[1]
    assert again.sha256 != report.sha256
    with pytest.raises(InputError, match="images that lie directly in a folder are taken whole"):
        load_unlabelled("fer2013", [f"{folder},part=0/2"], CLASSES)


def test_tables_of_unlabelled_images_need_no_labels(tmp_path: Path) -> None:
    images = [_png(n) for n in range(3)]
    Dataset.from_dict({"image": images}).to_parquet(tmp_path / "plain.parquet")
    Dataset.from_dict({"image": images, "label": [7, 8, 9]}).to_parquet(tmp_path / "numbered.parquet")
    np.savez(tmp_path / "pixels.npz", X=np.zeros((3, 8, 8), dtype=np.uint8))
    roots = [str(tmp_path / name) for name in ("plain.parquet", "numbered.parquet", "pixels.npz")]
    images_of_all, report = load_unlabelled("fer2013", roots, CLASSES)
    assert (len(images_of_all), report.labels) == (9, "not read")


def test_only_the_split_that_is_named_is_taken_without_labels_whatever_lies_beside_it(tmp_path: Path) -> None:
    for n, place in enumerate(("train/happy", "train/sad", "test/happy", "")):
        (tmp_path / "set" / place).mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / place / f"{n}.png").write_bytes(_png(n))
    images, _ = load_unlabelled("fer2013", [f"{tmp_path / 'set'}:train"], CLASSES)
    assert sorted(images["source"][:]) == ["train/happy/0.png", "train/sad/1.png"]


def test_unlabelled_images_take_none_that_are_held_out(people: Path) -> None:
    with pytest.raises(InputError, match="what hold_out keeps for validation would be trained on; leave it out"):
        load_unlabelled("fer2013", [f"{people},hold_out=0.1"], CLASSES)


def unlabelled_recipe(faces: Path, out: Path, people: Path, teacher: Path, rule: str = "majority") -> Any:
    data = {"name": "schematic", "root": str(faces), "workers": 0, "unlabelled": [str(people)]}
    loss = {"kd": 0.3, "proto_kd": 0.2, "tau": 0.1}
    return tiny_recipe(faces, out, data=data, teacher=str(teacher), grid="gameemo-v2", loss=loss)


def test_unlabelled_images_count_in_kd_and_by_the_teachers_places_in_proto_kd(
    faces: Path, people: Path, student: Path, tmp_path: Path
) -> None:
    setup = prepare(unlabelled_recipe(faces, tmp_path / "run", people, student))
    batch, *_ = setup.training_batches(epoch=0, first=0)
    assert (len(batch.images), setup.step_size) == (20, 20)
    assert (batch.target[:16] >= 0).all()
    assert (batch.target[16:] == -100).all()
    assert batch.valence_arousal[:16].isfinite().all()  # the set's own
    expected = batch.teacher_logits[16:].softmax(1) @ torch.from_numpy(anchors(CLASSES)).float()
    torch.testing.assert_close(batch.valence_arousal[16:], expected)

    def gradients(batch: Any) -> dict[str, torch.Tensor]:
        setup.task.eval()  # batch norm by its statistics, so that rows have no part in each other
        logits, embedding = setup.task.trainable_module(batch.images, return_embedding=True)
        terms = setup.task.criterion.components(
            logits, embedding, batch.target, batch.teacher_logits, batch.valence_arousal
        )
        return {
            name: torch.autograd.grad(terms[name], logits if name != "proto_kd" else embedding, retain_graph=True)[0]
            for name in ("ce", "kd", "proto_kd")
        }

    found = gradients(batch)
    assert not found["ce"][16:].any()
    assert found["ce"][:16].any(1).all()
    assert found["kd"].any(1).all()
    assert found["proto_kd"].any(1).all()


@pytest.mark.parametrize("target", [torch.tensor([3, 5]), torch.eye(8)[[3, 5]]])
def test_labelled_images_of_a_set_without_places_keep_those_of_their_classes(target: torch.Tensor) -> None:
    images, logits = torch.zeros(2, 1, 8, 8), torch.randn(4, 8)
    own, more = (TrainingBatch(images, t, None, None) for t in (target, torch.full((2,), -100)))
    (joined,) = with_unlabelled([own], [more, more])
    (batch,) = with_expected_places([joined._replace(teacher_logits=logits)], CLASSES)
    assert batch.target.shape == (4, *target.shape[1:])
    assert batch.target.dtype == target.dtype
    assert torch.equal(batch.target[:2], target)
    assert torch.equal(batch.valence_arousal.isnan().all(1), torch.tensor([True, True, False, False]))


def test_every_unlabelled_image_comes_once_before_any_comes_again(
    faces: Path, people: Path, student: Path, tmp_path: Path
) -> None:
    setup = prepare(unlabelled_recipe(faces, tmp_path / "run", people, student))
    assert setup.unlabelled is not None
    # three steps an epoch of 4 of 32 images
    seen = [batch.images[16:] for epoch in range(4) for batch in setup.training_batches(epoch, 0)]
    later = next(iter(setup.training_batches(2, 1)))
    assert torch.equal(later.images[16:], seen[2 * 3 + 1])
    rows = [batch.index for epoch in range(2) for batch in _epoch(setup.unlabelled, epoch)]
    assert sorted(torch.cat(rows[:8]).tolist()) == list(range(32))
    assert not torch.equal(seen[0], seen[8])


def _epoch(batches: Any, epoch: int) -> Any:
    batches.set_epoch(epoch)
    return batches.batches()


def test_soft_targets_and_a_stream_take_unlabelled_images_too(
    faces: Path, people: Path, student: Path, tmp_path: Path
) -> None:
    data = {"name": "schematic", "root": str(faces), "workers": 0, "streaming": True, "unlabelled": [str(people)]}
    run = train(tiny_recipe(faces, tmp_path / "run", data=data, teacher=str(student), loss={"kd": 0.3}))
    with open(run / "summary.csv", newline="") as handle:
        assert all(float(row["kd"]) > 0 for row in csv.DictReader(handle))


def test_too_few_unlabelled_images_for_a_step_are_refused(
    faces: Path, people: Path, student: Path, tmp_path: Path
) -> None:
    recipe = unlabelled_recipe(faces, tmp_path / "run", people, student)
    changed = recipe.model_copy(update={"data": recipe.data.model_copy(update={"unlabelled_share": 0.01})})
    with pytest.raises(InputError, match=r"data\.unlabelled_share=0\.01 of optim\.batch_size=16 is 0 images a step"):
        prepare(changed)


@pytest.mark.parametrize("target", [torch.tensor([3, -100]), torch.eye(8)[[3, 3]] * torch.tensor([[1.0], [0.0]])])
def test_a_row_without_a_class_has_the_place_it_is_given(target: torch.Tensor) -> None:
    grid = PrototypeGrid.random(16)
    loss, z = ProtoKDLoss(grid, tau=0.1, target="va"), torch.randn(2, 16)
    place = torch.tensor([[torch.nan, torch.nan], [0.6, 0.4]])
    alone = [loss(z[:1], target[:1]), loss(z[1:], torch.tensor([0]), place[1:])]
    torch.testing.assert_close(loss(z, target, place), sum(alone) / 2)
    torch.testing.assert_close(loss(z, target, place * torch.nan), alone[0])
