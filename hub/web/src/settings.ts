/** What models.py and build.mjs write: the files, and the numbers that `ngd predict` goes by. */
export interface Settings {
  detector: File & {
    threshold: number;
    overlap: number;
    first: number;
    full: number;
    range: number;
  };
  student: File & {
    classes: string[];
    size: number;
    resize: number;
    mean: [number, number, number];
    std: [number, number, number];
    shift: number[];
  };
  runtime: File;
  crop: { face: number; fills: number; aspect: number; small: number };
  notes: { smallest: number; square: number };
  megapixels: number;
  anchors: Record<string, [valence: number, arousal: number]>;
  colors: string[];
  examples: string[];
}

interface File {
  file: string;
  bytes: number;
}
