"""Predictions: the student's own preprocessing, notes on images that are no face crops, annotated images."""

from __future__ import annotations

import csv
import importlib.util
import json
import re
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
from ngd_timm.core.images import to_mode
from ngd_timm.core.recipe import StudentConfig
from ngd_timm.data import load_fer
from ngd_timm.data.synthetic.schematic import draw_face
from ngd_timm.evaluate.predictions import predict
from ngd_timm.evaluate.student import evaluate, face_batches
from ngd_timm.models.student import create_student, save_student, set_input, shipped_student, student_folder
from ngd_timm.predict.faces import Face, FaceDetector, crop_face
from ngd_timm.predict.predictor import images_at, student_and_images
from ngd_timm.predict.video import _frames, predict_video
from ngd_timm.publish.export import preprocessing


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = create_student(StudentConfig(backbone="test_resnet", image_size=32), 8)
    return save_student(model, tmp_path_factory.mktemp("student") / "student")


@pytest.fixture(scope="module")
def predictor(student: Path) -> Predictor:
    return Predictor(student)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    draw_face("happiness", seed=1).convert("RGB").save(folder / "a.png")
    draw_face("anger", seed=2).convert("RGB").resize((300, 100)).save(folder / "wide.jpg")
    draw_face("fear", seed=3).resize((16, 16)).save(folder / "tiny.png")
    return folder


INPUTS = {
    "grey 64 px": {"input_size": (1, 64, 64), "crop_pct": 1.0, "interpolation": "bilinear"},
    "RGB 96 px, cropped, bicubic": {"input_size": (3, 96, 96), "crop_pct": 0.9, "interpolation": "bicubic"},
}


def faces_of_any_size(n: int = 12) -> list[Image.Image]:
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


