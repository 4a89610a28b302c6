"""A Gradio Space: the faces in a photograph, the probabilities of their expressions, and their valence and arousal.

Run it here: pip install -r requirements.txt && python app.py
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from ngd_timm import Predictor
from ngd_timm.core.citations import FORBIDDEN
from ngd_timm.core.errors import InputError
from ngd_timm.core.images import open_image, to_mode
from ngd_timm.core.plots import png_figure
from ngd_timm.predict.annotate import draw_bars, draw_boxes, draw_plane

TITLE = "# Expressions of faces\nFind every face in a photograph and predict its expression."
TERMS = f"""**What it must not be used for.** A shown expression is not a felt emotion, and the labels are what
annotators saw. Do not use this {FORBIDDEN}.

Photographs are sent to the computer that runs this page, and are deleted there when they are an hour old.
"""
EXAMPLES = sorted(str(file) for file in (Path(__file__).parent / "examples").iterdir())

predictor = Predictor()


def predict(file: str | None) -> list[Any]:
    """The annotated image, the bars and the plane of an image file, and the same in words."""
    if file is None:
        return [None, None, None, ""]
    try:
        faces = predictor.photo(file)
    except InputError as error:
        raise gr.Error(str(error).replace(file, Path(file).name)) from None
    image = to_mode(open_image(file), "RGB")
    height = min(8.0, max(2.0, 5 * image.height / image.width))
    drawn = draw((5, height), lambda axes: draw_boxes(axes, image, faces))
    if not faces:
        return [drawn, None, None, "No face found."]
    bars = draw((4, 4), lambda axes: draw_bars(axes, faces))
    plane = draw((4, 4), lambda axes: draw_plane(axes, faces))
    lines = [f"{i}. {words(face)}" for i, face in enumerate(faces, start=1)]
    return [drawn, bars, plane, "\n".join(lines)]


def words(face: Any) -> str:
    """A prediction as the shell prints it."""
    plane = "" if face.valence is None else f"; valence {face.valence:+.2f}, arousal {face.arousal:+.2f}"
    notes = "".join(f" ({note})" for note in face.notes)
    return f"**{face.label}** {100 * face.probabilities[face.label]:.0f} %{plane}{notes}"


def draw(size: tuple[float, float], function: Callable[[Any], None]) -> Image.Image:
    """What a function draws on axes of so many inches."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "figure.png"
        with png_figure(path, size) as figure:
            function(figure.add_subplot())
        with Image.open(path) as image:
            return image.convert("RGB")


# every ten minutes uploads that are an hour old are deleted
with gr.Blocks(title="Expressions of faces", delete_cache=(600, 3600), analytics_enabled=False) as demo:
    gr.Markdown(TITLE)
    with gr.Row():
        with gr.Column():
            photo = gr.Image(type="filepath", label="Photograph", sources=["upload", "webcam", "clipboard"])
            gr.Examples(EXAMPLES, photo, label="Examples: drawn faces, and NASA's portrait of Eileen Collins")
        with gr.Column():
            boxes = gr.Image(label="Faces", show_label=False, interactive=False, buttons=["fullscreen", "download"])
            text = gr.Markdown(elem_id="answer", container=False)
    with gr.Row():
        bars = gr.Image(label="Probabilities", show_label=False, interactive=False, buttons=["fullscreen"])
        plane = gr.Image(label="Valence and arousal", show_label=False, interactive=False, buttons=["fullscreen"])
    gr.Markdown(TERMS)
    photo.change(predict, photo, [boxes, bars, plane, text], api_name="predict")

if __name__ == "__main__":
    demo.launch()
