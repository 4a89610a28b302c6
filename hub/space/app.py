"""A Gradio Space: the faces in a photograph, the probabilities of their expressions, and their valence and arousal.

Run it here: pip install -r requirements.txt && python app.py
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image, UnidentifiedImageError

from ngd_timm import Predictor
from ngd_timm.core.citations import FORBIDDEN
from ngd_timm.core.errors import InputError
from ngd_timm.core.files import sha256_file
from ngd_timm.core.images import open_image, to_mode
from ngd_timm.core.plots import png_figure
from ngd_timm.predict.annotate import draw_bars, draw_boxes, draw_plane
from ngd_timm.report.page import to_png_uri

TITLE = "# Expressions of faces\nFind the faces in a photograph and predict their expressions."
TERMS = f"""**What it must not be used for.** A shown expression is not a felt emotion, and the labels are what
annotators saw. Do not use this {FORBIDDEN}.

Photographs are sent to the computer that runs this page, which deletes them a minute after its answer.
"""
LARGEST_FILE = "20mb"
LARGEST_IMAGE = 50  # megapixels
KEPT = 60  # seconds after its answer
WAITING = 20  # photographs; one more is refused with "Queue is full"
EXAMPLES = sorted(str(file) for file in (Path(__file__).parent / "examples").iterdir())
Image.MAX_IMAGE_PIXELS = None  # `predict` says what is too large, where Gradio would say "Error"
SHIPPED = {sha256_file(file) for file in EXAMPLES}

predictor = Predictor()


def predict(file: str | None) -> list[str]:
    """The annotated image, the bars and the plane of an image file, and the same in words; the file goes soon after."""
    if file is None:
        return ["", "", "", ""]
    sent = os.stat(file).st_ctime_ns
    try:
        with Image.open(file) as image:
            if image.width * image.height > LARGEST_IMAGE * 1e6:
                raise InputError(f"{file} has more than {LARGEST_IMAGE} megapixels; send a smaller one")
        faces = predictor.photo(file)
        photo = to_mode(open_image(file), "RGB")
    except UnidentifiedImageError:
        raise gr.Error(f"{Path(file).name} is not a readable image") from None
    except InputError as error:
        raise gr.Error(str(error).replace(file, Path(file).name)) from None
    finally:
        if sha256_file(file) not in SHIPPED:
            threading.Timer(KEPT, delete, [file, sent]).start()
    height = min(8.0, max(2.0, 5 * photo.height / photo.width))
    drawn = draw("Faces", (5, height), lambda axes: draw_boxes(axes, photo, faces))
    if not faces:
        return [drawn, "", "", "No face found."]
    bars = draw("Probabilities", (4, 4), lambda axes: draw_bars(axes, faces))
    plane = draw("Valence and arousal", (4, 4), lambda axes: draw_plane(axes, faces))
    lines = [f"{i}. {words(face)}" for i, face in enumerate(faces, start=1)]
    return [drawn, bars, plane, "\n".join(lines)]


def delete(file: str, sent: int) -> None:
    """Delete a photograph, unless it was sent again since, which has a deletion of its own after its answer."""
    with contextlib.suppress(FileNotFoundError):
        if os.stat(file).st_ctime_ns == sent:
            os.unlink(file)


def words(face: Any) -> str:
    """A prediction as the shell prints it."""
    plane = "" if face.valence is None else f"; valence {face.valence:+.2f}, arousal {face.arousal:+.2f}"
    notes = "".join(f" ({note})" for note in face.notes)
    return f"**{face.label}** {100 * face.probabilities[face.label]:.0f} %{plane}{notes}"


def draw(title: str, size: tuple[float, float], function: Callable[[Any], None]) -> str:
    """What a function draws on axes of so many inches, as an <img> that holds its pixels: the server keeps no file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "figure.png"
        with png_figure(path, size) as figure:
            function(figure.add_subplot())
        with Image.open(path) as image:
            return f'<img alt="{title}" src="{to_png_uri(image)}" style="width: 100%">'


# what nobody got an answer to, such as a text that is named .jpg, is deleted after five minutes
with gr.Blocks(title="Expressions of faces", delete_cache=(60, 300), analytics_enabled=False) as demo:
    gr.Markdown(TITLE)
    with gr.Row():
        with gr.Column():
            sources = ["upload", "webcam", "clipboard"]
            photo = gr.Image(type="filepath", image_mode=None, label="Photograph", sources=sources)
            gr.Examples(EXAMPLES, photo, label="Examples: drawn faces, and NASA's portrait of Eileen Collins")
        with gr.Column():
            boxes = gr.HTML()
            text = gr.Markdown(elem_id="answer", container=False)
    with gr.Row():
        bars = gr.HTML()
        plane = gr.HTML()
    gr.Markdown(TERMS)
    photo.change(predict, photo, [boxes, bars, plane, text], api_name="predict")


def launch() -> None:
    """Serve the page: one photograph at a time, and nothing larger than is said above."""
    demo.queue(max_size=WAITING, default_concurrency_limit=1).launch(max_file_size=LARGEST_FILE)


if __name__ == "__main__":
    launch()