def exported_input(image: Image.Image, how: dict[str, Any]) -> np.ndarray:
    """The input of an ONNX file by the docstring of `preprocessing`, with PIL and NumPy alone."""
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
    settings, channels = INPUTS[name], INPUTS[name]["input_size"][0]
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=8, in_chans=channels).eval()
    with torch.no_grad():
        model.get_classifier().weight.mul_(20)  # logits that an aliased image would move
    model.pretrained_cfg |= {**settings, "mean": (0.5,) * channels, "std": (0.25,) * channels, "crop_mode": "center"}
    student = save_student(model, tmp_path / "student")
    faces = faces_of_any_size()
    files = [tmp_path / f"{i}.png" for i in range(len(faces))]
    for face, file in zip(faces, files, strict=True):
        face.save(file)

    loaded = timm.create_model(f"local-dir:{student}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(loaded))
    with torch.no_grad():
        expected = torch.cat([loaded(transform(face.convert("L" if channels == 1 else "RGB"))[None]) for face in faces])
        how = preprocessing(loaded)
        exported = loaded(torch.from_numpy(np.concatenate([exported_input(face, how) for face in faces])))
    assert float(expected.std(dim=0).mean()) > 0.1
    torch.testing.assert_close(exported, expected, atol=1e-4, rtol=0)

    parquet = tmp_path / "test.parquet"
    labels = [CLASSES[i % 8] for i in range(len(files))]
    pq.write_table(pa.table({"image": [file.read_bytes() for file in files], "label": labels}), parquet)
    evaluated = predict(loaded, face_batches(loaded, load_fer("schematic", parquet, "test")), torch.device("cpu"))
    torch.testing.assert_close(evaluated.logits, expected, atol=1e-4, rtol=0)

    predictions = Predictor(student, batch_size=7)(files)
    assert list(predictions[0].probabilities) == list(CLASSES)
    log_p = torch.tensor([list(prediction.probabilities.values()) for prediction in predictions]).log()
    torch.testing.assert_close(log_p, expected.log_softmax(dim=1), atol=1e-4, rtol=0)


def test_images_for_a_student_of_an_own_loop_are_prepared_as_set_input_describes(tmp_path: Path) -> None:
    model = timm.create_model("test_resnet", num_classes=8).eval()
    set_input(model, 40, (0.1, 0.2, 0.3), 0.3)
    face = draw_face("anger", seed=2, image_size=40)
    prediction = Predictor(save_student(model, tmp_path / "student"))(face)
    pixels = torch.from_numpy(np.array(face.convert("RGB"))).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        expected = model((pixels - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / 0.3).softmax(1)[0]
    torch.testing.assert_close(torch.tensor(list(prediction.probabilities.values())), expected)
    assert prediction.label == CLASSES[int(expected.argmax())]
    for values, message in (
        ((40, (0.5, 0.5), 0.25), r"mean must be one number or 3, one a channel, got \[0.5, 0.5\]"),
        ((40, 0.5, 0.0), r"std must be above 0 to 1, of pixels in \[0, 1\], got \[0.0, 0.0, 0.0\]"),
        ((40, 127.0, 0.25), "mean must be from 0 to 1"),
        ((40, float("nan"), 0.25), "mean must be from 0 to 1"),
        ((0, 0.5, 0.25), "image_size must be a side in pixels, got 0"),
    ):
        with pytest.raises(InputError, match=message):
            set_input(model, *values)


def test_one_image_gets_one_prediction_whatever_its_form_and_batch(
    student: Path, predictor: Predictor, tmp_path: Path
) -> None:
    face = draw_face("happiness", seed=1).convert("RGB")
    face.save(tmp_path / "face.png")
    expected = predictor(face)
    grey, colour = np.asarray(face.convert("L")), np.asarray(face)
    forms = [
        str(tmp_path / "face.png"),
        tmp_path / "face.png",
        face.convert("RGBA"),
        colour,
        np.asarray(face.convert("RGBA")),
        grey,
        grey.astype(np.uint16) << 8,
        colour.astype(np.uint16) << 8,
    ]
    for prediction in (*map(predictor, forms), *Predictor(student, batch_size=3)(forms)):
        assert prediction.label == expected.label
        assert prediction.probabilities == pytest.approx(expected.probabilities, abs=1e-5)
    assert predictor([]) == []


@pytest.mark.parametrize(
    "value",
    [
        None,
        3,
        b"bytes",
        [None],
        [b"bytes"],
        np.zeros((2, 3, 4, 5), np.uint8),
        np.zeros(2304, np.uint8),
        np.zeros((4, 4)),
        [[]],
    ],
)
def test_what_is_no_image_is_refused_in_one_line(predictor: Predictor, value: Any) -> None:
    with pytest.raises(InputError, match="expected a file, a PIL image, a uint8 or uint16 array") as refused:
        predictor(value)
    assert "\n" not in str(refused.value)


def test_a_file_of_a_format_that_may_run_a_program_is_never_opened(
    student: Path, tmp_path: Path, ngd: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_, **__: pytest.fail("Ghostscript was called"))
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 48 48\n%%EndComments\nshowpage\n%%EOF\n"
    (tmp_path / "face.png").write_bytes(eps)
    pq.write_table(pa.table({"image": [eps], "label": ["anger"]}), tmp_path / "test.parquet")
    for command in (
        ("predict", str(student), str(tmp_path / "face.png")),
        ("evaluate", str(student), "--data", f"schematic={tmp_path / 'test.parquet'}"),
    ):
        done = ngd(*command)
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
    table = pa.table({"image": [(tmp_path / "large.png").read_bytes()], "label": ["anger"]})
    pq.write_table(table, tmp_path / "test.parquet")
    spec = f"schematic={tmp_path / 'test.parquet'}"
    assert "more than 0.002 megapixels" in ngd("evaluate", str(student), "--data", spec).stderr
    assert ngd("evaluate", str(student), "--data", f"{spec},max_megapixels=0.0025").returncode == 0
    assert ngd("predict", str(student), str(tmp_path / "large.png")).returncode == 0


def test_an_image_of_no_size_is_refused(predictor: Predictor) -> None:
    with pytest.raises(InputError, match="got one of 0 x 0 px"):
        predictor(Image.new("RGB", (0, 0)))


def test_a_colour_student_takes_grey_and_transparent_images(tmp_path: Path) -> None:
    model = create_student(StudentConfig(backbone="test_resnet", image_size=32, in_chans=3), 8)
    predictor = Predictor(save_student(model, tmp_path / "student"))
    face = draw_face("happiness", seed=1)
    assert len(predictor([face.convert("L"), face.convert("RGBA"), face.convert("P")])) == 3


def test_the_command_prints_lines_with_notes_or_json_and_writes_annotated_images(
    student: Path, images: Path, tmp_path: Path, ngd: Callable[..., Any]
) -> None:
    done = ngd("predict", str(student), str(images), "--crops", "--annotate", str(tmp_path / "annotated"))
    assert done.returncode == 0, done.stderr
    lines = dict(zip(("a.png", "tiny.png", "wide.jpg"), done.stdout.strip().split("\n"), strict=True))
    assert all(name in line for name, line in lines.items())
    assert "(" not in lines["a.png"]
    assert re.search(r"; valence [+-]0\.\d\d, arousal [+-]0\.\d\d", lines["a.png"])
    assert "tiny (16 x 16 px)" in lines["tiny.png"]
    assert "far from square (300 x 100 px)" in lines["wide.jpg"]
    (photo,) = json.loads(ngd("predict", str(student), str(images / "a.png"), "--json", "--crops").stdout)
    assert photo["source"] == str(images / "a.png")
    (prediction,) = photo["faces"]
    assert prediction["label"] in CLASSES
    assert (prediction["box"], prediction["score"]) == (None, None)
    assert sum(prediction["probabilities"].values()) == pytest.approx(1, abs=1e-4)
    written = sorted((tmp_path / "annotated").iterdir())
    assert [p.name for p in written] == ["1-a.png", "2-tiny.png", "3-wide.png"]
    for path in written:
        with Image.open(path) as image:
            assert image.width > 500


def test_a_long_file_name_costs_no_annotated_image(student: Path, tmp_path: Path, ngd: Callable[..., Any]) -> None:
    (tmp_path / "images").mkdir()
    draw_face("fear", seed=1, image_size=48).save(tmp_path / "images" / f"{'ä' * 120}.png")
    done = ngd("predict", str(student), str(tmp_path / "images"), "--crops", "--annotate", str(tmp_path / "drawn"))
    assert done.returncode == 0, done.stderr
    assert [p.name for p in (tmp_path / "drawn").iterdir()] == [f"1-{'ä' * 100}.png"]


def test_a_first_argument_that_is_no_student_is_an_image(student: Path, images: Path) -> None:
    one, folder = str(images / "a.png"), str(images)
    assert student_and_images([str(student), one]) == (str(student), [one])
    assert student_and_images([one, folder]) == (None, [one, folder])
    assert student_and_images([folder]) == (None, [folder])
    assert student_and_images(["user/student", one]) == ("user/student", [one])
    for arguments in (["gone/face.png"], ["gone/face.png", one], ["gone/clip.MP4", one]):
        assert student_and_images(arguments) == (None, arguments)
    (images / "student").mkdir()
    assert student_and_images([folder]) == (None, [folder])


def test_without_a_student_the_newest_bundled_one_predicts_and_needs_no_network(
    images: Path, monkeypatch: pytest.MonkeyPatch, ngd: Callable[..., Any]
) -> None:
    monkeypatch.setattr("socket.socket.connect", None)
    printed = json.loads(ngd("predict", str(images / "a.png"), "--json", "--crops").stdout)
    expected = Predictor(shipped_student())(images / "a.png").as_dict()
    assert printed == [{"source": str(images / "a.png"), "faces": [expected]}]
    assert load_student().pretrained_cfg["label_names"] == list(CLASSES)
    with pytest.raises(InputError, match=r"student version 'student-ferplus-v0'.*student-ferplus-v1"):
        load_student("student-ferplus-v0")


def test_a_folder_of_a_bundled_students_name_is_opened_as_a_path_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(shipped_student()).mkdir()
    assert student_folder(shipped_student()).is_absolute()
    with pytest.raises(InputError, match="neither a run directory"):
        student_folder(f"./{shipped_student()}")


def test_a_wrapped_name_is_no_students_backbone() -> None:
    with pytest.raises(InputError, match="ngd_resnet18 is the wrapped resnet18; give resnet18"):
        create_student(StudentConfig(backbone="ngd_resnet18"), 8)


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
        with pytest.raises(InputError, match=r"which makes a model of 9 classes") as refused:
            opened()
        assert "\n" not in str(refused.value)
    (folder / "config.json").write_text(json.dumps(config))
    assert wrap(f"local-dir:{folder}", 5, pretrained=True, in_chans=3).num_classes == 5  # adapted on purpose


def test_a_student_alone_or_an_image_that_cannot_be_read_is_one_line_and_nothing_is_written(
    student: Path, predictor: Predictor, images: Path, tmp_path: Path, ngd: Callable[..., Any]
) -> None:
    (images / "broken.png").write_bytes((images / "a.png").read_bytes()[:200])
    (tmp_path / "empty").mkdir()
    annotated = tmp_path / "annotated"
    for arguments, line in (
        ((), "after it, or folders of them"),
        ((images / "broken.png", "--annotate", annotated), "broken.png is not a readable image"),
        ((images / "broken.png", images / "broken.png", "--annotate", annotated), "none of the 2 images could be read"),
        ((images / "broken.png", "--save-faces", annotated), "broken.png is not a readable image"),
        ((images, "--annotate", annotated, "--save-faces", annotated / "in"), "lie in each other; give two folders"),
        ((images, "--annotate", annotated / "in", "--save-faces", annotated), "lie in each other; give two folders"),
        ((images / "a.png", "--csv", "--json"), "--csv and --json exclude each other"),
        ((tmp_path / "none.png",), "no image"),
        ((tmp_path / "empty",), "holds no images"),
    ):
        done = ngd("predict", str(student), *map(str, arguments))
        assert (done.returncode, done.stdout) == (2, "")
        assert line in done.stderr.strip().split("\n")[-1]
    assert not annotated.exists()
    annotated.mkdir()
    (annotated / "mine.txt").write_text("mine")
    assert "not empty" in ngd("predict", str(images), "--annotate", str(annotated)).stderr


# ------------------------------------------------------------------ photographs


@pytest.fixture(scope="module")
def astronaut() -> Image.Image:
    """NASA's portrait of Eileen Collins, 512 px, smiling; public domain."""
    return Image.fromarray(pytest.importorskip("skimage.data").astronaut())


@pytest.fixture(scope="module")
def bundled() -> Predictor:
    pytest.importorskip("cv2")
    return Predictor()


def test_a_photograph_of_a_smile_has_one_happy_face_upright_or_turned_by_exif(
    astronaut: Image.Image, bundled: Predictor, tmp_path: Path
) -> None:
    (face,) = bundled.photo(astronaut)
    assert face.label == "happiness"
    assert face.box == pytest.approx((178, 63, 90, 113), abs=8)
    assert face.score is not None
    assert face.score > 0.8
    exif = Image.Exif()
    exif[0x0112] = 6
    astronaut.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    (turned,) = bundled.photo(tmp_path / "turned.jpg")
    assert (turned.label, turned.box) == ("happiness", pytest.approx(face.box, abs=3))
    assert face.valence == pytest.approx(0.76, abs=0.05)
    assert face.arousal == pytest.approx(0.48, abs=0.05)


def test_three_faces_of_one_image_come_largest_first_and_small_ones_in_a_large_image_are_found(
    astronaut: Image.Image, bundled: Predictor
) -> None:
    head = astronaut.crop((130, 20, 320, 210))  # with a face of 113 px
    image, x = Image.new("RGB", (1000, 500), (90, 120, 90)), 20
    for side in (60, 240, 120):
        scaled = head.resize((round(190 * side / 113),) * 2)
        image.paste(scaled, (x, 40))
        x += scaled.width + 30
    faces = bundled.photo(image)
    assert [face.label for face in faces] == ["happiness"] * 3
    assert [face.box[3] for face in faces if face.box] == pytest.approx([240, 120, 60], rel=0.15)
    large = Image.new("RGB", (4000, 3000), (90, 120, 90))
    large.paste(head.resize((60, 60)), (3000, 1500))  # 35 px, and 6 where the image is 640 px wide
    (small,) = bundled.photo(large)
    assert small.box == pytest.approx((3015, 1513, 28, 36), abs=6)
    large.paste(astronaut.resize((2048, 2048)), (0, 0))
    assert len(bundled.photo(large)) == 1
    thorough = Predictor(detector=FaceDetector(small_faces=True))
    assert [round(face.box[2] / 10) for face in thorough.photo(large) if face.box] == [35, 3]


def test_an_image_without_a_face_has_no_label(bundled: Predictor, tmp_path: Path, ngd: Callable[..., Any]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    assert bundled.photo(noise) == []
    Image.fromarray(noise).save(tmp_path / "noise.png")
    assert ngd("predict", str(tmp_path / "noise.png")).stdout.endswith("noise.png  no face found\n")
    assert json.loads(ngd("predict", str(tmp_path / "noise.png"), "--json").stdout)[0]["faces"] == []


def test_an_image_that_one_face_fills_is_taken_as_it_is(astronaut: Image.Image, bundled: Predictor) -> None:
    crop = astronaut.crop((160, 55, 290, 185))
    (face,) = bundled.photo(crop)
    assert (face.box, face.notes) == (None, ("taken as a face crop",))
    assert face.probabilities == bundled(crop).probabilities
    (drawn,) = bundled.photo(draw_face("fear", seed=1, image_size=48))
    assert "taken as a face crop" in drawn.notes


def test_a_face_is_cropped_to_the_square_that_students_are_trained_on(astronaut: Image.Image) -> None:
    crop = crop_face(astronaut, Face((100.0, 50.0, 80.0, 100.0), 0.9))
    assert crop.tobytes() == astronaut.crop((94, 54, 187, 147)).tobytes()
    beyond = np.asarray(crop_face(astronaut, Face((-40.0, 10.0, 100.0, 100.0), 0.9)))
    assert beyond.shape == (93, 93, 3)
    assert not beyond[:, :30].any()


def test_saved_faces_are_the_crops_that_were_predicted(
    astronaut: Image.Image, bundled: Predictor, tmp_path: Path, ngd: Callable[..., Any]
) -> None:
    photos, exif = tmp_path / "photos", Image.Exif()
    photos.mkdir()
    exif[0x0112] = 6
    astronaut.transpose(Image.Transpose.ROTATE_90).save(photos / "b.jpg", exif=exif, quality=95)
    draw_face("fear", seed=1, image_size=48).save(photos / "a.png")  # one face fills it
    Image.new("RGB", (256, 256)).save(photos / "c.png")
    pair = Image.new("RGB", (1024, 512))
    pair.paste(astronaut, (0, 0))
    pair.paste(astronaut.resize((320, 320)), (600, 50))
    pair.save(photos / "d.png")
    done = ngd("predict", str(photos), "--json", "--save-faces", str(tmp_path / "faces"))
    assert done.returncode == 0, done.stderr
    predicted = [face["probabilities"] for photo in json.loads(done.stdout) for face in photo["faces"]]
    saved = sorted((tmp_path / "faces").iterdir())
    assert [path.name for path in saved] == ["1-a-1.png", "2-b-1.png", "4-d-1.png", "4-d-2.png"]
    for crop, probabilities in zip(bundled(saved), predicted, strict=True):
        assert crop.probabilities == pytest.approx(probabilities, abs=1e-5)


def test_the_crop_rule_and_the_detector_may_be_other_ones(astronaut: Image.Image, tmp_path: Path) -> None:
    model = create_student(StudentConfig(backbone="test_resnet", image_size=32), 8)
    model.ngd_timm = {"face_crop": 2.0}
    predictor = Predictor(
        save_student(model, tmp_path / "student"), detector=lambda image: [Face((200.0, 100.0, 50.0, 50.0), 1.0)]
    )
    (face,) = predictor.photo(astronaut)
    assert face.box == (200.0, 100.0, 50.0, 50.0)
    wide = astronaut.crop((175, 75, 275, 175))
    assert face.probabilities == pytest.approx(predictor(wide).probabilities, abs=1e-6)


def test_the_prior_of_a_prediction_is_uniform_where_training_s_is_known_and_may_be_another(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = create_student(StudentConfig(backbone="test_resnet", image_size=32), 8)
    plain = Predictor(save_student(model, tmp_path / "plain"))(draw_face("fear", seed=1))
    counts = [40, 30, 9, 8, 7, 1, 3, 2]
    folder = save_student(model, tmp_path / "student", counts=counts)
    given = dict.fromkeys(CLASSES, 0.1) | {"fear": 0.3}
    predictions = [Predictor(folder, prior=p)(draw_face("fear", seed=1)) for p in (None, "training", given)]
    assert [p.prior for p in (plain, *predictions)] == ["training", "uniform", "training", "given"]
    uniform, training, other = (np.array(list(p.probabilities.values())) for p in predictions)
    assert training.tolist() == list(plain.probabilities.values())
    for got, weights in ((uniform, 1 / np.array(counts)), (other, np.array(list(given.values())) / counts)):
        np.testing.assert_allclose(got, training * weights / (training * weights).sum(), rtol=1e-4)
    assert predictions[0].as_dict()["prior"] == "uniform"


def test_views_average_the_logits_of_mirror_images_and_of_three_crops(student: Path, astronaut: Image.Image) -> None:
    box = Face((200.0, 100.0, 80.0, 100.0), 1.0)
    one, two, six = (Predictor(student, views=views, detector=lambda image: [box], batch_size=2) for views in (1, 2, 6))

    def logits(image: Image.Image) -> np.ndarray:
        return np.log(list(one(image).probabilities.values()))

    def averaged(crops: list[Image.Image]) -> np.ndarray:
        both = [np.exp(np.mean([logits(view) for c in crops for view in (c, c.transpose(0))], axis=0))]
        return both[0] / both[0].sum()

    crops = [crop_face(astronaut, box, scale) for scale in (0.86, 0.93, 1.0)]
    for predicted, expected in (
        (two(crops[1]), averaged(crops[1:2])),
        (six(crops[1]), averaged(crops[1:2])),  # a crop has no frame beyond it
        (two.photo(astronaut)[0], averaged(crops[1:2])),
        (six.photo(astronaut)[0], averaged(crops)),
    ):
        np.testing.assert_allclose(list(predicted.probabilities.values()), expected, rtol=1e-3)


def test_one_bad_file_among_many_costs_its_own_line_and_exit_code_1(
    astronaut: Image.Image, tmp_path: Path, ngd: Callable[..., Any]
) -> None:
    pytest.importorskip("cv2")
    folder = tmp_path / "photos"
    folder.mkdir()
    small = astronaut.resize((256, 256))
    for i in range(4):
        small.save(folder / f"{i}.jpg")
    small.convert("CMYK").save(folder / "cmyk.jpg")
    small.save(folder / "moving.gif", save_all=True, append_images=[small.rotate(90)])
    (folder / "empty.png").write_bytes(b"")
    (folder / "cut.jpg").write_bytes((folder / "0.jpg").read_bytes()[:900])
    (folder / "paper.png").write_bytes(b"%PDF-1.7")
    Image.new("RGB", (1, 1)).save(folder / "dot.png")
    done = ngd("predict", str(folder), "--csv")
    assert done.returncode == 1
    assert sorted(re.findall(r"(\w+)\.\w+ is not a readable image", done.stderr)) == ["cut", "empty", "paper"]
    rows = list(csv.DictReader(done.stdout.splitlines()))
    assert [row["label"] for row in rows if "dot" not in row["source"]] == ["happiness"] * 6
    assert [row["notes"] for row in rows if "moving" in row["source"]] == ["the first of 2 frames"]


def test_a_photograph_without_a_face_has_a_line_and_the_csv_its_names(tmp_path: Path, ngd: Callable[..., Any]) -> None:
    pytest.importorskip("cv2")
    Image.new("RGB", (300, 300), "white").save(tmp_path / "wall.png")
    assert "no face found" in ngd("predict", str(tmp_path / "wall.png")).stdout
    names = ngd("predict", str(tmp_path / "wall.png"), "--csv").stdout
    assert re.fullmatch("source,face,x,y,.*,neutral,happiness,.*,notes\n", names)


def test_a_line_of_pixels_and_a_colour_space_without_a_conversion_are_one_line_each(
    student: Path, tmp_path: Path, ngd: Callable[..., Any]
) -> None:
    Image.new("L", (1, 1_500_000)).save(tmp_path / "line.png")
    Image.fromarray(np.full((64, 64, 3), 90, dtype=np.uint8)).convert("LAB").save(tmp_path / "lab.tif")
    done = ngd("predict", str(student), "--crops", str(tmp_path / "line.png"), str(tmp_path / "lab.tif"))
    assert (done.returncode, done.stdout) == (2, "")
    assert "line.png is not a usable image (1 x 1500000 px can't be brought to" in done.stderr
    assert "lab.tif is not a usable image" in done.stderr


def test_what_files_say_moves_no_cursor(ngd: Callable[..., Any], tmp_path: Path) -> None:
    model = create_student(StudentConfig(backbone="test_resnet", image_size=32), 1)
    classes = ["fear\x1b]0;title\x07"]  # of a student with one class
    draw_face("fear", seed=1).save(tmp_path / "a\x1b[2J.png")
    save_student(model, tmp_path / "student", classes)
    done = ngd("predict", str(tmp_path / "student"), "--crops", str(tmp_path / "a\x1b[2J.png"))
    assert done.returncode == 0
    assert done.stdout.rstrip().endswith("a\\x1b[2J.png  fear\\x1b]0;title\\x07 100 %")


def test_the_csv_in_a_file_has_names_as_they_are(student: Path, tmp_path: Path, ngd: Callable[..., Any]) -> None:
    name = "Bildschirmfoto\u202f\u200dé.png"
    draw_face("fear", seed=1).save(tmp_path / name)
    done = ngd("predict", str(student), "--crops", "--csv", str(tmp_path / name))
    (row,) = csv.DictReader(done.stdout.splitlines())
    assert Path(row["source"]).name == name


def test_without_opencv_images_are_crops_and_a_line_says_how_to_get_the_detector(
    images: Path,
    student: Path,
    ngd: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "cv2" else found(name))
    done = ngd("predict", str(student), str(images / "a.png"), "--json")
    assert "pip install 'ngd-timm[faces]'" in caplog.text
    assert json.loads(done.stdout)[0]["faces"][0]["box"] is None
    with pytest.raises(InputError, match="finding faces needs OpenCV"):
        FaceDetector()


@pytest.mark.parametrize("left", [1720, 1990, 2030])
def test_a_small_face_in_a_large_photograph_is_found_once_wherever_it_lies(
    astronaut: Image.Image, bundled: Predictor, left: int
) -> None:
    photo = Image.new("RGB", (2600, 900), (90, 120, 90))
    photo.paste(astronaut.crop((130, 20, 320, 210)).resize((60, 60)), (left, 400))
    (face,) = bundled.photo(photo)
    assert face.box == pytest.approx((left + 16, 414, 28, 33), abs=4)


def test_a_face_above_the_detectors_range_in_an_image_that_is_looked_at_smaller_is_found(
    astronaut: Image.Image, bundled: Predictor
) -> None:
    panorama = Image.new("RGB", (16000, 900), (90, 120, 90))
    panorama.paste(astronaut.crop((130, 20, 320, 210)).resize((850, 850)), (9000, 20))
    (face,) = bundled.photo(panorama)
    assert face.box is not None
    assert 350 < face.box[3] < 550


def test_a_folder_is_its_images_without_thumbnails_and_one_line_of_other_formats(
    images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in (
        "a.jpg",
        "below/b.PNG",
        "@eaDir/a.jpg/small.jpg",
        ".thumbs/a.jpg",
        "__MACOSX/a.jpg",
        "c.heic",
        "d.txt",
    ):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(b"")
    found = images_at([tmp_path / "photos", images / "a.png"])
    assert [path.name for path in found] == ["a.jpg", "b.PNG", "a.png"]
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path / 'photos'}: 1 images are left out (first: c.heic); save them as JPEG or PNG"
    ]


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.full((64, 64), 0.5, np.float32), "pixels of floats up to 1 where up to 255 are taken"),
        (np.full((64, 64), 200, np.int32), "pixels of 16 or 32 bits up to 255 where up to 65535 are taken"),
        (np.full((64, 64), 200, np.uint16), "pixels of 16 or 32 bits up to 255 where up to 65535 are taken"),
    ],
)
def test_pixels_of_another_scale_are_refused_and_not_taken_as_black(
    student: Path, tmp_path: Path, ngd: Callable[..., Any], pixels: np.ndarray, message: str
) -> None:
    Image.fromarray(pixels).save(tmp_path / "face.tif")
    done = ngd("predict", str(student), "--crops", str(tmp_path / "face.tif"))
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert to_mode(Image.fromarray(pixels * 0), "L").getextrema() == (0, 0)


