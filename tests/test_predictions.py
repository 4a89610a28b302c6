"""A run's predictions: computed once, checked when read, enough to compute every metric again."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_runs import tiny_recipe

import ngd_timm.evaluate.predictions as module
from ngd_timm.core.affect import ANCHORS, CLASSES
from ngd_timm.core.errors import InputError
from ngd_timm.core.files import sha256_file
from ngd_timm.data import FaceBatches, load_fer
from ngd_timm.data.synthetic.schematic import draw_face
from ngd_timm.evaluate.metrics import fer_metrics
from ngd_timm.evaluate.predictions import predict, prediction_file, read_predictions
from ngd_timm.evaluate.student import evaluate, face_batches, summary_line
from ngd_timm.grid.prototypes import PrototypeGrid
from ngd_timm.losses.proto_kd import ProtoKDLoss
from ngd_timm.models.student import open_student
from ngd_timm.train.interruption import Interruption, Stopped
from ngd_timm.train.loop import train


@pytest.fixture(scope="module")
def run(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    changes = {"grid": "gameemo-v2", "loss": {"proto_kd": 0.2}, "eval": {"schematic": f"{faces}:test"}}
    out = tmp_path_factory.mktemp("runs") / "run"
    return train(tiny_recipe(faces, out, **changes, eval_flip=True, share_every=0))


def test_a_run_keeps_its_predictions_on_validation_and_on_every_further_set(run: Path) -> None:
    names = sorted(file.name for file in (run / "predictions").iterdir())
    assert names == ["schematic-test.safetensors", "schematic-valid.safetensors"]
    fingerprint = json.loads((run / "fingerprint.json").read_text())
    valid = run / "predictions" / names[1]
    with safe_open(valid, framework="pt") as file:
        notes = file.metadata()
    assert (json.loads(notes["classes"]), notes["label_rule"], notes["flip"]) == (list(CLASSES), "given", "true")
    assert notes["data_sha256"] == fingerprint["data"]["valid"]["sha256"]
    tensors = load_file(valid)
    assert {k: (tuple(t.shape), t.dtype) for k, t in tensors.items() if k != "subject"} == {
        "logits": ((16, 8), torch.float32),
        "target": ((16,), torch.int64),
        "embedding": ((16, 64), torch.float32),
    }


def test_the_metrics_can_be_computed_from_the_file_again(run: Path) -> None:
    for key, entry in json.loads((run / "metrics.json").read_text()).items():
        kept = read_predictions(prediction_file(run, key))
        temperature = json.loads((run / "student" / "config.json").read_text())["ngd_timm"]["temperature"]
        weights = sha256_file(run / "student" / "model.safetensors")
        notes = {"drop_duplicates": True, "student_sha256": weights, "student_temperature": temperature}
        entry.pop("ratings", None)  # people's, of the data set
        assert kept.entry(**notes) == entry
        assert fer_metrics(kept.logits, kept.target, kept.classes, kept.subject)["8way"] == entry["8way"]


def test_evaluate_keeps_what_train_kept_and_only_with_the_option(run: Path, faces: Path) -> None:
    file = prediction_file(run, "schematic:valid")
    trained = read_predictions(file)
    file.unlink()
    evaluate(run, [f"schematic={faces}:valid"])
    assert not file.exists()
    evaluate(run, [f"schematic={faces}:valid"], predictions=True)
    again = read_predictions(file)
    for name in ("logits", "target", "embedding"):
        torch.testing.assert_close(getattr(again, name), getattr(trained, name), rtol=1e-4, atol=1e-5)
    assert (again.flip, again.data_sha256) == (True, trained.data_sha256)


@pytest.mark.parametrize(("flip", "passes"), [(False, 1), (True, 2)])
def test_every_image_is_predicted_once_or_twice_with_the_flip(run: Path, faces: Path, flip: bool, passes: int) -> None:
    student, _ = open_student(run)
    seen: list[int] = []
    student.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    predicted = predict(student, face_batches(student, load_fer("schematic", faces, "test")), torch.device("cpu"), flip)
    assert sum(seen) == passes * len(predicted.target)
    assert predicted.embedding is None


def test_a_signal_ends_a_prediction_after_the_batch_under_way(run: Path, faces: Path) -> None:
    student, _ = open_student(run)
    seen: list[int] = []

    def signalled(module: Any, inputs: Any, output: Any) -> None:
        seen.append(len(inputs[0]))
        signal.raise_signal(signal.SIGTERM)

    student.register_forward_hook(signalled)
    batches = FaceBatches(load_fer("schematic", faces, "test"), image_size=32, batch_size=5)
    with pytest.raises(Stopped), Interruption() as stop:
        predict(student, batches, torch.device("cpu"), between_batches=stop.check)
    assert seen == [5]


class _Faces:
    """A data set's names of subjects, and nothing else."""

    def __init__(self, names: list[str | None]) -> None:
        self.names, self.column_names = names, ["subject"]

    def __getitem__(self, column: str) -> list[str | None]:
        return self.names


