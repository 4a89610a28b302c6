"""The page and the Space in headless Chromium: the answers of `ngd predict`, and no request to another machine."""

from __future__ import annotations

import functools
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pyarrow import parquet

from ngd_timm import Predictor

pytestmark = pytest.mark.browser
ROOT = Path(__file__).parent.parent
WIDTHS = {1280: 900, 390: 844}


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One face, upright or turned by EXIF, three, a small one in a large image, a crop, no face, no image."""
    folder = tmp_path_factory.mktemp("photographs")
    astronaut = Image.fromarray(pytest.importorskip("skimage.data").astronaut())
    astronaut.save(folder / "astronaut.png")
    astronaut.save(folder / "camera.mjpeg", format="JPEG", quality=95)
    exif = Image.Exif()
    exif[0x0112] = 6
    astronaut.transpose(Image.Transpose.ROTATE_90).save(folder / "turned.jpg", exif=exif, quality=95)
    head, three, x = astronaut.crop((130, 20, 320, 210)), Image.new("RGB", (1000, 500), (90, 120, 90)), 20
    for side in (60, 240, 120):
        three.paste(head.resize((round(190 * side / 113),) * 2), (x, 40))
        x += 30 + round(190 * side / 113)
    three.save(folder / "three.png")
    large = Image.new("RGB", (2400, 1200), (90, 120, 90))
    large.paste(head.resize((60, 60)), (1000, 500))
    large.save(folder / "small.png")
    astronaut.crop((160, 55, 280, 200)).convert("L").save(folder / "crop.png")
    Image.new("RGB", (256, 256), "grey").save(folder / "none.png")
    shutil.copy(ROOT / "hub" / "space" / "examples" / "drawn-faces.jpg", folder)
    (folder / "text.jpg").write_text("no image")
    return folder


@pytest.fixture(scope="module")
def browser(photographs: Path) -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install 'ngd-timm[browser]'")
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("no Chromium on this machine")
    camera = f"--use-file-for-fake-video-capture={photographs / 'camera.mjpeg'}"
    arguments = ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream", camera]
    with api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=arguments)
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page of a fresh browser; every request that it made went to this machine."""
    hosts: set[str] = set()
    with browser.new_context(permissions=["camera"]) as context:
        context.on("request", lambda request: hosts.add(re.sub(r"^(\w+:)(//([^/:]+))?.*", r"\1\3", request.url)))
        opened = context.new_page()
        opened.set_default_timeout(60_000)
        yield opened
    assert hosts <= {"http:127.0.0.1", "http:localhost", "data:", "blob:"}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of the built page, served by Python's own web server."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("no npm on this machine")
    folder = tmp_path_factory.mktemp("site") / "web"
    shutil.copytree(ROOT / "hub" / "web", folder, ignore=shutil.ignore_patterns("node_modules", "dist"))
    fetch = [npm, "ci", "--ignore-scripts", "--no-audit", "--fetch-retries=1"]
    fetched = subprocess.run(fetch, cwd=folder, capture_output=True, text=True)
    if fetched.returncode:
        pytest.skip(f"npm ci could not fetch the packages: {fetched.stderr.strip().splitlines()[0]}")
    env = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
    built = subprocess.run([npm, "run", "build"], cwd=folder, capture_output=True, text=True, env=env)
    assert built.returncode == 0, built.stdout + built.stderr
    handler = functools.partial(_Handler, directory=str(folder / "dist"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


class _Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments: Any) -> None:
        pass


def expect(page: Any, selector: str, pattern: str) -> None:
    from playwright.sync_api import expect

    expect(page.locator(selector)).to_have_text(re.compile(pattern), timeout=60_000)


def answers(page: Any) -> list[dict[str, float]]:
    row = "tr => [tr.cells[0].textContent, Number(tr.querySelector('data').value)]"
    face = f"li => Object.fromEntries([...li.querySelectorAll('tr')].map({row}))"
    return page.eval_on_selector_all("#faces li", f"items => items.map({face})")


def shoot(page: Any, name: str, folder: Path) -> None:
    """Screenshots at both widths, to the folder that NGD_SCREENSHOTS names; nothing reaches beyond the screen."""
    folder = Path(os.environ.get("NGD_SCREENSHOTS", folder))
    for width, height in WIDTHS.items():
        page.set_viewport_size({"width": width, "height": height})
        page.wait_for_timeout(500)
        page.screenshot(path=folder / f"{name}-{width}.png", full_page=True)
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_the_page_predicts_what_the_shell_predicts(
    page: Any, site: str, photographs: Path, tmp_path: Path, ngd: Callable[..., Any]
) -> None:
    names = ("astronaut.png", "turned.jpg", "three.png", "drawn-faces.jpg", "small.png", "crop.png", "none.png")
    shell = json.loads(ngd("predict", "--json", *(str(photographs / name) for name in names)).stdout)
    assert [len(photo["faces"]) for photo in shell] == [1, 1, 3, 3, 1, 1, 0]
    page.goto(site)
    expect(page, "#status", "Ready")
    for name, photo in zip(names, shell, strict=True):
        page.set_input_files("#file", photographs / name)
        expect(page, "#status", {0: "No face found", 1: "^1 face:"}.get(len(photo["faces"]), "3 faces:"))
        # boxes differ by up to a pixel, which a drawn face's probabilities may feel
        near = 0.05 if name == "drawn-faces.jpg" else 0.01
        for got, face in zip(answers(page), photo["faces"], strict=True):
            assert got == pytest.approx(face["probabilities"], abs=near), name
        if name in ("astronaut.png", "drawn-faces.jpg"):
            shoot(page, f"page-{Path(name).stem}", tmp_path)


@pytest.mark.skipif("NGD_DATA" not in os.environ, reason="NGD_DATA does not name a folder with diffusionfer/ in it")
def test_the_page_and_the_shell_agree_on_faces_by_themselves_and_within_photographs(
    page: Any, site: str, tmp_path: Path
) -> None:
    page.goto(site)
    expect(page, "#status", "Ready")
    predictor, differences = Predictor(), []
    for file in _generated_faces(tmp_path):
        shell = predictor.photo(file)
        page.set_input_files("#file", file)
        expect(page, "#status", f"^{len(shell)} face" if shell else "No face found")
        for got, face in zip(answers(page) if shell else [], shell, strict=True):
            differences.append(max(abs(got[name] - p) for name, p in face.probabilities.items()))
            assert max(got, key=got.__getitem__) == face.label
    within = np.mean(np.array(differences) < 0.01)
    print(f"{len(differences)} faces: {within:.1%} within .01, median {np.median(differences):.5f}", max(differences))
    assert len(differences) >= 100
    assert within > 0.98
    assert max(differences) < 0.05


def _generated_faces(folder: Path) -> Iterator[Path]:
    """Every 25th image of DiffusionFER, and it again at a random size within a photograph of 1,200 x 900 pixels."""
    data, rng = Path(os.environ["NGD_DATA"]) / "diffusionfer" / "all.parquet", np.random.default_rng(0)
    for i, row in enumerate(parquet.read_table(data, columns=["image"])["image"].to_pylist()[::25]):
        (folder / f"{i}.png").write_bytes(row["bytes"])
        yield folder / f"{i}.png"
        tiles = rng.integers(60, 200, (9, 12, 3), dtype=np.uint8)
        photo, side = Image.fromarray(tiles).resize((1200, 900), Image.Resampling.NEAREST), rng.integers(90, 420)
        with Image.open(folder / f"{i}.png") as face:
            photo.paste(face.resize((side, side)), (int(rng.integers(0, 700)), int(rng.integers(0, 400))))
        photo.save(folder / f"{i}.jpg", quality=92)
        yield folder / f"{i}.jpg"


def test_a_text_file_that_is_named_jpg_gives_one_line_and_the_page_goes_on(
    page: Any, site: str, photographs: Path
) -> None:
    page.goto(site)
    page.set_input_files("#file", photographs / "text.jpg")
    expect(page, "#error", "^text.jpg: not an image that this browser can read$")
    assert page.locator("#result").is_hidden()
    page.set_input_files("#file", photographs / "astronaut.png")
    expect(page, "#status", "^1 face: happiness")
    expect(page, "#error", "^$")


def test_the_page_is_used_by_keyboard_paste_drop_and_webcam(page: Any, site: str, photographs: Path) -> None:
    page.goto(site)
    expect(page, "#status", "Ready")
    for _ in range(3):  # past the file and the webcam, to the first example
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page, "#status", "^1 face: happiness")
    event = """async ([kind, name, key]) => {
        const data = new DataTransfer();
        data.items.add(new File([await (await fetch("examples/" + name)).blob()], name));
        const Event = kind === "paste" ? ClipboardEvent : DragEvent;
        document.body.dispatchEvent(new Event(kind, {[key]: data, bubbles: true, cancelable: true}));
    }"""
    page.evaluate(event, ["paste", "drawn-faces.jpg", "clipboardData"])
    expect(page, "#status", "^3 faces: happiness")
    page.evaluate(event, ["drop", "astronaut.jpg", "dataTransfer"])
    expect(page, "#status", "^1 face: happiness")
    page.reload()
    page.click("#webcam")
    expect(page, "#status", "^1 face: happiness")
    page.click("#webcam")
    expect(page, "#webcam", "Use the webcam")
    page.wait_for_timeout(1000)
    assert page.inner_text("#error") == ""
    assert page.is_visible("#result")


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path, int]]:
    """The Gradio Space, run by this interpreter: its URL, the folder of uploads, which go soon, its process."""
    pytest.importorskip("gradio", reason="needs Gradio: pip install 'ngd-timm[browser]'")
    kept = tmp_path_factory.mktemp("kept")
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'hub' / 'space'}", "PYTHONUNBUFFERED": "1"}
    code = "import app; app.KEPT = 3; app.launch()"
    env |= {"GRADIO_TEMP_DIR": str(kept)}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=env) as process:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        url = next(found[0] for line in lines if (found := re.search(r"http://127.0.0.1:\d+", line)))
        yield url, kept, process.pid
        process.terminate()