def test_an_image_that_is_given_stays_as_it_is(bundled: Predictor, astronaut: Image.Image) -> None:
    turned = astronaut.copy()
    turned.getexif()[0x0112] = 6
    before = turned.tobytes(), turned.size
    for crops in (True, False):
        next(bundled.photos([turned], crops=crops))
        assert (turned.tobytes(), turned.size) == before


def test_the_threshold_of_a_faces_score_is_the_option_and_must_be_a_share(
    astronaut: Image.Image, tmp_path: Path, ngd: Callable[..., Any]
) -> None:
    pytest.importorskip("cv2")
    astronaut.save(tmp_path / "photo.png")
    command = ("predict", str(tmp_path / "photo.png"), "--json", "--threshold")
    found = [len(json.loads(ngd(*command, share).stdout)[0]["faces"]) for share in ("0.6", "0.99")]
    assert found == [1, 0]
    with pytest.raises(InputError, match=r"threshold of a face's score must lie in \[0, 1\], got 2"):
        FaceDetector(threshold=2)


def test_an_unreadable_exif_block_and_frames_cut_short_cost_no_other_file_its_line(
    tmp_path: Path, ngd: Callable[..., Any]
) -> None:
    face = draw_face("fear", seed=1, image_size=48)
    (tmp_path / "a").mkdir()
    face.save(tmp_path / "a" / "exif.jpg", dpi=(72, 72), exif=b"Exif\0\0" + bytes(8))
    face.save(whole := tmp_path / "whole.gif", save_all=True, append_images=[face.rotate(180)])
    content = whole.read_bytes()
    second = content.index(b"\x21\xf9", content.index(b"\x2c"))  # the extension before the second frame
    (tmp_path / "a" / "cut.gif").write_bytes(content[: second + 1])
    face.save(tmp_path / "a" / "whole.png")
    done = ngd("predict", str(tmp_path / "a"), "--crops", "--json")
    read = {Path(photo["source"]).name for photo in json.loads(done.stdout)}
    assert {"exif.jpg", "whole.png"} <= read
    assert done.returncode == (0 if "cut.gif" in read else 1)
    assert "cut.gif" in read or "cut.gif is not a usable image" in done.stderr