def test_subjects_become_codes_and_a_nameless_image_is_a_subject_of_its_own() -> None:
    codes = module.subject_codes(_Faces(["b", "a", None, "b", None]))
    assert codes is not None
    assert codes[0] == codes[3]
    assert len(set(codes.tolist())) == 4
    assert module.subject_codes(_Faces([None, None])) is None
    assert module.subject_codes(_Faces(["", ""])) is None
    assert module.subject_codes(_Faces(["a", "a"])) is None  # one person can't be drawn otherwise
    assert module.subject_codes(_Faces(["a", ""])).tolist() == [0, 2]


def _without(name: str) -> Callable[[dict[str, Any], dict[str, str]], None]:
    return lambda tensors, notes: (tensors if name in tensors else notes).pop(name)


def _with(name: str, value: Any) -> Callable[[dict[str, Any], dict[str, str]], None]:
    return lambda tensors, notes: (notes if isinstance(value, str) else tensors).update({name: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without("embedding"), "embedding missing"),
        (_without("data_sha256"), "data_sha256 missing"),
        (_with("logits", torch.full((3, 8), torch.nan)), "logits is not finite"),
        (_with("logits", torch.zeros(3, 7)), "7 logits for 8 classes"),
        (_with("logits", torch.zeros(4, 8)), r"logits must be \(3, …\)"),
        (_with("target", torch.tensor([0, 1, 8])), r"targets outside 0\.\.7"),
        (_with("target", torch.tensor([0.0, 1, 2])), "target must be"),
        (_with("subject", torch.tensor([0, 1])), "subject must be"),
        (_with("faces", torch.zeros(3)), "unknown tensor 'faces'"),
        (_with("classes", "neutral"), "not JSON"),
        (_with("flip", "1"), "flip true or false"),
    ],
)
def test_a_file_that_does_not_fit_together_is_refused_by_name_and_reason(
    change: Callable[[dict[str, Any], dict[str, str]], None], message: str, tmp_path: Path
) -> None:
    tensors = {"logits": torch.zeros(3, 8), "target": torch.tensor([0, 1, 2]), "embedding": torch.zeros(3, 4)}
    notes = {"classes": json.dumps(CLASSES), "label_rule": "majority", "flip": "false", "data_sha256": "0"}
    file = tmp_path / "set-valid.safetensors"
    save_file(tensors, file, metadata=notes)
    assert np.isfinite(read_predictions(file).logits).all()
    change(tensors, notes)
    save_file(tensors, file, metadata=notes)
    with pytest.raises(InputError, match=message) as caught:
        read_predictions(file)
    assert "set-valid.safetensors" in str(caught.value)


def test_a_missing_or_damaged_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist; write it with: ngd evaluate"):
        read_predictions(tmp_path / "a.safetensors")
    (tmp_path / "a.safetensors").write_bytes(b"no tensors")
    with pytest.raises(InputError, match="not a readable safetensors file"):
        read_predictions(tmp_path / "a.safetensors")


def test_a_second_ctrl_c_interrupts_at_once() -> None:
    with Interruption() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.number == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_set_with_ratings_is_scored_by_anchors_and_by_the_runs_grid(run: Path, tmp_path: Path) -> None:
    names = [CLASSES[i % 7] for i in range(24)]
    places = np.array([ANCHORS[name] for name in names])
    images = []
    for number, name in enumerate(names):
        draw_face(name, seed=number, image_size=48).save(file := tmp_path / "face.png")
        images.append({"bytes": file.read_bytes(), "path": None})
    columns = {"image": images, "label": names, "valence": places[:, 0], "arousal": places[:, 1]}
    pq.write_table(pa.table(columns), tmp_path / "all.parquet")
    ((key, entry),) = evaluate(run, [f"diffusionfer={tmp_path / 'all.parquet'}"], predictions=True).items()
    kept = read_predictions(prediction_file(run, key))
    for name, place in (
        ("anchors", kept.logits.double().softmax(dim=1).numpy() @ np.array(list(ANCHORS.values()))),
        ("grid", ProtoKDLoss(PrototypeGrid.load(run / "grid.safetensors")).place(kept.embedding).numpy()),
    ):
        for axis, scores in enumerate(entry["ratings"][name].values()):
            assert scores["n"] == 24
            assert scores["r"] == pytest.approx(np.corrcoef(place[:, axis], places[:, axis])[0, 1], abs=1e-4)
    assert "valence r" in summary_line(key, entry)