def test_the_space_predicts_what_the_shell_predicts(
    page: Any, space: tuple[str, Path, int], photographs: Path, tmp_path: Path
) -> None:
    page.goto(space[0])
    page.set_input_files("input[type=file]", photographs / "three.png")
    expect(page, "#answer", r"^\s*(happiness 100 %; valence \+0\.76, arousal \+0\.48\s*){3}$")
    page.wait_for_timeout(1000)
    shoot(page, "space", tmp_path)
    assert "What it must not be used for" in page.inner_text("body")


def peak_memory(process: int) -> int:
    """Bytes, at the most so far."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())
    assert found is not None
    return 1024 * int(found[1])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="this system has no /proc to read memory from")
def test_the_space_stands_what_strangers_send(space: tuple[str, Path, int], photographs: Path, tmp_path: Path) -> None:
    client = pytest.importorskip("gradio_client")
    (url, kept, process), send = space, tmp_path / "send"
    send.mkdir()
    api = client.Client(url, verbose=False)

    def answer(name: str) -> str:
        try:
            return str(api.predict(client.handle_file(str(send / name)), api_name="/predict")[3])
        except Exception as error:
            return f"{type(error).__name__}: {error}"

    three = Image.open(photographs / "three.png")
    for number in range(50):
        three.rotate(number / 50).save(send / f"{number}.jpg")
    (send / "large.jpg").write_bytes(b"x" * 100_000_000)
    (send / "text.jpg").write_text("no image")
    (send / "cut.jpg").write_bytes((send / "0.jpg").read_bytes()[:3000])
    Image.new("L", (20_000, 20_000)).save(send / "bomb.png")
    Image.new("L", (7_000, 7_000)).save(send / "wide.png")
    (send / "page.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>")
    assert "happiness" in answer("0.jpg")
    usual = peak_memory(process)
    assert "exceeds the maximum file size" in answer("large.jpg")
    assert "more than 50 megapixels" in answer("bomb.png")
    assert "cut.jpg is not a readable image" in answer("cut.jpg")
    assert "page.svg is not a readable image" in answer("page.svg")
    assert answer("text.jpg").startswith("AppError: ")
    assert answer("wide.png") == "No face found."
    deadline = time.monotonic() + 8  # over and over for more than the time after which it goes
    while time.monotonic() < deadline:
        with ThreadPoolExecutor(3) as strangers:
            assert all("happiness" in text for text in strangers.map(answer, ["0.jpg"] * 6))
    assert peak_memory(process) < usual + 1e9
    with ThreadPoolExecutor(50) as strangers:
        replies = list(strangers.map(answer, [f"{number}.jpg" for number in range(50)]))
    answered, busy = (sum(word in text for text in replies) for word in ("happiness", "Queue is full"))
    assert (answered + busy, answered >= 20) == (50, True), replies
    assert "happiness" in answer("0.jpg")
    assert peak_memory(process) < usual + 1e9
    deadline = time.monotonic() + 10
    seen = {f"{number}.jpg" for number, text in enumerate(replies) if "happiness" in text}
    while left := {file.name for file in kept.rglob("*") if file.is_file()} & seen:
        assert time.monotonic() < deadline, left
        time.sleep(0.2)
