/** Expressions of the faces in an image, as ngd_timm/predict/predictor.py predicts them. */
import { InferenceSession, Tensor } from "onnxruntime-web/wasm";
import { cropFace, detect, isCrop, side, type Face } from "./faces";
import { crop, planes, resize, round, type Pixels } from "./images";
import type { Settings } from "./settings";

export interface Prediction {
  /** Null where the image is the face. */
  face: Face | null;
  label: string;
  probabilities: Record<string, number>;
  valence: number | null;
  arousal: number | null;
  notes: string[];
}

export class Predictor {
  constructor(
    readonly settings: Settings,
    private readonly detector: InferenceSession,
    private readonly student: InferenceSession,
  ) {}

  /** The faces in a photograph, largest first; an image that one face fills is taken as it is. */
  async photo(image: Pixels): Promise<Prediction[]> {
    const { detector, crop: rule, notes } = this.settings;
    const faces = await detect(this.detector, image, detector);
    if (isCrop(image, faces, rule)) {
      const said = [...imageNotes(image, notes), "taken as a face crop"];
      return [this.prediction(null, (await this.probabilities([image]))[0], said)];
    }
    if (faces.length === 0) return [];
    const rows = await this.probabilities(faces.map((face) => cropFace(image, face, rule.face)));
    return faces.map((face, i) => {
      const tiny = side(face) < notes.smallest;
      return this.prediction(face, rows[i], tiny ? [`tiny (${round(side(face))} px): too small to tell much`] : []);
    });
  }

  private async probabilities(images: Pixels[]): Promise<number[][]> {
    const { size, mean, std, classes, shift: prior } = this.settings.student;
    const input = new Float32Array(images.length * 3 * size * size);
    const scale = std.map((s) => 1 / 255 / s);
    const shift = std.map((s, c) => -mean[c] / s);
    images.forEach((image, i) => input.set(planes(this.view(image), [0, 1, 2], scale, shift), i * 3 * size * size));
    const name = this.student.inputNames[0];
    const out = await this.student.run({ [name]: new Tensor("float32", input, [images.length, 3, size, size]) });
    const logits = out[this.student.outputNames[0]].data as Float32Array;
    const row = (i: number) => logits.subarray(i * classes.length, (i + 1) * classes.length);
    return images.map((_, i) => softmax(row(i).map((logit, c) => logit + prior[c])));
  }

  /** An image as the student's transform makes it: the shorter side resized, the centre cut out. */
  private view(image: Pixels): Pixels {
    const { size, resize: shorter } = this.settings.student;
    const short = Math.min(image.width, image.height);
    const [width, height] = [image.width, image.height].map((n) => Math.trunc((shorter * n) / short));
    const resized = resize(image, width, height);
    return crop(resized, round((width - size) / 2), round((height - size) / 2), size);
  }

  private prediction(face: Face | null, row: number[], notes: string[]): Prediction {
    const { student, anchors } = this.settings;
    const probabilities = Object.fromEntries(student.classes.map((name, i) => [name, row[i]]));
    const known = student.classes.every((name) => name in anchors);
    const expected = (axis: 0 | 1) =>
      known ? student.classes.reduce((sum, name, i) => sum + row[i] * anchors[name][axis], 0) : null;
    const label = student.classes[row.indexOf(Math.max(...row))];
    return { face, label, probabilities, valence: expected(0), arousal: expected(1), notes };
  }
}

function softmax(logits: Float32Array): number[] {
  const top = Math.max(...logits);
  const powers = Array.from(logits, (logit) => Math.exp(logit - top));
  const total = powers.reduce((sum, power) => sum + power, 0);
  return powers.map((power) => power / total);
}

function imageNotes({ width, height }: Pixels, rule: Settings["notes"]): string[] {
  const [short, long] = [width, height].sort((a, b) => a - b);
  const notes = [];
  if (short < rule.smallest) notes.push(`tiny (${width} x ${height} px): too small to tell much`);
  if (long > rule.square * short) {
    notes.push(`far from square (${width} x ${height} px): crop it to one centred face first`);
  }
  return notes;
}
