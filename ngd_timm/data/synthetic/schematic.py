"""Schematic faces: drawn by a program, in two domains, so that the demo and the tests need no photographs."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from ngd_timm.core.affect import CLASSES, anchors
from ngd_timm.core.errors import InputError, choices
from ngd_timm.core.files import atomic_path

DOMAINS = ("pencil", "paint")

_SUPERSAMPLE = 3
_VA_SPREAD = 0.1
Colour = tuple[int, int, int]


@dataclass(frozen=True)
class _Action:
    """Movements away from a face at rest, in the spirit of facial action units; 1 is a full movement."""

    inner: float = 0.0  # brows raised at the inner end
    outer: float = 0.0
    together: float = 0.0  # brows
    eyes: float = 0.0  # opened
    smile: float = 0.0  # corners of the mouth up
    open: float = 0.0
    wide: float = 0.0
    one_side: float = 0.0  # one corner of the mouth pulled up
    wrinkle: float = 0.0  # upper lip and nose
    cheek: float = 0.0  # raised, lower lids tightened


# After the action units that Ekman and Friesen's Facial Action Coding System lists for the basic emotions.
_ACTIONS = {
    "neutral": _Action(),
    "happiness": _Action(smile=1.0, open=0.3, wide=0.5, cheek=1.0, eyes=-0.25, outer=0.1),
    "surprise": _Action(inner=1.0, outer=1.0, eyes=0.75, open=1.0, wide=-0.55),
    "sadness": _Action(inner=0.95, outer=-0.6, together=0.3, eyes=-0.35, smile=-0.9, wide=-0.15),
    "anger": _Action(inner=-1.0, outer=0.35, together=0.9, eyes=-0.1, smile=-0.35, wide=-0.2, cheek=0.2),
    "disgust": _Action(
        inner=-0.55, outer=-0.35, together=0.4, eyes=-0.55, smile=-0.5, open=0.1, wrinkle=1.0, cheek=0.5
    ),
    "fear": _Action(inner=1.0, outer=0.15, together=0.8, eyes=0.65, open=0.4, wide=0.55, smile=-0.45),
    "contempt": _Action(one_side=1.0, eyes=-0.2, outer=0.15, inner=-0.1),
}


def draw_face(
    expression: str,
    valence_arousal: Sequence[float] | None = None,
    *,
    domain: str = "pencil",
    seed: int = 0,
    image_size: int = 48,
) -> Image.Image:
    """Draw one face.

    The class says which brows, lids and lips move; how far they move is how far `valence_arousal` lies along the way
    from neutral to the class's anchor. What deviates from that way shows too: valence in the mouth's corners, arousal
    in the eyes. The seed gives the person, the pose, the light and the noise.

    The domain "pencil" is dark strokes and hatching on light paper, grey ("L"); "paint" is dim filled colours, soft
    edges and a mottled background ("RGB").
    """
    if expression not in _ACTIONS:
        raise choices("expression", expression, CLASSES)
    if domain not in DOMAINS:
        raise choices("schematic domain", domain, DOMAINS)
    rng = np.random.default_rng([seed, DOMAINS.index(domain)])
    va = anchors([expression])[0] if valence_arousal is None else np.asarray(valence_arousal, dtype=np.float64)
    face = _Face(_action(expression, va, rng), rng)
    canvas: _Pencil | _Paint = _Pencil(image_size, rng) if domain == "pencil" else _Paint(image_size, rng)
    face.draw(canvas)
    return canvas.finish()


def write_schematic(
    folder: str | Path, domain: str, n_train: int, n_valid: int, n_test: int, seed: int, image_size: int = 48
) -> Path:
    """Write a schematic data set: `train`, `valid` and `test.parquet`, read by `load_fer("schematic", folder)`.

    Classes are equally frequent up to one image. An image's valence and arousal are its class's anchor times an
    intensity in [0.4, 1], plus a little noise.

    Another seed draws other faces. Returns the folder.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import ClassLabel, Features, Value
    from datasets import Image as ImageFeature

    if domain not in DOMAINS:
        raise choices("schematic domain", domain, DOMAINS)
    if min(n_train, n_valid, n_test) < 1 or image_size < 16:
        raise InputError(
            "every split needs an image and image_size at least 16, "
            f"got {n_train}, {n_valid}, {n_test} and {image_size}"
        )
    features = {"image": ImageFeature(), "file_name": Value("string"), "label": ClassLabel(names=list(CLASSES))}
    schema = Features({**features, "valence": Value("float32"), "arousal": Value("float32")}).arrow_schema
    folder = Path(folder)
    for number, (split, n) in enumerate(zip(("train", "valid", "test"), (n_train, n_valid, n_test), strict=True)):
        rng = np.random.default_rng([seed, DOMAINS.index(domain), number])
        label = rng.permutation(np.arange(n) % len(CLASSES))
        va = anchors(CLASSES)[label] * rng.uniform(0.4, 1.0, (n, 1)) + rng.normal(0, _VA_SPREAD, (n, 2))
        va = va.clip(-1, 1).astype(np.float32)
        seeds = rng.integers(0, 2**62, n)
        names = [f"{domain}_{split}_{i:06d}.png" for i in range(n)]
        faces = [
            draw_face(CLASSES[y], place, domain=domain, seed=int(s), image_size=image_size)
            for y, place, s in zip(label, va, seeds, strict=True)
        ]
        images = [{"bytes": _png(face), "path": name} for face, name in zip(faces, names, strict=True)]
        table = pa.table([images, names, label, va[:, 0], va[:, 1]], schema=schema)
        with atomic_path(folder / f"{split}.parquet") as temporary:
            pq.write_table(table, temporary, row_group_size=1000)
    return folder


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def _action(expression: str, va: np.ndarray, rng: np.random.Generator) -> _Action:
    anchor = anchors([expression])[0].astype(np.float64)
    full = _ACTIONS[expression]
    along = float(va @ anchor / (anchor @ anchor)) if anchor.any() else 0.0
    along = min(max(along, 0.25 if anchor.any() else 0.0), 1.25)
    off_axis = va - along * anchor
    # the square root keeps a weak expression visible in 48 pixels
    moved = {f.name: math.sqrt(along) * getattr(full, f.name) + rng.normal(0, 0.11) for f in fields(full)}
    action = _Action(**moved)
    return replace(
        action,
        smile=action.smile + 0.6 * float(off_axis[0]),
        eyes=action.eyes + 0.6 * float(off_axis[1]),
        open=max(action.open, 0.0),
        wrinkle=max(action.wrinkle, 0.0),
        cheek=max(action.cheek, 0.0),
    )


