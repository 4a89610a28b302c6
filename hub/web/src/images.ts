/** Pixels of an image, cut and resized as PIL does it. */

/** RGBA, row by row; alpha is ignored. */
export interface Pixels {
  width: number;
  height: number;
  data: Uint8ClampedArray;
}

/** As Python's `round`: a half goes to the even neighbour. */
export function round(value: number): number {
  return Math.abs(value % 1) === 0.5 ? 2 * Math.round(value / 2) : Math.round(value);
}

/** The first frame of a file, upright by its EXIF orientation, transparency on white. */
export async function decode(file: Blob, megapixels: number): Promise<Pixels> {
  let bitmap: ImageBitmap;
  try {
    // the numbers as they are in the file, as PIL reads them
    bitmap = await createImageBitmap(file, { colorSpaceConversion: "none" });
  } catch {
    throw new Error("not an image that this browser can read");
  }
  try {
    if (bitmap.width * bitmap.height > megapixels * 1e6) throw new Error(`more than ${megapixels} megapixels`);
    return pixels(bitmap, bitmap.width, bitmap.height);
  } finally {
    bitmap.close();
  }
}

/** The pixels of something that a canvas can draw. */
export function pixels(source: CanvasImageSource, width: number, height: number): Pixels {
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  try {
    if (context === null) throw new Error();
    context.fillStyle = "white";
    context.fillRect(0, 0, width, height);
    context.drawImage(source, 0, 0);
    return context.getImageData(0, 0, width, height);
  } catch {
    throw new Error(`${width} × ${height} pixels are too many for this browser`);
  }
}

/** A square, black beyond the image's edges. */
export function crop(image: Pixels, left: number, top: number, width: number, height = width): Pixels {
  const data = new Uint8ClampedArray(4 * width * height);
  const from = Math.max(0, left);
  const to = Math.min(image.width, left + width);
  for (let y = Math.max(0, top); y < Math.min(image.height, top + height) && from < to; y++) {
    const row = image.data.subarray(4 * (y * image.width + from), 4 * (y * image.width + to));
    data.set(row, 4 * ((y - top) * width + from - left));
  }
  return { width, height, data };
}

/** PIL's antialiased bilinear resize: a triangle as wide as a pixel of the smaller image, rounded after each pass. */
export function resize(image: Pixels, width: number, height: number): Pixels {
  const across = width === image.width ? image : pass(image, width, image.height, image.width / width, 4, 4 * image.width);
  return height === image.height ? across : pass(across, width, height, image.height / height, 4 * width, 4);
}

/** Resizes along one axis, where neighbours lie `step` bytes apart, `line` bytes from one such line to the next. */
function pass(image: Pixels, width: number, height: number, scale: number, step: number, line: number): Pixels {
  const data = new Uint8ClampedArray(4 * width * height);
  const horizontal = step === 4 && width !== image.width;
  const [length, lines, inputs] = horizontal ? [width, height, image.width] : [height, width, image.height];
  const [stepOut, lineOut] = horizontal ? [4, 4 * width] : [4 * width, 4];
  const support = Math.max(1, scale);
  for (let i = 0; i < length; i++) {
    const center = (i + 0.5) * scale;
    const first = Math.max(0, Math.trunc(center - support + 0.5));
    const last = Math.min(inputs, Math.trunc(center + support + 0.5));
    const weights = Array.from({ length: last - first }, (_, k) =>
      Math.max(0, 1 - Math.abs((first + k - center + 0.5) / support)),
    );
    const total = weights.reduce((sum, weight) => sum + weight, 0);
    for (let j = 0; j < lines; j++) {
      let [red, green, blue] = [0, 0, 0];
      for (let k = 0, at = j * line + first * step; k < weights.length; k++, at += step) {
        red += weights[k] * image.data[at];
        green += weights[k] * image.data[at + 1];
        blue += weights[k] * image.data[at + 2];
      }
      const at = j * lineOut + i * stepOut;
      data[at] = Math.floor(red / total + 0.5);
      data[at + 1] = Math.floor(green / total + 0.5);
      data[at + 2] = Math.floor(blue / total + 0.5);
    }
  }
  return { width, height, data };
}

/** Channels in the order given as planes, (3, height, width), of `value * scale[c] + shift[c]`, within a padded plane. */
export function planes(
  image: Pixels,
  order: readonly number[],
  scale: readonly number[] = [1, 1, 1],
  shift: readonly number[] = [0, 0, 0],
  [width, height] = [image.width, image.height],
): Float32Array {
  const out = new Float32Array(3 * width * height);
  order.forEach((channel, plane) => {
    for (let y = 0; y < image.height; y++) {
      let from = 4 * y * image.width + channel;
      let to = (plane * height + y) * width;
      for (let x = 0; x < image.width; x++, from += 4) out[to++] = image.data[from] * scale[plane] + shift[plane];
    }
  });
  return out;
}