# ------------------------------------------------------------------ video


@pytest.fixture(scope="module")
def clip(astronaut: Image.Image, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seconds at 20 frames a second: a face drifts to the right, after one second a second one comes."""
    cv2 = pytest.importorskip("cv2")
    file = tmp_path_factory.mktemp("video") / "clip.mp4"
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter.fourcc(*"mp4v"), 20, (480, 320))
    head = astronaut.crop((130, 20, 320, 210))
    for i in range(60):
        frame = Image.new("RGB", (480, 320), (90, 120, 90))
        frame.paste(head, (i, 60))
        if i >= 20:
            frame.paste(head.resize((95, 95)), (350, 100))
        writer.write(np.ascontiguousarray(np.asarray(frame)[:, :, ::-1]))
    writer.release()
    return file


def test_a_videos_faces_are_tracked_and_written_a_row_each(clip: Path, tmp_path: Path, ngd: Callable[..., Any]) -> None:
    out, drawn = tmp_path / "out", tmp_path / "drawn.mp4"
    done = ngd("predict", str(clip), "--fps", "5", "--out", str(out), "--annotate", str(drawn))
    assert (done.returncode, done.stdout) == (0, f"{out}\n"), done.stderr
    assert sorted(p.name for p in out.iterdir()) == ["faces.csv", "timeline.png"]
    rows = list(csv.DictReader((out / "faces.csv").read_text().splitlines()))
    times = sorted({float(row["time"]) for row in rows})
    assert times == pytest.approx([i / 5 for i in range(15)])
    tracks = {track: [row for row in rows if row["track"] == track] for track in ("1", "2")}
    assert sum(map(len, tracks.values())) == len(rows)
    assert (len(tracks["1"]), len(tracks["2"])) == (15, 10)
    assert {row["label"] for row in rows} == {"happiness"}
    assert float(tracks["1"][-1]["x"]) - float(tracks["1"][0]["x"]) == pytest.approx(56, abs=10)
    import cv2

    video = cv2.VideoCapture(str(drawn))
    assert (video.get(cv2.CAP_PROP_FRAME_COUNT), video.get(cv2.CAP_PROP_FPS)) == (15, 5)


def test_an_annotated_video_is_as_long_as_the_video_whatever_rate_is_asked_for(
    clip: Path, bundled: Predictor, tmp_path: Path
) -> None:
    import cv2

    predict_video(bundled, clip, tmp_path / "out", fps=60, annotate=tmp_path / "drawn.mp4")
    video = cv2.VideoCapture(str(tmp_path / "drawn.mp4"))
    assert (video.get(cv2.CAP_PROP_FRAME_COUNT), video.get(cv2.CAP_PROP_FPS)) == (60, 20)


@pytest.mark.parametrize(
    ("stated", "rate", "fps", "expected"),
    [
        ([0.0, 0.1, 0.15, 0.9, 1.0, 1.25, 4.0], 1000.0, 5, [0.0, 0.9, 1.0, 1.25, 4.0]),
        ([0.0] * 7, 10.0, 5, [0.0, 0.2, 0.4, 0.6]),
        ([0.0] * 3, 0.0, 5, [0.0, 1.0, 2.0]),
        ([round(i / 30, 3) for i in range(60)], 30.0, 30, [round(i / 30, 3) for i in range(60)]),
        ([round(i / 60, 3) for i in range(60)], 60.0, 30, [round(i / 30, 3) for i in range(30)]),
    ],
    ids=["the rate varies", "no times", "neither times nor a rate", "times to the millisecond", "each second one"],
)
def test_frames_are_sampled_by_the_times_that_they_state(
    stated: list[float], rate: float, fps: float, expected: list[float], clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import cv2

    class Video:
        frame = -1

        def __init__(self, file: str) -> None:
            self.known = {cv2.CAP_PROP_FPS: rate, cv2.CAP_PROP_FRAME_COUNT: 0}

        def get(self, key: int) -> float:
            return 1000 * stated[self.frame] if key == cv2.CAP_PROP_POS_MSEC else self.known[key]

        def grab(self) -> bool:
            self.frame += 1
            return self.frame < len(stated)

        def retrieve(self) -> tuple[bool, np.ndarray]:
            return True, np.zeros((4, 4, 3), np.uint8)

        def release(self) -> None: ...

    monkeypatch.setattr(cv2, "VideoCapture", Video)
    assert [frame.time for frame in _frames(clip, fps)] == pytest.approx(expected)


def test_the_label_of_a_face_that_fills_the_frame_is_inside_it(
    astronaut: Image.Image, bundled: Predictor, tmp_path: Path
) -> None:
    import cv2

    frame = astronaut.crop((161, 57, 285, 181)).resize((320, 320)).convert("RGB")
    writer = cv2.VideoWriter(str(tmp_path / "near.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 5, frame.size)
    for _ in range(3):
        writer.write(np.ascontiguousarray(np.asarray(frame)[:, :, ::-1]))
    writer.release()
    predict_video(bundled, tmp_path / "near.mp4", tmp_path / "out", annotate=tmp_path / "drawn.mp4")
    (row, *_) = csv.DictReader((tmp_path / "out" / "faces.csv").read_text().splitlines())
    assert row["notes"] == "taken as a face crop"
    assert (row["x"], row["y"]) == ("0.0", "0.0")
    pair = [cv2.VideoCapture(str(tmp_path / name)).read()[1].astype(int) for name in ("near.mp4", "drawn.mp4")]
    changed = np.abs(pair[0] - pair[1]).max(axis=2) > 80
    assert changed[5:24, 5:150].sum() > 200, "the label"


def test_what_is_no_video_or_has_no_place_to_go_is_one_line(
    clip: Path, images: Path, tmp_path: Path, ngd: Callable[..., Any]
) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "cut.mp4").write_bytes(clip.read_bytes()[:2000])
    (tmp_path / "empty.mp4").write_bytes(b"")
    out = str(tmp_path / "out")
    for arguments, message in (
        ((tmp_path / "text.mp4", "--out", out), "text.mp4 is not a video with frames"),
        ((tmp_path / "cut.mp4", "--out", out), "cut.mp4 is not a video with frames"),
        ((tmp_path / "empty.mp4", "--out", out), "empty.mp4 is not a video with frames"),
        ((tmp_path / "gone.mp4", "--out", out), "no video"),
        ((clip,), "ngd predict clip.mp4 --out DIR"),
        ((clip, images, "--out", out), "ngd predict clip.mp4 --out DIR"),
        ((images, "--out", out), "ngd predict clip.mp4 --out DIR"),
        *(
            ((clip, "--out", out, *option), "--crops, --save-faces, --json and --csv are of images")
            for option in (("--crops",), ("--json",), ("--save-faces", tmp_path / "faces"))
        ),
        *(((clip, "--out", out, "--fps", fps), "--fps must be a number above 0") for fps in ("0", "nan", "inf")),
        ((clip, "--out", images), "not empty"),
        *(
            ((clip, "--out", out, "--annotate", place), "is no place for the video; give an .mp4 that is neither")
            for place in (f"{out}/drawn.mp4", clip, tmp_path / "drawn")
        ),
        ((clip, "--out", f"{out}.mp4", "--annotate", f"{out}.mp4"), "is no place for the video"),
        ((clip, "--out", out, "--annotate", tmp_path / "text.mp4" / "a.mp4"), "can't be written"),
    ):
        done = ngd("predict", *map(str, arguments))
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), arguments
        assert message in done.stderr
    assert not Path(out).exists()