class _Canvas:
    """Points in face coordinates (head half a unit high, y down) to supersampled pixels."""

    def __init__(self, size: int, rng: np.random.Generator, mode: str, paper: Any) -> None:
        self.size, self.rng = size, rng
        self.image = Image.new(mode, (size * _SUPERSAMPLE,) * 2, paper)
        self.pen = ImageDraw.Draw(self.image)
        angle, zoom = rng.normal(0, 0.1), rng.uniform(0.88, 1.1)
        side = size * _SUPERSAMPLE
        self.unit = 0.42 * side * zoom
        self.turn = self.unit * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        self.origin = side * (0.5 + rng.uniform(-0.05, 0.05, 2))
        self.light = rng.uniform(0, 2 * math.pi)

    def place(self, points: np.ndarray) -> list[tuple[float, float]]:
        return [(x, y) for x, y in (points @ self.turn.T + self.origin).tolist()]

    def stroke(self, points: np.ndarray, width: float, colour: Any) -> None:
        wide = max(round(width * self.unit), 1)
        self.pen.line(self.place(points), fill=colour, width=wide, joint="curve")

    def fill(self, points: np.ndarray, colour: Any) -> None:
        self.pen.polygon(self.place(points), fill=colour)

    def shade(self, strength: float) -> np.ndarray:
        """A slope of light over the image, (size, size), mean about 1."""
        axis = np.linspace(-1, 1, self.size)
        return 1 + strength * (math.cos(self.light) * axis[None, :] + math.sin(self.light) * axis[:, None])


