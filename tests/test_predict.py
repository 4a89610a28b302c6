"""Answers about pictures: the student's own preprocessing, notes on pictures that are no face crops, annotations."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import timm
import torch
from PIL import Image

from ngd_timm import KDTeacher, Predictor, load_student, wrap
from ngd_timm.core.affect import CLASSES
from ngd_timm.core.errors import InputError
from ngd_timm.core.recipe import StudentConfig
from ngd_timm.data import load_fer
from ngd_timm.data.synthetic.schematic import draw_face
from ngd_timm.evaluate.predictions import predict
from ngd_timm.evaluate.student import evaluate, face_batches
from ngd_timm.models.student import create_student, save_student, set_input, shipped_student
from ngd_timm.predict.predictor import annotate_all, student_and_pictures
from ngd_timm.publish.export import export_student


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = create_student(StudentConfig(backbone="test_resnet", image_size=32), 8)
    return save_student(model, tmp_path_factory.mktemp("student") / "student")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    draw_face("happiness", seed=1).convert("RGB").save(folder / "a.png")
    draw_face("anger", seed=2).convert("RGB").resize((300, 100)).save(folder / "wide.jpg")
    draw_face("fear", seed=3).resize((16, 16)).save(folder / "tiny.png")
    return folder


def test_a_prediction_is_what_timms_own_transform_and_model_give(student: Path) -> None:
    face = draw_face("happiness", seed=1, image_size=50)
    (answer,) = Predictor(student)([face])
    model = timm.create_model(f"local-dir:{student}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    with torch.no_grad():
        expected = model(transform(face.convert("L"))[None]).softmax(1)[0]
    assert list(answer.probabilities) == list(CLASSES)
    torch.testing.assert_close(torch.tensor(list(answer.probabilities.values())), expected)


INPUTS = {
    "grey 64 px": {"in_chans": 1, "input_size": (1, 64, 64), "crop_pct": 1.0, "interpolation": "bilinear"},
    "RGB 40 px": {"in_chans": 3, "input_size": (3, 40, 40), "crop_pct": 1.0, "interpolation": "bilinear"},
    "RGB 96 px, cropped, bicubic": {
        "in_chans": 3,
        "input_size": (3, 96, 96),
        "crop_pct": 0.9,
        "interpolation": "bicubic",
    },
}


def faces_of_any_size(n: int = 24) -> list[Image.Image]:
    """Drawn faces of 24 to 512 px, a third of them square, half of them grey."""
    rng = np.random.default_rng(0)
    faces = []
    for i in range(n):
        width, height = (int(side) for side in rng.integers(24, 513, 2))
        if i % 3 == 0:
            width = height = 96 if i == 0 else width
        face = draw_face(CLASSES[i % 8], seed=i, image_size=128).convert("RGB").resize((width, height))
        tint = Image.merge("RGB", [band.point(lambda v, c=c: v * c // 3) for c, band in enumerate(face.split(), 1)])
        faces.append(tint if i % 2 else tint.convert("L"))
    return faces


def onnx_input(image: Image.Image, how: dict[str, Any]) -> np.ndarray:
    """What the docstring of `preprocessing` says, by PIL and NumPy alone."""
    (_, height, width), image = how["input_size"], image.convert(how["mode"])
    short = int(height / how["crop_pct"])
    scale = short / min(image.size)
    image = image.resize(
        tuple(short if side == min(image.size) else int(scale * side) for side in image.size),
        Image.Resampling[how["interpolation"].upper()],
    )
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    pixels = np.asarray(image.crop((left, top, left + width, top + height)), dtype=np.float32) / 255
    pixels = pixels.reshape(height, width, -1)
    return ((pixels - how["mean"]) / how["std"]).astype(np.float32).transpose(2, 0, 1)[None]


@pytest.mark.parametrize("name", INPUTS)
def test_an_image_gets_the_same_logits_by_every_path(name: str, tmp_path: Path) -> None:
    import onnxruntime

    settings = dict(INPUTS[name])
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=8, in_chans=settings.pop("in_chans")).eval()
    model.reset_classifier(8)
    with torch.no_grad():
        model.get_classifier().weight.mul_(20)  # logits that an aliased image would move
    channels = settings["input_size"][0]
    model.pretrained_cfg |= {**settings, "mean": (0.5,) * channels, "std": (0.25,) * channels, "crop_mode": "center"}
    student = save_student(model, tmp_path / "student")
    faces = faces_of_any_size()
    files = [tmp_path / f"{i}.png" for i in range(len(faces))]
    for face, file in zip(faces, files, strict=True):
        face.save(file)

    def log_probabilities(logits: torch.Tensor) -> torch.Tensor:
        return logits.log_softmax(dim=1)

    loaded = timm.create_model(f"local-dir:{student}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(loaded))
    mode = "L" if channels == 1 else "RGB"
    with torch.no_grad():
        expected = torch.cat([loaded(transform(face.convert(mode))[None]) for face in faces])
    assert float(expected.std(dim=0).mean()) > 0.1

    parquet = tmp_path / "test.parquet"
    labels = [CLASSES[i % 8] for i in range(len(files))]
    pq.write_table(pa.table({"image": [file.read_bytes() for file in files], "label": labels}), parquet)
    evaluated = predict(loaded, face_batches(loaded, load_fer("schematic", parquet, "test")), torch.device("cpu"))
    torch.testing.assert_close(evaluated.logits, expected, atol=1e-4, rtol=0)

    predictions = Predictor(student, batch_size=7)(files)
    log_p = torch.tensor([list(prediction.probabilities.values()) for prediction in predictions]).log()
    torch.testing.assert_close(log_p, log_probabilities(expected), atol=1e-4, rtol=0)

    session = onnxruntime.InferenceSession(export_student(student, "onnx", tmp_path / "student.onnx"))
    how = json.loads(session.get_modelmeta().custom_metadata_map["ngd"])
    onnx = np.concatenate([session.run(None, {"images": onnx_input(face, how)})[0] for face in faces])
    torch.testing.assert_close(torch.from_numpy(onnx), expected, atol=1e-4, rtol=0)


def test_a_student_of_an_own_loop_is_shown_pictures_as_set_input_says(tmp_path: Path) -> None:
    model = timm.create_model("test_resnet", num_classes=8).eval()
    set_input(model, 40, (0.1, 0.2, 0.3), (0.3, 0.3, 0.3))
    face = draw_face("anger", seed=2, image_size=40)
    (answer,) = Predictor(save_student(model, tmp_path / "student"))([face])
    pixels = torch.from_numpy(np.array(face.convert("RGB"))).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        expected = model((pixels - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / 0.3).softmax(1)[0]
    torch.testing.assert_close(torch.tensor(list(answer.probabilities.values())), expected)
    with pytest.raises(InputError, match=r"3 channel\(s\) need .* got image_size=40, mean=\(0.5,\)"):
        set_input(model, 40, (0.5,), (0.5, 0.5, 0.5))
    assert answer.label == CLASSES[int(expected.argmax())]


def test_files_images_and_arrays_get_the_same_answer_in_batches_of_any_size(student: Path, tmp_path: Path) -> None:
    faces = [draw_face(CLASSES[i % 8], seed=i).convert("RGB") for i in range(5)]
    for i, face in enumerate(faces):
        face.save(tmp_path / f"{i}.png")
    by_file = Predictor(student)([tmp_path / f"{i}.png" for i in range(5)])
    by_array = Predictor(student, batch_size=2)([np.asarray(face) for face in faces])
    for one, two, three in zip(by_file, by_array, Predictor(student, batch_size=1)(faces), strict=True):
        assert one.label == two.label == three.label
        assert one.probabilities == pytest.approx(two.probabilities, abs=1e-5)
        assert one.probabilities == pytest.approx(three.probabilities, abs=1e-5)


def test_a_picture_that_is_no_face_crop_is_answered_with_a_note(student: Path, pictures: Path) -> None:
    plain, wide, tiny = Predictor(student)([pictures / n for n in ("a.png", "wide.jpg", "tiny.png")])
    assert plain.notes == ()
    assert "far from square (300 x 100 px)" in wide.notes[0]
    assert "tiny (16 x 16 px)" in tiny.notes[0]


def test_one_image_gives_one_prediction_whatever_it_comes_as(student: Path, tmp_path: Path) -> None:
    face = draw_face("happiness", seed=1).convert("RGB")
    face.save(tmp_path / "face.png")
    predictor = Predictor(student)
    expected = predictor([face])[0].probabilities
    grey = np.asarray(face.convert("L"))
    for image in (
        str(tmp_path / "face.png"),
        tmp_path / "face.png",
        face,
        face.convert("RGBA"),
        np.asarray(face),
        np.asarray(face.convert("RGBA")),
        grey,
        grey.astype(np.uint16) << 8,
        np.asarray(face).astype(np.uint16) << 8,
    ):
        prediction = predictor(image)
        assert list(prediction.probabilities.values()) == pytest.approx(list(expected.values()), abs=1e-5)
    assert predictor([]) == []


@pytest.mark.parametrize(
    "given", [None, 3, b"bytes", [None], [b"bytes"], np.zeros((2, 3, 4, 5), np.uint8), np.zeros((4, 4)), [[]]]
)
def test_what_is_no_image_is_refused_in_one_line(student: Path, given: Any) -> None:
    with pytest.raises(InputError, match="expected a file, a PIL image, a uint8 or uint16 array") as refused:
        Predictor(student)(given)
    assert "\n" not in str(refused.value)


def test_a_file_of_a_format_that_may_run_a_program_is_never_opened(
    student: Path, tmp_path: Path, ngd: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_, **__: pytest.fail("Ghostscript was called"))
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 48 48\n%%EndComments\nshowpage\n%%EOF\n"
    (tmp_path / "face.png").write_bytes(eps)
    done = ngd("predict", str(student), str(tmp_path / "face.png"))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "not a PNG, JPEG, BMP, WEBP, TIFF, GIF or PPM image" in done.stderr
    pq.write_table(pa.table({"image": [eps], "label": ["anger"]}), tmp_path / "test.parquet")
    done = ngd("evaluate", str(student), "--data", f"schematic={tmp_path / 'test.parquet'}")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "not a PNG, JPEG, BMP, WEBP, TIFF, GIF or PPM image" in done.stderr


def test_an_image_above_the_limit_is_refused_before_it_is_decoded_and_an_option_raises_the_limit(
    student: Path, tmp_path: Path, ngd: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ngd_timm.core.images._pixel_limit", 2000)
    draw_face("anger", seed=1, image_size=50).save(tmp_path / "large.png")
    with monkeypatch.context() as patched:
        patched.setattr("PIL.ImageFile.ImageFile.load", lambda _: pytest.fail("it was decoded"))
        done = ngd("predict", str(student), str(tmp_path / "large.png"), "--max-megapixels", "0.001")
    assert done.returncode == 2
    assert "more than 0.002 megapixels; raise max_megapixels" in done.stderr
    pq.write_table(
        pa.table({"image": [(tmp_path / "large.png").read_bytes()], "label": ["anger"]}), tmp_path / "test.parquet"
    )
    spec = f"schematic={tmp_path / 'test.parquet'}"
    assert "more than 0.002 megapixels" in ngd("evaluate", str(student), "--data", spec).stderr
    assert ngd("evaluate", str(student), "--data", f"{spec},max_megapixels=0.0025").returncode == 0
    assert ngd("predict", str(student), str(tmp_path / "large.png")).returncode == 0


def test_a_colour_student_takes_grey_and_transparent_pictures(tmp_path: Path) -> None:
    model = create_student(StudentConfig(backbone="test_resnet", image_size=32, in_chans=3), 8)
    predictor = Predictor(save_student(model, tmp_path / "student"))
    face = draw_face("happiness", seed=1)
    assert len(predictor([face.convert("L"), face.convert("RGBA"), face.convert("P")])) == 3


def test_the_command_prints_lines_for_people_and_json_for_programs(
    student: Path, pictures: Path, tmp_path: Path, ngd: Callable[..., Any]
) -> None:
    done = ngd("predict", str(student), str(pictures), "--annotate", str(tmp_path / "answers"))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.strip().split("\n")
    assert len(lines) == 3
    assert "far from square" in next(line for line in lines if "wide.jpg" in line)
    answers = json.loads(ngd("predict", str(student), str(pictures / "a.png"), "--json").stdout)
    assert answers[0]["label"] in CLASSES
    assert sum(answers[0]["probabilities"].values()) == pytest.approx(1, abs=1e-4)
    written = sorted((tmp_path / "answers").iterdir())
    assert [p.name for p in written] == ["1-a.png", "2-tiny.png", "3-wide.png"]
    for path in written:
        with Image.open(path) as image:
            assert image.width > 500


def test_a_first_argument_that_is_no_student_is_a_picture(student: Path, pictures: Path) -> None:
    one, folder = str(pictures / "a.png"), str(pictures)
    assert student_and_pictures([str(student), one]) == (str(student), [one])
    assert student_and_pictures([one, folder]) == (None, [one, folder])
    assert student_and_pictures([folder]) == (None, [folder])
    assert student_and_pictures(["user/student", one]) == ("user/student", [one])
    assert student_and_pictures(["gone/face.png"]) == (None, ["gone/face.png"])


def test_without_a_student_the_one_in_the_wheel_answers_and_needs_no_network(
    pictures: Path, monkeypatch: pytest.MonkeyPatch, ngd: Callable[..., Any]
) -> None:
    monkeypatch.setattr("socket.socket.connect", None)
    answers = json.loads(ngd("predict", str(pictures / "a.png"), "--json").stdout)
    shipped = Predictor(shipped_student())
    assert answers == [shipped([pictures / "a.png"])[0].as_dict()]
    assert load_student().pretrained_cfg["label_names"] == list(CLASSES)
    with pytest.raises(InputError, match=r"student version 'student-ferplus-v0'.*student-ferplus-v1"):
        load_student("student-ferplus-v0")


def test_a_student_whose_files_disagree_is_refused_whatever_opens_it(tmp_path: Path) -> None:
    model = create_student(StudentConfig(backbone="test_resnet", image_size=32), 8)
    folder = save_student(model, tmp_path / "student")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_classes": 9}))
    for opened in (
        lambda: Predictor(folder),
        lambda: evaluate(folder, [f"schematic={tmp_path}"]),
        lambda: KDTeacher.open(folder, CLASSES, (0.5,), (0.25,)),
        lambda: wrap(f"local-dir:{folder}", pretrained=True),
    ):
        with pytest.raises(InputError, match=r"not a readable student \(num_classes is 9 in config\.json") as refused:
            opened()
        assert "\n" not in str(refused.value)
    (folder / "config.json").write_text(json.dumps(config))
    assert wrap(f"local-dir:{folder}", 5, pretrained=True, in_chans=3).num_classes == 5  # adapted on purpose


def test_a_student_without_pictures_is_told_so(student: Path, ngd: Callable[..., Any]) -> None:
    done = ngd("predict", str(student))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "give pictures after it" in done.stderr


def test_a_picture_that_cannot_be_read_is_named_and_nothing_is_written(
    student: Path, pictures: Path, tmp_path: Path, ngd: Callable[..., Any]
) -> None:
    (pictures / "broken.png").write_bytes((pictures / "a.png").read_bytes()[:200])
    done = ngd("predict", str(student), str(pictures), "--annotate", str(tmp_path / "answers"))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "broken.png is not a readable image" in done.stderr
    assert not (tmp_path / "answers").exists()
    for given, line in ((tmp_path / "none.png", "no picture"), (tmp_path / "empty", "holds no pictures")):
        (tmp_path / "empty").mkdir(exist_ok=True)
        assert line in ngd("predict", str(student), str(given)).stderr
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        annotate_all([], full)
    with pytest.raises(InputError, match="uint8"):
        Predictor(student)([np.zeros((4, 4), dtype=np.float32)])
