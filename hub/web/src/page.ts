/** The page: an image comes as a file, a drop, a paste, an example or from the webcam, and its faces are shown. */
import { env, InferenceSession } from "onnxruntime-web/wasm";
import { decode, pixels, type Pixels } from "./images";
import type { Settings } from "./settings";
import { Predictor } from "./student";
import { show } from "./view";

const byId = <T extends HTMLElement>(id: string) => document.getElementById(id) as T;
const [status, error, progress] = [byId("status"), byId("error"), byId<HTMLProgressElement>("progress")];
const [file, webcam] = [byId<HTMLInputElement>("file"), byId<HTMLButtonElement>("webcam")];

const models = load();
models.then(
  () => say("Ready."),
  (reason) => fail(`The models could not be loaded (${message(reason)}); reload the page.`),
);
let latest = 0; // of the requests; the answers to earlier ones are dropped
let camera: MediaStream | null = null;

async function load(): Promise<Predictor> {
  say("Loading the models …");
  const settings: Settings = await (await get("settings.json")).json();
  const files = [settings.runtime, settings.detector, settings.student];
  const total = files.reduce((sum, { bytes }) => sum + bytes, 0);
  let loaded = 0;
  const [runtime, detector, student] = await Promise.all(
    files.map(async ({ file, bytes }) => {
      const content = new Uint8Array(bytes);
      const reader = (await get(file)).body!.getReader();
      let at = 0;
      for (let part = await reader.read(); !part.done; part = await reader.read()) {
        content.set(part.value, at);
        at += part.value.length;
        loaded += part.value.length;
        progress.value = loaded / total;
      }
      return content;
    }),
  );
  env.wasm.numThreads = 1; // more need headers that a plain web server does not send
  env.wasm.wasmBinary = runtime.buffer;
  for (const example of settings.examples) addExample(example);
  const predictor = new Predictor(settings, await InferenceSession.create(detector), await InferenceSession.create(student));
  progress.hidden = true;
  return predictor;
}

async function get(name: string): Promise<Response> {
  const response = await fetch(name);
  if (!response.ok) throw new Error(`${name}: HTTP ${response.status}`);
  return response;
}

function addExample(name: string): void {
  const label = name.replace(/\.\w+$/, "").replaceAll("-", " ");
  const image = Object.assign(document.createElement("img"), { src: `examples/${name}`, alt: "" });
  const button = Object.assign(document.createElement("button"), { type: "button" });
  button.append(image, `Example: ${label}`);
  button.onclick = () => look(get(`examples/${name}`).then((response) => response.blob()), label);
  byId("examples").append(button);
}

/** Predicts one image file, and shows or says what came of it. */
async function look(image: Blob | Promise<Blob>, name: string): Promise<void> {
  stop();
  const request = ++latest;
  error.textContent = "";
  try {
    const bytes = await image;
    const predictor = await models;
    say("Looking for faces …");
    await painted();
    const photo = await decode(bytes, predictor.settings.megapixels);
    const faces = await predictor.photo(photo);
    if (request === latest) say(show(photo, faces, predictor.settings));
  } catch (reason) {
    if (request === latest) fail(`${name}: ${message(reason)}`);
  }
}

/** Predicts the webcam's frames, until it is stopped. */
async function watch(): Promise<void> {
  const request = ++latest;
  error.textContent = "";
  const video = Object.assign(document.createElement("video"), { muted: true, playsInline: true });
  try {
    if (navigator.mediaDevices === undefined) throw new Error("this page was not loaded over https");
    const stream = await navigator.mediaDevices.getUserMedia({ video: true });
    stop();
    camera = stream;
    if (request !== latest) return stop();
    webcam.textContent = "Stop the webcam";
    video.srcObject = camera;
    await video.play();
    const predictor = await models;
    let said = 0;
    for (;;) {
      if (camera !== stream || request !== latest) return;
      if (!stream.active) throw new Error("it was disconnected");
      const frame: Pixels = pixels(video, video.videoWidth, video.videoHeight);
      const faces = await predictor.photo(frame);
      if (camera !== stream || request !== latest) return;
      const sentence = show(frame, faces, predictor.settings);
      // a screen reader could not keep up with every frame
      if (performance.now() - said > 3000) {
        say(sentence);
        said = performance.now();
      }
      await painted();
    }
  } catch (reason) {
    stop();
    if (request === latest) fail(`The webcam can't be used (${message(reason)}).`);
  }
}

function stop(): void {
  for (const track of camera?.getTracks() ?? []) track.stop();
  camera = null;
  webcam.textContent = "Use the webcam";
}

function say(sentence: string): void {
  if (status.textContent !== sentence) status.textContent = sentence;
}

function fail(line: string): void {
  say("");
  progress.hidden = true;
  byId("result").hidden = true;
  error.textContent = line;
}

const message = (reason: unknown) => (reason instanceof Error ? reason.message : String(reason));
const painted = () => new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve)));

function lookAt(files: FileList | undefined): void {
  const first = files?.[0];
  if (first !== undefined) void look(first, first.name);
}

file.onchange = () => {
  lookAt(file.files ?? undefined);
};
file.onclick = () => {
  file.value = ""; // so that the same file may be chosen again
};
webcam.onclick = () => (camera === null ? void watch() : stop());
document.onpaste = (event) => lookAt(event.clipboardData?.files);
document.ondragover = (event) => {
  event.preventDefault();
  document.body.classList.add("dragging");
};
document.ondragleave = (event) => {
  if (event.relatedTarget === null) document.body.classList.remove("dragging");
};
document.ondrop = (event) => {
  event.preventDefault();
  document.body.classList.remove("dragging");
  lookAt(event.dataTransfer?.files);
};