class _Pencil(_Canvas):
    """Dark wavering strokes and hatching on light paper."""

    def __init__(self, size: int, rng: np.random.Generator) -> None:
        self.paper = int(rng.integers(200, 250))
        self.lead = int(rng.integers(25, 85))
        super().__init__(size, rng, "L", self.paper)

    def _draw(self, points: np.ndarray, width: float, tone: float = 1.0) -> None:
        colour = round(self.paper + tone * (self.lead - self.paper))
        for _ in range(2):
            wobble = self.rng.normal(0, 0.010, points.shape) + self.rng.normal(0, 0.008, 2)
            self.stroke(points + wobble, width, colour)

    def head(self, outline: np.ndarray) -> None:
        self.fill(outline, round(self.paper * self.rng.uniform(0.85, 1.0)))
        self._draw(outline, 0.022, 0.8)
        side = np.array([-math.cos(self.light), -math.sin(self.light)])
        across = np.array([0.7, -0.7])
        reach = np.abs(outline).max(0)
        for offset in np.arange(-1.2, 1.2, self.rng.uniform(0.09, 0.15)):
            centre = offset * np.array([0.7, 0.7]) * reach
            at = np.linspace(-1.3, 1.3, 27)[:, None] * across + centre
            inside = (((at / reach) ** 2).sum(1) < 0.93) & (at @ side > 0.45)
            if inside.sum() > 1:
                self._draw(at[inside][[0, -1]], 0.012, 0.4)

    def hair(self, strands: np.ndarray, outline: np.ndarray) -> None:
        for strand in strands:
            self._draw(strand, 0.020, 0.75)

    def brow(self, points: np.ndarray, thick: float) -> None:
        self._draw(points, 0.6 * thick)

    def eye(self, outline: np.ndarray, lid: np.ndarray, iris: np.ndarray, pupil: np.ndarray) -> None:
        self.fill(outline, min(self.paper + 5, 255))
        self.fill(iris, round(0.5 * (self.paper + self.lead)))
        self.fill(pupil, self.lead)
        self._draw(outline, 0.014, 0.7)
        self._draw(lid, 0.034)

    def mouth(self, upper: np.ndarray, lower: np.ndarray, gap: float, teeth: np.ndarray | None) -> None:
        if gap > 0.04:
            self.fill(np.concatenate([upper, lower[::-1]]), round(self.lead + 0.2 * (self.paper - self.lead)))
            if teeth is not None:
                self.fill(teeth, self.paper)
            self._draw(lower, 0.028)
        else:
            below = lower[len(lower) // 3 : -len(lower) // 3] + np.array([0, 0.11])
            self._draw(below, 0.014, 0.5)
        self._draw(upper, 0.036)

    def crease(self, points: np.ndarray, strength: float) -> None:
        self._draw(points, 0.018, min(0.8 * strength, 1.0))

    def finish(self) -> Image.Image:
        grain = self.rng.normal(0, self.rng.uniform(2, 7), (self.size, self.size))
        small = np.asarray(self.image.reduce(_SUPERSAMPLE), dtype=np.float32)
        return _to_image(small * self.shade(0.06) + grain)


class _Paint(_Canvas):
    """Filled skin and hair on a mottled background, dim and a little soft."""

    _SKIN = ((236, 188, 160), (224, 172, 138), (204, 146, 110), (172, 116, 84), (138, 94, 70))
    _HAIR = ((40, 30, 26), (86, 54, 34), (150, 104, 58), (120, 116, 112), (150, 66, 40))

    def __init__(self, size: int, rng: np.random.Generator) -> None:
        super().__init__(size, rng, "RGB", 0)
        ground = rng.integers(40, 185) + rng.integers(-30, 31, 3) + rng.integers(-32, 33, (6, 6, 1))
        mottled = Image.fromarray(ground.clip(0, 255).astype(np.uint8))
        self.image.paste(mottled.resize(self.image.size, Image.Resampling.BICUBIC))
        self.skin = self._vary(self._SKIN[rng.integers(len(self._SKIN))])
        self.locks = self._vary(self._HAIR[rng.integers(len(self._HAIR))])
        self.lips = _mix(self.skin, (110, 12, 26), 0.75)

    def _vary(self, colour: Colour) -> Colour:
        r, g, b = (np.array(colour) + self.rng.integers(-14, 15, 3)).clip(0, 255).tolist()
        return r, g, b

    def head(self, outline: np.ndarray) -> None:
        self.fill(outline, _mix(self.skin, (0, 0, 0), 0.22))
        away = np.array([math.cos(self.light), math.sin(self.light)])
        self.fill(outline * 0.94 + 0.05 * away, self.skin)
        self.fill(outline * 0.62 + 0.12 * away, _mix(self.skin, (255, 255, 255), 0.08))

    def hair(self, strands: np.ndarray, outline: np.ndarray) -> None:
        self.fill(outline, self.locks)
        for strand in strands[::3]:
            self.stroke(strand, 0.02, _mix(self.locks, (255, 255, 255), 0.15))

    def brow(self, points: np.ndarray, thick: float) -> None:
        self.stroke(points, 1.1 * thick, _mix(self.locks, (0, 0, 0), 0.5))

    def eye(self, outline: np.ndarray, lid: np.ndarray, iris: np.ndarray, pupil: np.ndarray) -> None:
        self.fill(outline, (232, 228, 222))
        self.fill(iris, _mix(self.locks, (40, 80, 90), 0.5))
        self.fill(pupil, (12, 10, 12))
        self.stroke(lid, 0.05, _mix(self.skin, (20, 10, 10), 0.85))

    def mouth(self, upper: np.ndarray, lower: np.ndarray, gap: float, teeth: np.ndarray | None) -> None:
        if gap > 0.04:
            self.fill(np.concatenate([upper, lower[::-1]]), (54, 14, 20))
            if teeth is not None:
                self.fill(teeth, (228, 224, 214))
            self.stroke(lower, 0.07, self.lips)
            self.stroke(upper, 0.06, self.lips)
        else:
            self.stroke((upper + lower) / 2 + np.array([0, 0.03]), 0.10, self.lips)
            self.stroke(upper, 0.028, _mix(self.lips, (30, 0, 10), 0.6))

    def crease(self, points: np.ndarray, strength: float) -> None:
        self.stroke(points, 0.04, _mix(self.skin, (50, 20, 16), min(0.65 * strength, 0.85)))

    def finish(self) -> Image.Image:
        soft = self.image.filter(ImageFilter.BoxBlur(self.rng.uniform(0.15, 0.5) * _SUPERSAMPLE))
        pixels = np.asarray(soft.reduce(_SUPERSAMPLE), dtype=np.float32)
        gain = self.rng.uniform(0.5, 0.95)
        grain = self.rng.normal(0, self.rng.uniform(1, 5), (self.size, self.size, 1))
        return _to_image(gain * pixels * self.shade(0.3)[..., None] + grain)


class _Face:
    """One person's features, moved by an action."""

    def __init__(self, action: _Action, rng: np.random.Generator) -> None:
        self.action, self.rng = action, rng
        self.half = np.array([rng.uniform(0.70, 0.86), 1.0])
        self.jaw = rng.uniform(-0.12, 0.12)
        self.look = np.array([rng.normal(0, 0.05), rng.normal(0, 0.03)])
        self.apart = rng.uniform(0.30, 0.37)
        self.eye_half = np.array([rng.uniform(0.14, 0.18), rng.uniform(0.075, 0.10)])
        self.brow_thick = rng.uniform(0.05, 0.085)
        self.brow_lift = rng.uniform(-0.03, 0.03)
        self.nose = rng.uniform(0.22, 0.32)
        self.lips = np.array([rng.uniform(0.25, 0.33), rng.uniform(0.47, 0.55)])
        self.side = rng.choice([-1.0, 1.0])

    def draw(self, canvas: _Pencil | _Paint) -> None:
        outline = self._outline()
        style = self.rng.integers(4)
        canvas.head(outline)
        if style:
            canvas.hair(*self._hair(outline, int(style)))
        for side in (-1.0, 1.0):
            self._eye(canvas, side)
            self._brow(canvas, side)
        self._nose(canvas)
        self._mouth(canvas)
        self._creases(canvas)

    def _outline(self) -> np.ndarray:
        t = np.linspace(0, 2 * math.pi, 49)
        points = np.stack([np.sin(t), -np.cos(t)], axis=1)
        points[:, 0] *= 1 - (0.14 + self.jaw) * np.clip(points[:, 1], 0, 1)
        return points * self.half

    def _hair(self, outline: np.ndarray, style: int) -> tuple[np.ndarray, np.ndarray]:
        low = {1: -0.62, 2: -0.45, 3: 0.25}[style]
        t = np.linspace(-1, 1, 25) * (0.95 if style == 1 else 1.25 if style == 2 else 1.75)
        rim = np.stack([np.sin(t) * self.half[0], -np.cos(t)], axis=1)
        fringe = rim * np.array([0.90, 1.0])
        height = -0.72 + 0.10 * np.cos(3 * t + self.side) if style != 1 else np.full_like(t, -0.78)
        fringe[:, 1] = np.maximum(height, fringe[:, 1]) if style == 1 else np.where(np.abs(t) < 1.1, height, rim[:, 1])
        outer = rim * 1.07
        outer[:, 1] = np.minimum(outer[:, 1], low + 0.4)
        strands = np.stack([outer, (outer + fringe) / 2 + 0.02 * self.side, fringe], axis=1)
        return strands, np.concatenate([outer, fringe[::-1]])

    def _eye(self, canvas: _Pencil | _Paint, side: float) -> None:
        a = self.action
        centre = np.array([side * self.apart, -0.12]) + self.look
        half = self.eye_half[0]
        x = np.linspace(-1, 1, 13)
        arch = 1 - x**2
        opened = max(1 + a.eyes, 0.18)
        squint = np.clip(0.75 - 0.45 * a.cheek, 0.1, 0.9)
        # worried lids slope outwards, angry lids inwards
        slope = 0.028 * (a.inner - a.outer) * x * side
        upper = -self.eye_half[1] * opened * arch + slope
        lower = self.eye_half[1] * squint * min(opened, 1.15) * arch + slope
        lid = np.stack([x * half, upper], axis=1) + centre
        base = np.stack([x * half, lower], axis=1) + centre
        t = np.linspace(0, 2 * math.pi, 17)
        circle = np.stack([np.cos(t), np.sin(t)], axis=1)
        discs = []
        for radius in (0.080, 0.042):
            disc = circle * radius + np.array([0.3 * self.look[0], -0.01])
            at = disc[:, 0] / half
            disc[:, 1] = disc[:, 1].clip(np.interp(at, x, upper), np.interp(at, x, lower))
            discs.append(disc + centre)
        canvas.eye(np.concatenate([lid, base[::-1]]), lid, discs[0], discs[1])
        if a.cheek > 0.3:
            canvas.crease(base[3:-3] + np.array([0, 0.075]), 0.7 * a.cheek)

    def _brow(self, canvas: _Pencil | _Paint, side: float) -> None:
        a = self.action
        lift = 0.06 * max(a.one_side, 0) * (side == self.side)
        inner = [self.apart - 0.21 - 0.055 * a.together, -0.35 - 0.115 * a.inner]
        middle = [self.apart + 0.02, -0.405 - 0.06 * (a.inner + a.outer)]
        outer = [self.apart + 0.22, -0.345 - 0.10 * a.outer]
        t = np.linspace(0, 1, 9)[:, None]
        curve = (1 - t) ** 2 * np.array(inner) + 2 * t * (1 - t) * np.array(middle) + t**2 * np.array(outer)
        curve[:, 1] -= lift + self.brow_lift
        canvas.brow(curve * np.array([side, 1]) + self.look, self.brow_thick)

    def _nose(self, canvas: _Pencil | _Paint) -> None:
        up = 0.05 * self.action.wrinkle
        tip = np.array([0.0, self.nose - up]) + 1.6 * self.look
        wing = np.array([0.085, -0.01])
        canvas.crease(np.array([tip - wing * [1, 0] - [0, 0.03], tip, tip + wing - [0, 0.02]]), 0.9)
        canvas.crease(np.array([[0.03 * self.side, -0.1], [0.05 * self.side, 0.1]]) + self.look, 0.5)

    def _mouth(self, canvas: _Pencil | _Paint) -> None:
        a = self.action
        x = np.linspace(-1, 1, 17)
        half = self.lips[0] * (1 + 0.45 * np.clip(a.wide, -0.9, 1)) * (1 + 0.12 * max(a.smile, 0))
        corner = -0.13 * a.smile
        pulled = np.clip(self.side * x, 0, 1) ** 1.5
        line = corner * x**2 + 0.045 * a.smile - 0.19 * a.one_side * pulled
        across = half * x + 0.10 * a.one_side * pulled * self.side
        gap = 0.36 * a.open
        raised = 0.09 * a.wrinkle * (1 - np.abs(x)) + 0.035 * a.wrinkle * np.cos(3 * math.pi * x)
        centre = np.array([0.0, self.lips[1] + 0.05 * min(a.open, 0.5)]) + self.look
        arch = np.sqrt(np.clip(1 - x**2, 0, 1)) if a.wide < 0 else 1 - x**4
        upper = np.stack([across, line - raised - 0.3 * gap * arch], axis=1) + centre
        lower = np.stack([across, line + 0.7 * gap * arch - 0.3 * raised], axis=1) + centre
        teeth = None
        if gap > 0.04 and a.wide > 0.15:
            bottom = upper[1:-1] + np.stack([0 * x[1:-1], 0.45 * gap * arch[1:-1]], axis=1)
            teeth = np.concatenate([upper[1:-1], bottom[::-1]])
        canvas.mouth(upper, lower, gap, teeth)

    def _creases(self, canvas: _Pencil | _Paint) -> None:
        a = self.action
        if a.inner < -0.25:
            for side in (-1.0, 1.0):
                frown = np.array([[0.055 * side, -0.44], [0.04 * side, -0.28]])
                canvas.crease(frown + self.look, min(-a.inner, 1.0))
        if a.wrinkle > 0.2:
            for y in (-0.10, -0.03):
                bridge = np.array([[-0.10, y + 0.05], [0, y], [0.10, y + 0.05]])
                canvas.crease(bridge + self.look, a.wrinkle)
        fold = max(a.wrinkle, 0.8 * a.smile)
        for side in (-1.0, 1.0):
            strength = max(fold, a.one_side if side == self.side else 0.0)
            if strength > 0.3:
                spread = self.lips[0] + 0.12
                line = np.array([[0.15, 0.20], [spread - 0.04, 0.33], [spread, 0.46]]) * np.array([side, 1])
                canvas.crease(line + self.look, 0.8 * strength)
        if a.inner > 0.5 and a.outer > -0.2:
            for y in (-0.66, -0.74):
                canvas.crease(np.array([[-0.25, y], [0, y - 0.02], [0.25, y]]) + self.look, 0.5 * a.inner)


def _mix(first: Colour, second: Colour, share: float) -> Colour:
    r, g, b = (round((1 - share) * p + share * q) for p, q in zip(first, second, strict=True))
    return r, g, b


def _to_image(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels.clip(0, 255).round().astype(np.uint8))
