/** Faces in photographs, as ngd_timm/predict/faces.py finds and crops them. */
import { InferenceSession, Tensor } from "onnxruntime-web/wasm";
import { crop, planes, resize, round, type Pixels } from "./images";
import type { Settings } from "./settings";

export interface Face {
  /** x, y, width, height in pixels of the upright image; it may reach beyond. */
  box: [number, number, number, number];
  score: number;
}

const SIDE = 640; // of the detector's input, in pixels
const STRIDES = [8, 16, 32];
const SEEN = 32; // pixels, a face that is found for certain in an image that is scaled down

export const side = (face: Face) => Math.max(face.box[2], face.box[3]);

/** The faces of an image, largest first: looked at 640 pixels wide, and at full size where that finds none. */
export async function detect(session: InferenceSession, image: Pixels, rule: Settings["detector"]): Promise<Face[]> {
  const longer = Math.max(image.width, image.height);
  let faces = await look(session, image, rule, rule.first);
  if (longer > rule.first && faces.length === 0) {
    const largest = rule.range * Math.max(1, longer / rule.full);
    faces = (await look(session, image, rule, rule.full)).filter((face) => side(face) <= largest);
  }
  return faces.sort((a, b) => side(b) - side(a));
}

/** The faces of an image whose longer side is scaled down to `longest`, in overlapping tiles of the detector's size. */
async function look(session: InferenceSession, image: Pixels, rule: Settings["detector"], longest: number) {
  const scale = Math.min(1, longest / Math.max(image.width, image.height));
  const [width, height] = [image.width, image.height].map((n) => Math.max(1, round(n * scale)));
  const scaled = resize(image, width, height);
  // a larger face was found in the image that was scaled down
  const shared = Math.min(rule.range, (SEEN * Math.max(width, height)) / SIDE);
  const faces: Face[] = [];
  for (const top of starts(height, shared)) {
    for (const left of starts(width, shared)) {
      await new Promise((resolve) => setTimeout(resolve)); // the page stays alive
      const tile = crop(scaled, left, top, Math.min(SIDE, width - left), Math.min(SIDE, height - top));
      for (const { box, score } of await decode(session, tile, rule.threshold)) {
        // a neighbouring tile holds the whole of a face that an inner edge cuts
        const [x, y, w, h] = box;
        if ((left > 0 && x < 2) || (top > 0 && y < 2)) continue;
        if ((left + SIDE < width && x + w > SIDE - 2) || (top + SIDE < height && y + h > SIDE - 2)) continue;
        faces.push({ box: [(x + left) / scale, (y + top) / scale, w / scale, h / scale], score });
      }
    }
  }
  return suppress(faces, rule.overlap);
}

/** Where tiles begin that share so many pixels with their neighbours. */
function starts(length: number, shared: number): number[] {
  const last = Math.max(0, length - SIDE);
  const step = Math.floor(SIDE - shared - 4);
  return [...Array.from({ length: Math.ceil(last / step) }, (_, i) => i * step), last];
}

/** YuNet's boxes for one tile, as OpenCV's FaceDetectorYN decodes them; the tile lies in the upper left corner. */
async function decode(session: InferenceSession, tile: Pixels, threshold: number): Promise<Face[]> {
  const pixels = planes(tile, [2, 1, 0], undefined, undefined, [SIDE, SIDE]);
  const out = await session.run({ [session.inputNames[0]]: new Tensor("float32", pixels, [1, 3, SIDE, SIDE]) });
  const faces: Face[] = [];
  for (const stride of STRIDES) {
    const [cls, obj, bbox] = ["cls", "obj", "bbox"].map((name) => out[`${name}_${stride}`].data as Float32Array);
    const columns = SIDE / stride;
    for (let i = 0; i < cls.length; i++) {
      const score = Math.sqrt(clamp(cls[i]) * clamp(obj[i]));
      if (score < threshold) continue;
      const [column, row] = [i % columns, Math.floor(i / columns)];
      const [dx, dy, w, h] = bbox.subarray(4 * i, 4 * i + 4);
      const [width, height] = [Math.exp(w) * stride, Math.exp(h) * stride];
      const [x, y] = [(column + dx) * stride - width / 2, (row + dy) * stride - height / 2];
      // the padding around the tile is no part of the image
      if (x < tile.width && y < tile.height) faces.push({ box: [x, y, width, height], score });
    }
  }
  return faces;
}

const clamp = (value: number) => Math.min(1, Math.max(0, value));

/** Of boxes that overlap, the one with the highest score. */
function suppress(faces: Face[], overlap: number): Face[] {
  const kept: Face[] = [];
  for (const face of faces.sort((a, b) => b.score - a.score)) {
    if (kept.every((other) => overlapOverUnion(face, other) <= overlap)) kept.push(face);
  }
  return kept;
}

function overlapOverUnion(a: Face, b: Face): number {
  const [width, height] = [0, 1].map((axis) => {
    const left = Math.max(a.box[axis], b.box[axis]);
    return Math.max(0, Math.min(a.box[axis] + a.box[axis + 2], b.box[axis] + b.box[axis + 2]) - left);
  });
  const shared = width * height;
  return shared / (a.box[2] * a.box[3] + b.box[2] * b.box[3] - shared);
}

/** Whether an image is a face crop already: one face fills it, or it is small and shows none. */
export function isCrop(image: Pixels, faces: Face[], rule: Settings["crop"]): boolean {
  const [short, long] = [image.width, image.height].sort((a, b) => a - b);
  if (faces.length === 0) return long <= rule.small;
  return faces.length === 1 && side(faces[0]) >= rule.fills * short && long <= rule.aspect * short;
}

/** The square about a face that a student takes, black beyond the image's edges. */
export function cropFace(image: Pixels, face: Face, scale: number): Pixels {
  const [x, y, width, height] = face.box;
  const length = Math.max(1, round(scale * side(face)));
  return crop(image, round(x + (width - length) / 2), round(y + (height - length) / 2), length);
}
