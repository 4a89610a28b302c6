/** What the page shows of an image's faces: boxes, bars, and dots on the plane of valence and arousal. */
import type { Pixels } from "./images";
import type { Settings } from "./settings";
import type { Prediction } from "./student";

const byId = (id: string) => document.getElementById(id) as HTMLElement;
const percent = (p: number, digits = 0) => `${(100 * p).toFixed(digits)} %`;

/** Shows the faces of an image, and returns the same in a sentence. */
export function show(image: Pixels, faces: Prediction[], { anchors, colors }: Settings): string {
  const color = (i: number) => colors[i % colors.length];
  const result = byId("result");
  result.hidden = false;
  result.className = faces.length === 0 ? "none" : faces.length === 1 ? "one" : "several";
  byId("photo").replaceChildren(frame(image, faces, color));
  byId("plane").hidden = faces.length > 0 && faces[0].valence === null; // of classes without a place there
  byId("plane").replaceChildren(plane(faces, anchors, color));
  byId("faces").replaceChildren(...faces.map((face, i) => card(face, i, color(i))));
  if (faces.length === 0) return "No face found.";
  const labels = faces.map((face) => `${face.label} ${percent(face.probabilities[face.label])}`);
  return `${faces.length === 1 ? "1 face" : `${faces.length} faces`}: ${labels.join(", ")}.`;
}

function frame(image: Pixels, faces: Prediction[], color: (i: number) => string): HTMLElement {
  const canvas = element("canvas", { width: image.width, height: image.height, role: "img" });
  canvas.ariaLabel = faces.length === 1 ? "The photograph, with 1 face" : `The photograph, with ${faces.length} faces`;
  const drawn = new ImageData(image.data as Uint8ClampedArray<ArrayBuffer>, image.width, image.height);
  canvas.getContext("2d")?.putImageData(drawn, 0, 0);
  const boxes = faces.flatMap(({ face, label, probabilities }, i) => {
    if (face === null) return [];
    const [x, y, width, height] = face.box;
    const box = element("div", { className: "box", ariaHidden: "true" });
    box.classList.toggle("low", y < 0.1 * image.height);
    box.classList.toggle("right", x + width / 2 > image.width / 2);
    box.style.cssText =
      `left:${(100 * x) / image.width}%;top:${(100 * y) / image.height}%;width:${(100 * width) / image.width}%;` +
      `height:${(100 * height) / image.height}%;border-color:${color(i)}`;
    const name = element("span", { textContent: `${i + 1}` });
    if (faces.length <= 3) name.append(element("i", { textContent: ` ${label} ${percent(probabilities[label])}` }));
    box.append(name);
    return [box];
  });
  const out = element("div", { className: "frame" });
  out.append(canvas, ...boxes);
  return out;
}

function card(face: Prediction, index: number, color: string): HTMLElement {
  const item = element("li", {});
  item.style.borderLeftColor = color;
  const table = element("table", {});
  table.append(element("caption", { textContent: `Probabilities of face ${index + 1}` }));
  for (const [name, p] of Object.entries(face.probabilities)) {
    const bar = element("div", { className: "bar" });
    bar.style.cssText = `width:${100 * p}%;background:${color}`;
    const row = table.insertRow();
    const head = element("th", { scope: "row", textContent: name });
    row.append(head);
    row.insertCell().append(bar);
    row.insertCell().append(element("data", { value: p.toFixed(6), textContent: percent(p, 1) }));
  }
  const lines = [];
  if (face.valence !== null && face.arousal !== null) {
    lines.push(`valence ${signed(face.valence)}, arousal ${signed(face.arousal)}`);
  }
  const said = [...lines, ...face.notes].join("; ");
  const head = element("h3", { textContent: `${index + 1}. ${face.label} ${percent(face.probabilities[face.label])}` });
  item.append(head, element("p", { textContent: said }), table);
  return item;
}

const signed = (value: number) => (value < 0 ? "−" : "+") + Math.abs(value).toFixed(2);

function plane(faces: Prediction[], anchors: Settings["anchors"], color: (i: number) => string): SVGElement {
  const [x, y] = [(valence: number) => 150 + 120 * valence, (arousal: number) => 150 - 120 * arousal];
  const svg = shape("svg", { viewBox: "0 0 300 300", role: "img" });
  const places = faces.map((f, i) => `face ${i + 1} at ${f.valence?.toFixed(2)}, ${f.arousal?.toFixed(2)}`);
  svg.setAttribute("aria-label", `The plane of valence (across) and arousal (up): ${places.join("; ")}`);
  svg.append(
    shape("circle", { class: "edge", cx: 150, cy: 150, r: 120 }),
    shape("line", { x1: 30, x2: 270, y1: 150, y2: 150 }),
    shape("line", { x1: 150, x2: 150, y1: 30, y2: 270 }),
    shape("text", { class: "axis", x: 150, y: 292, "text-anchor": "middle" }, "valence →"),
    shape("text", { class: "axis", transform: "translate(14 150) rotate(-90)", "text-anchor": "middle" }, "arousal →"),
  );
  for (const [name, [valence, arousal]] of Object.entries(anchors)) {
    const side = { fear: "end", anger: "start" }[name] ?? "middle"; // which are neighbours
    const beside = arousal > 0.3 ? -12 : 20; // a face at the anchor leaves its name legible
    svg.append(shape("text", { x: x(valence), y: y(arousal) + beside, "text-anchor": side }, name));
  }
  faces.forEach(({ valence, arousal }, i) => {
    if (valence === null || arousal === null) return;
    const dot = shape("g", { class: "dot", transform: `translate(${x(valence)} ${y(arousal)})` });
    dot.append(shape("circle", { r: 8, fill: color(i) }), shape("text", { y: 4, "text-anchor": "middle" }, `${i + 1}`));
    svg.append(dot);
  });
  return svg;
}

function element<K extends keyof HTMLElementTagNameMap>(name: K, values: Partial<HTMLElementTagNameMap[K]>) {
  return Object.assign(document.createElement(name), values);
}

function shape(name: string, attributes: Record<string, string | number>, text = ""): SVGElement {
  const out = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) out.setAttribute(key, String(value));
  out.textContent = text;
  return out;
}
