// Writes dist/, a folder that any web server can serve: the page, the runtime, and the models, which models.py takes from
// the installed package. `npm run build -- STUDENT` takes another student than the newest bundled one; PYTHON is the
// interpreter that has ngd-timm.
import { execFileSync } from "node:child_process";
import { copyFileSync, mkdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const RUNTIME = "ort-wasm-simd-threaded.wasm";
const dist = fileURLToPath(new URL("dist/", import.meta.url));

rmSync(dist, { recursive: true, force: true });
mkdirSync(dist);
const python = process.env.PYTHON ?? "python3";
try {
  execFileSync(python, ["models.py", dist, ...process.argv.slice(2)], { stdio: "inherit", cwd: import.meta.dirname });
} catch {
  console.error(`models.py failed; it needs ngd-timm[onnx] in ${python} (PYTHON names another interpreter)`);
  process.exit(1);
}

copyFileSync(`node_modules/onnxruntime-web/dist/${RUNTIME}`, dist + RUNTIME);
const settings = JSON.parse(readFileSync(`${dist}settings.json`, "utf8"));
settings.runtime = { file: RUNTIME, bytes: statSync(dist + RUNTIME).size };
writeFileSync(`${dist}settings.json`, JSON.stringify(settings));

copyFileSync("src/style.css", `${dist}style.css`);
copyFileSync("README.md", `${dist}README.md`);
await build({
  entryPoints: ["src/page.ts"],
  outfile: `${dist}page.js`,
  bundle: true,
  minify: true,
  format: "esm",
  target: "es2022",
  legalComments: "external",
});
// last: a folder that has it is a finished page
const page = readFileSync("src/index.html", "utf8");
writeFileSync(`${dist}index.html`, page.replace("{{forbidden}}", settings.forbidden));
