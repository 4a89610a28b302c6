"""Grids and students to the Hub and back: the real client, real HTTP, a server on loopback, and its faults."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from hub_server import HubServer, client_env, client_here, run_client

import ngd_timm
from ngd_timm import PrototypeGrid, load_run, wrap
from ngd_timm.core.affect import CLASSES
from ngd_timm.core.errors import InputError
from ngd_timm.core.hub import HubId, fetch, hub_id, pin
from ngd_timm.core.recipe import Recipe, load_recipe
from ngd_timm.data.synthetic.schematic import draw_face
from ngd_timm.evaluate.student import evaluate
from ngd_timm.experiments.ablation import ablate
from ngd_timm.models.kd_teacher import KDTeacher
from ngd_timm.models.student import load_student, open_student, save_student
from ngd_timm.publish.push import packaged_artifacts, push_run, stage_run
from ngd_timm.train.loop import resume, train

NGD = "import sys; from ngd_timm.cli import main; sys.argv[0] = 'ngd'; main()"


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer() as server:
        server.add_token("hf_ann", "ann", ["lab"])
        server.add_token("hf_bob", "bob")
        yield server


@pytest.fixture
def here(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    """The server, with this process logged in to it as ann."""
    client_here(monkeypatch, hub, tmp_path / "home", "hf_ann")
    return hub


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Nobody waits between tries; what they would have waited, in seconds."""
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    return waited


@pytest.fixture(scope="module")
def run(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe = Recipe.model_validate(
        {
            "name": "tiny",
            "out": str(tmp_path_factory.mktemp("home of anna") / "run"),
            "student": {"backbone": "test_resnet", "image_size": 32},
            "data": {"name": "schematic", "root": str(faces), "workers": 0},
            "grid": "gameemo-v2",
            "loss": {"proto_kd": 0.2, "tau": 0.1, "d_geo": 0.05, "ramp": [0, 1]},
            "optim": {"epochs": 1, "batch_size": 16, "lr": 1e-3},
            "eval": {"schematic": f"{faces}:test"},
        }
    )
    return train(recipe)


def said(excinfo: pytest.ExceptionInfo[InputError]) -> str:
    line = str(excinfo.value)
    assert "\n" not in line
    return line


# ------------------------------------------------------------------ names


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("user/grid", HubId("user/grid")),
        ("hf-hub:user/grid@v1.2", HubId("user/grid", "v1.2")),
        ("user/grid@refs/pr/3", HubId("user/grid", "refs/pr/3")),
        ("gameemo-v2", None),
        ("runs/b0_ce-0/grid.safetensors", None),
        ("a/b/c", None),
        ("/home/anna", None),
        ("C:\\anna\\grid", None),
        ("../grid", None),
    ],
)
def test_a_hub_id_is_told_from_a_path_and_a_name(text: str, expected: HubId | None) -> None:
    assert hub_id(text) == expected


def test_a_path_that_exists_is_never_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "b0").mkdir(parents=True)
    assert hub_id("runs/b0") is None
    assert hub_id("runs/b1") is None  # a slip, and not somebody called runs
    assert hub_id("hf-hub:runs/b0") == HubId("runs/b0")


@pytest.mark.parametrize("text", ["hf-hub:grid", "hf-hub:user/grid@", "hf-hub:a b/c", "hf-hub:../x"])
def test_the_prefix_before_anything_else_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="no repository on the Hub"):
        hub_id(text)


# ------------------------------------------------------------------ there and back, in processes of their own


def test_a_grid_goes_there_and_back_between_processes_and_from_the_cache_without_the_network(
    hub: HubServer, tmp_path: Path
) -> None:
    out = tmp_path / "pulled.safetensors"
    done = run_client(NGD, client_env(hub, tmp_path / "w", "hf_ann"), "prototypes", "push", "gameemo-v2", "ann/grid")
    assert done.returncode == 0, done.stderr
    commit = hub.repo("ann/grid").head().oid
    assert f"hf-hub:ann/grid@{commit}" in done.stdout
    assert PrototypeGrid.default("gameemo-v2").sha256 in done.stdout
    assert hub.seen("PUT ")  # the grid went as a large file

    reader = client_env(hub, tmp_path / "r")
    pulled = run_client(NGD, reader, "prototypes", "pull", "ann/grid", "--out", out)
    assert pulled.returncode == 0, pulled.stderr
    assert f"from hf-hub:ann/grid@{commit}" in pulled.stdout
    assert PrototypeGrid.load(out).sha256 == PrototypeGrid.default("gameemo-v2").sha256

    asked = len(hub.requests)
    again = run_client(NGD, {**reader, "HF_HUB_OFFLINE": "1"}, "prototypes", "pull", "ann/grid", "--out", out)
    assert again.returncode == 0, again.stderr
    assert len(hub.requests) == asked


READER = """
import sys, torch
sys.modules["ngd_timm"] = None
exec(sys.argv[1])
assert "ngd_timm" not in {name.partition(".")[0] for name, module in sys.modules.items() if module is not None}
torch.save({"logits": logits, "images": transform(face)[None]}, sys.argv[2])
"""


def test_a_student_is_read_by_the_code_on_its_card_with_timm_alone_and_its_logits_are_bit_equal(
    hub: HubServer, run: Path, tmp_path: Path
) -> None:
    done = run_client(NGD, client_env(hub, tmp_path / "w", "hf_ann"), "push", run, "ann/student")
    assert done.returncode == 0, done.stderr
    card = hub.repo("ann/student").files()["README.md"].decode()
    code = re.findall(r"```python\n(.*?)```", card, re.S)[0]
    draw_face("happiness", seed=3, image_size=50).save(tmp_path / "face.png")
    code = code.replace("face.png", str(tmp_path / "face.png"))

    reader = client_env(hub, tmp_path / "r")
    first = run_client(READER, reader, code, tmp_path / "online.pt")
    assert first.returncode == 0, first.stderr
    asked = len(hub.requests)
    second = run_client(READER, {**reader, "HF_HUB_OFFLINE": "1"}, code, tmp_path / "offline.pt")
    assert second.returncode == 0, second.stderr
    assert len(hub.requests) == asked

    student, classes = open_student(run)
    for name in ("online.pt", "offline.pt"):
        read = torch.load(tmp_path / name, weights_only=True)
        with torch.no_grad():
            assert torch.equal(student(read["images"])[0], read["logits"])
        assert first.stdout.strip() == classes[int(read["logits"].argmax())]


def test_two_processes_that_pull_at_once_both_get_the_whole_grid(hub: HubServer, tmp_path: Path) -> None:
    stage = packaged_artifacts("ann")["ann/gameemo-v2"]
    (tmp_path / "grid").mkdir()
    stage(tmp_path / "grid")
    hub.put("ann/grid", {p.name: p.read_bytes() for p in (tmp_path / "grid").iterdir()})
    hub.fault("GET .*grid.safetensors|GET /cdn", delay=0.5, times=None)
    env = client_env(hub, tmp_path / "home")
    results: list[subprocess.CompletedProcess[str]] = []
    pulls = [
        threading.Thread(
            target=lambda i=i: results.append(
                run_client(NGD, env, "prototypes", "pull", "ann/grid", "--out", tmp_path / f"{i}.safetensors")
            )
        )
        for i in range(2)
    ]
    for pull in pulls:
        pull.start()
    for pull in pulls:
        pull.join()
    assert [done.returncode for done in results] == [0, 0], [done.stderr for done in results]
    for i in range(2):
        assert PrototypeGrid.load(tmp_path / f"{i}.safetensors").sha256 == PrototypeGrid.default("gameemo-v2").sha256
    assert not list((tmp_path / "home").rglob("*.incomplete"))


@pytest.mark.skipif(shutil.which("unshare") is None, reason="a small disk is mounted in a namespace of its own")
def test_a_full_disk_is_one_line_and_leaves_no_half_student_in_use(hub: HubServer, run: Path, tmp_path: Path) -> None:
    push = run_client(NGD, client_env(hub, tmp_path / "w", "hf_ann"), "push", run, "ann/student")
    assert push.returncode == 0, push.stderr
    small = tmp_path / "small"
    small.mkdir()
    env = client_env(hub, small)
    probe = subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", small], check=False)
    if probe.returncode:
        pytest.skip("this machine does not let a process mount a small disk")
    code = (
        "import sys\nfrom ngd_timm import load_run\nfrom ngd_timm.core.errors import InputError\n"
        "try:\n    load_run('ann/student')\nexcept InputError as error:\n    print(error)\n"
        "from pathlib import Path\nprint([p.name for p in Path(sys.argv[1]).rglob('model.safetensors')])"
    )
    (tmp_path / "code.py").write_text(code)
    shell = f'mount -t tmpfs -o size=1m tmpfs "{small}" && exec "{sys.executable}" "{tmp_path}/code.py" "{small}"'
    done = subprocess.run(["unshare", "-rm", "sh", "-c", shell], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    line, found = done.stdout.strip().split("\n")
    assert line.startswith("hf-hub:ann/student: no space left on the disk")
    assert found == "[]"


# ------------------------------------------------------------------ what goes up


def test_nothing_that_goes_up_names_a_folder_of_anybodys_disk(run: Path, tmp_path: Path, faces: Path) -> None:
    stage_run(load_run(run), tmp_path, "ann/student")
    names = {p.name for p in tmp_path.iterdir()}
    assert names == {
        "README.md",
        "LICENSE",
        "config.json",
        "model.safetensors",
        "recipe.yaml",
        "fingerprint.json",
        "metrics.json",
        "grid.safetensors",
        "grid.png",
    }
    for file in tmp_path.iterdir():
        data = file.read_bytes()
        for folder in (b"anna", str(faces.parent).encode(), b"/tmp", str(Path.home()).encode() + b"/"):
            assert folder not in data, f"{file.name} names {folder.decode()}"


def test_the_students_card_carries_both_protocols_with_intervals_the_grid_and_the_terms(
    run: Path, tmp_path: Path
) -> None:
    opened = load_run(run)
    stage_run(opened, tmp_path, "ann/student")
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    header = yaml.safe_load(card.split("---")[1])
    assert (header["license"], header["library_name"], header["pipeline_tag"]) == (
        "other",
        "timm",
        "image-classification",
    )
    results = header["model-index"][0]["results"]
    assert [r["dataset"]["split"] for r in results] == ["valid", "test"]
    for result, entry in zip(results, opened.metrics.values(), strict=True):
        for i, protocol in enumerate(("8way", "present")):
            for metric, figure in zip(("acc", "macro_f1", "bacc"), result["metrics"][3 * i : 3 * i + 3], strict=True):
                assert figure["value"] == round(entry[protocol][metric], 2)
                assert figure["args"]["ci95"] == [round(x, 2) for x in entry["ci95"][protocol][metric]]
    assert opened.grid is not None
    for words in (opened.grid.sha256, "arXiv 2509.11916", "Mantel r", "![", "EU AI Act", "tau=0.1", "test_resnet"):
        assert words in card
    assert "| happiness |" in card
    licence = (tmp_path / "LICENSE").read_text(encoding="utf-8")
    assert "GAMEEMO" in licence
    assert "for research" in licence


def test_the_hashes_that_go_up_are_those_of_the_files(run: Path, tmp_path: Path) -> None:
    import hashlib

    stage_run(load_run(run), tmp_path, "ann/student")
    hashes = json.loads((tmp_path / "fingerprint.json").read_text())["sha256"]
    assert set(hashes) == {"config.json", "model.safetensors", "recipe.yaml", "metrics.json", "grid.safetensors"}
    for name, sha256 in hashes.items():
        assert hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() == sha256


def test_a_grid_that_may_show_one_person_is_not_published(tmp_path: Path, here: HubServer) -> None:
    import numpy as np

    rng = np.random.default_rng(0)
    loose = PrototypeGrid.build(
        rng.standard_normal((40, 8)), rng.uniform(-1, 1, (40, 2)), np.arange(40) % 20, metadata={"dataset": "ours"}
    )
    with pytest.raises(InputError, match="fewer than 3 people") as few:
        loose.push_to_hub("ann/grid")
    said(few)
    with pytest.raises(InputError, match="control"):
        PrototypeGrid.random(8).push_to_hub("ann/grid")
    with pytest.raises(InputError, match="whose data"):
        PrototypeGrid.build(np.eye(3), np.array([[-1, -1], [1, 1], [0, 0]])).push_to_hub("ann/grid")
    assert here.requests == []


def test_a_grid_built_by_hand_is_published_with_a_card_that_says_what_is_not_known(here: HubServer) -> None:
    import numpy as np

    rng = np.random.default_rng(0)
    who, va = np.repeat(np.arange(6), 25), np.tile(PrototypeGrid.random(2).centers.numpy(), (6, 1))
    notes = {"dataset": "our lab's recordings, /home/anna/eeg/a.bdf"}
    mine = PrototypeGrid.build(rng.standard_normal((150, 8)), va, who, min_subjects=3, metadata=notes)
    done = mine.push_to_hub("lab/grid", private=True)
    files = here.repo("lab/grid").files()
    assert here.repo("lab/grid").private
    assert done.commit == here.repo("lab/grid").head().oid
    assert "not recorded in the file" in files["README.md"].decode()
    assert 'from_pretrained("lab/grid")' in files["README.md"].decode()
    assert b"anna" not in b"".join(files.values())
    assert PrototypeGrid.from_pretrained("lab/grid").sha256 == mine.sha256


def test_a_dry_run_and_a_folder_ask_nothing_of_the_hub(
    here: HubServer, run: Path, tmp_path: Path, ngd: Callable[..., Any]
) -> None:
    for arguments in (
        ("push", str(run), "ann/student", "--dry-run"),
        ("push", str(run), "ann/student", "--folder", str(tmp_path / "staged")),
        ("prototypes", "push", "gameemo-v2", "ann/grid", "--dry-run"),
        ("publish", "--dry-run"),
    ):
        assert ngd(*arguments).returncode == 0
    assert (tmp_path / "staged" / "model.safetensors").is_file()
    assert here.requests == []
    refused = ngd("push", str(run), "ann/student", "--folder", str(tmp_path / "staged"))
    assert refused.returncode == 2
    assert "is not empty" in refused.stderr


def test_one_command_publishes_every_packaged_grid_and_student_under_one_name(
    here: HubServer, ngd: Callable[..., Any]
) -> None:
    done = ngd("publish", "--namespace", "lab")
    assert done.returncode == 0, done.stderr
    for version in ("gameemo-v1", "gameemo-v2"):
        assert PrototypeGrid.from_pretrained(f"lab/{version}").sha256 == PrototypeGrid.default(version).sha256
        assert f'from_pretrained("lab/{version}")' in here.repo(f"lab/{version}").files()["README.md"].decode()
    pulled, shipped = open_student("lab/student-ferplus-v1")[0], load_student("student-ferplus-v1")
    assert all(torch.equal(pulled.state_dict()[name], value) for name, value in shipped.state_dict().items())


def test_a_branch_is_made_and_a_pull_request_is_opened_on_request(here: HubServer) -> None:
    grid = PrototypeGrid.default("gameemo-v1")
    grid.push_to_hub("ann/grid", revision="trial", commit_message="A trial")
    assert "grid.safetensors" not in here.repo("ann/grid").files()
    assert here.repo("ann/grid").head("trial").message == "A trial"
    opened = PrototypeGrid.default("gameemo-v2").push_to_hub("ann/grid", create_pr=True)
    assert "/discussions/" in opened.url
    assert PrototypeGrid.from_pretrained("ann/grid", revision="refs/pr/1").sha256 != grid.sha256
    assert PrototypeGrid.from_pretrained("ann/grid@trial").sha256 == grid.sha256


def test_further_figures_go_on_the_card_but_never_twice(run: Path, tmp_path: Path, faces: Path) -> None:
    more = evaluate(run, [f"schematic={faces}:train"])
    stage_run(load_run(run), tmp_path / "a", "ann/student", more)
    assert "| schematic:train | majority | 48 |" in (tmp_path / "a" / "README.md").read_text(encoding="utf-8")
    with pytest.raises(InputError, match="schematic:valid is in the run"):
        stage_run(load_run(run), tmp_path / "b", "ann/student", load_run(run).metrics)


def test_figures_of_another_student_are_refused_and_older_ones_taken_aloud(
    run: Path, tmp_path: Path, faces: Path, ngd: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    other = Path(shutil.copytree(run / "student", tmp_path / "other"))
    student = timm.create_model(f"local-dir:{other}", pretrained=True)
    torch.nn.init.zeros_(student.fc.bias)
    save_student(student, other, open_student(run)[1])
    more = tmp_path / "test.json"
    evaluate(other, [f"schematic={faces}:train"], more, drop_duplicates=False)
    push = ("push", str(run), "ann/student", "--metrics", str(more), "--folder", str(tmp_path / "staged"))
    done = ngd(*push)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert f"ngd: {more}: schematic:train is about another student" in done.stderr
    assert not (tmp_path / "staged").exists()
    entries = json.loads(more.read_text())
    with pytest.raises(InputError, match="the further metrics: schematic:train is about another student"):
        stage_run(load_run(run), tmp_path / "staged", "ann/student", entries)
    del entries["schematic:train"]["student_sha256"]
    more.write_text(json.dumps(entries))
    assert ngd(*push).returncode == 0
    assert [r.getMessage() for r in caplog.records if r.levelname == "WARNING"] == [
        "the figures of schematic:train don't say of which student they are; taken for this one's"
    ]
    card = (tmp_path / "staged" / "README.md").read_text(encoding="utf-8")
    assert card.count("copies of training pictures kept") == 1


# ------------------------------------------------------------------ what comes back


def test_a_run_comes_back_whole_and_trains_on(here: HubServer, run: Path, faces: Path, tmp_path: Path) -> None:
    local = load_run(run)
    done = push_run(local, "ann/student")
    back = load_run("ann/student")
    assert back.source == f"hf-hub:ann/student@{done.commit}"
    assert back.metrics == local.metrics
    assert back.recipe.loss == local.recipe.loss
    assert list(local.predictions) == list(local.metrics)
    assert [row["epoch"] for row in local.rows] == ["0"]
    assert back.predictions == {}
    with pytest.raises(InputError, match=r"summary\.csv is missing"):
        _ = back.rows
    assert back.grid is not None
    assert local.grid is not None
    assert back.grid.sha256 == local.grid.sha256
    for name, tensor in local.student.state_dict().items():
        assert torch.equal(back.student.state_dict()[name], tensor)
    logits, embedding = wrap(back.student, grid=back.grid)(torch.randn(2, 1, 32, 32), return_embedding=True)
    assert logits.shape == (2, 8)
    assert embedding.shape == (2, back.grid.dim)
    assert evaluate("ann/student", [f"schematic={faces}:test"])["schematic:test"] == local.metrics["schematic:test"]


def test_the_readmes_lines_about_the_hub_run_when_pasted(here: HubServer, run: Path) -> None:
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    (block,) = [code for code in re.findall(r"```python\n(.*?)```", readme, flags=re.S) if '"user/' in code]
    here.add_token("hf_user", "user")
    PrototypeGrid.default().push_to_hub("user/my-grid", revision="v1", token="hf_user")
    push_run(load_run(run), "user/my-student", token="hf_user")
    names: dict[str, Any] = {"ngd_timm": ngd_timm, "timm": timm}
    exec(compile(block, "README.md", "exec"), names)
    assert torch.equal(names["student"].fc.weight, names["run"].student.fc.weight)


def test_a_recipes_hub_ids_are_pinned_and_a_resumed_run_gets_the_same_bytes(
    here: HubServer, run: Path, faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    PrototypeGrid.default("gameemo-v2").push_to_hub("ann/grid")
    push_run(load_run(run), "ann/student")
    commits = {name: here.repo(f"ann/{name}").head().oid for name in ("grid", "student")}
    recipe = Recipe.model_validate(
        {
            "name": "pinned",
            "out": str(tmp_path / "run"),
            "student": {"backbone": "test_resnet", "image_size": 32},
            "data": {"name": "schematic", "root": str(faces), "workers": 0},
            "grid": "ann/grid",
            "teacher": "ann/student",
            "init": "hf-hub:ann/student@main",
            "loss": {"kd": 0.3, "proto_kd": 0.2},
            "optim": {"epochs": 2, "batch_size": 16},
        }
    )
    out = train(recipe)
    written = load_recipe(Recipe, out / "recipe.yaml")
    student = f"hf-hub:ann/student@{commits['student']}"
    assert (written.grid, written.teacher, written.init) == (f"hf-hub:ann/grid@{commits['grid']}", student, student)
    fingerprint = json.loads((out / "fingerprint.json").read_text())
    assert fingerprint["hub"] == {"grid": written.grid, "teacher": student, "init": student}
    assert fingerprint["grid"] == PrototypeGrid.default("gameemo-v2").sha256
    PrototypeGrid.default("gameemo-v1").push_to_hub("ann/grid")
    shutil.rmtree(out / "last")
    weights = (out / "student" / "model.safetensors").read_bytes()
    asked = len(here.requests)
    resume(out)
    assert (out / "student" / "model.safetensors").read_bytes() == weights
    assert len(here.requests) == asked


def test_a_pinned_commit_gives_those_bytes_or_an_error(here: HubServer) -> None:
    PrototypeGrid.default("gameemo-v1").push_to_hub("ann/grid")
    pinned = pin("ann/grid", "grid.safetensors")
    PrototypeGrid.default("gameemo-v2").push_to_hub("ann/grid")
    assert PrototypeGrid.from_spec(pinned).sha256 == PrototypeGrid.default("gameemo-v1").sha256
    assert PrototypeGrid.from_spec("ann/grid").sha256 == PrototypeGrid.default("gameemo-v2").sha256
    with pytest.raises(InputError, match="no revision") as excinfo:
        PrototypeGrid.from_pretrained("ann/grid@" + "0" * 40)
    assert "ann/grid" in said(excinfo)


def test_a_repository_of_pickles_is_refused(here: HubServer, tmp_path: Path) -> None:
    here.put("bob/old", {"config.json": b"{}", "pytorch_model.bin": b"\x80\x04K\x01."})
    with pytest.raises(InputError, match=r"pytorch_model.bin.* never loaded") as excinfo:
        open_student("bob/old")
    said(excinfo)
    with pytest.raises(InputError, match=r"holds no grid\.safetensors"):
        PrototypeGrid.from_pretrained("bob/old")
    assert not here.seen("GET /bob/old/resolve/.*bin")


def test_a_student_that_is_not_the_one_that_was_pushed_is_refused(here: HubServer, run: Path, tmp_path: Path) -> None:
    push_run(load_run(run), "ann/student")
    other = timm.create_model("test_resnet", num_classes=8, in_chans=1)
    timm.models.save_for_hf(other, str(tmp_path), safe_serialization=True)
    here.put("ann/student", {"model.safetensors": (tmp_path / "model.safetensors").read_bytes()})
    for read in (load_run, open_student):
        with pytest.raises(InputError, match=r"model.safetensors is not the file that was pushed") as excinfo:
            read("ann/student")
        said(excinfo)


def test_a_teacher_of_the_hub_teaches_what_its_run_teaches(
    here: HubServer, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = ["student.logit_adjustment=0.5", "loss.class_weights=none", f"out={tmp_path / 'adjusted'}"]
    recipe = load_recipe(Recipe, run / "recipe.yaml", changes)
    adjusted = train(recipe)
    push_run(load_run(adjusted), "ann/teacher")
    open_student("ann/teacher")  # leaves the cache without recipe.yaml
    images = torch.randn(4, 1, 32, 32)
    with monkeypatch.context() as offline:
        offline.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        with pytest.raises(InputError, match=r"recipe\.yaml, which says how its logits were adjusted") as excinfo:
            KDTeacher.open("ann/teacher", CLASSES, (0.5,), (0.25,))
        said(excinfo)
    teacher, local = (KDTeacher.open(of, CLASSES, (0.5,), (0.25,)) for of in ("ann/teacher", adjusted))
    assert teacher.adjustments == local.adjustments == (0.5,)
    assert torch.equal(teacher(images), local(images))
    written = (adjusted / "recipe.yaml").read_text(encoding="utf-8")
    here.put("ann/teacher", {"recipe.yaml": written.replace("adjustment: 0.5", "adjustment: 2.0").encode()})
    with pytest.raises(InputError, match=r"recipe\.yaml is not the file that was pushed"):
        KDTeacher.open("ann/teacher", CLASSES, (0.5,), (0.25,))


def test_a_run_of_a_later_format_asks_for_an_upgrade(here: HubServer, run: Path) -> None:
    push_run(load_run(run), "ann/student")
    fingerprint = json.loads(here.repo("ann/student").files()["fingerprint.json"])
    here.put("ann/student", {"fingerprint.json": json.dumps({**fingerprint, "format_version": "2"}).encode()})
    with pytest.raises(InputError, match="upgrade ngd-timm"):
        load_run("ann/student")


def test_a_grid_of_another_format_on_the_hub_is_refused_by_its_repository_and_not_by_a_place_in_the_cache(
    here: HubServer, tmp_path: Path
) -> None:
    from safetensors.torch import save_file

    save_file({"prototypes": torch.zeros(25, 4)}, str(tmp_path / "grid.safetensors"))
    here.put("bob/odd", {"grid.safetensors": (tmp_path / "grid.safetensors").read_bytes()})
    with pytest.raises(InputError, match="not a prototype grid") as excinfo:
        PrototypeGrid.from_pretrained("bob/odd")
    assert said(excinfo).startswith("hf-hub:bob/odd@")
    assert str(tmp_path) not in said(excinfo)


# ------------------------------------------------------------------ faults


GRID = "resolve/main/grid.safetensors"


@pytest.fixture
def served(here: HubServer, tmp_path: Path) -> HubServer:
    """A server that holds bob/grid, which this process may read."""
    packaged_artifacts("bob")["bob/gameemo-v2"](tmp_path / "made")
    here.put("bob/grid", {p.name: p.read_bytes() for p in (tmp_path / "made").iterdir()})
    return here


@pytest.mark.parametrize(
    "fault",
    [
        {"match": GRID, "status": 429, "times": 2, "headers": {"Retry-After": "7"}},
        {"match": GRID, "status": 500},
        {"match": GRID, "status": 503, "times": 2},
        {"match": GRID, "drop": True},
        {"match": "GET .*cdn", "status": 500},
        {"match": "GET .*cdn", "after_bytes": 5000},
        {"match": "GET .*cdn", "after_bytes": 5000, "reset": True},
        {"match": "GET .*cdn", "truncate": 5000},
        {"match": "GET .*cdn", "alter": True},
    ],
    ids=lambda fault: " ".join(f"{k}={v}" for k, v in fault.items() if k not in ("match", "headers")),
)
def test_a_fault_that_passes_ends_in_the_right_grid(
    served: HubServer, waits: list[float], fault: dict[str, Any]
) -> None:
    struck = served.fault(**fault)
    assert PrototypeGrid.from_pretrained("bob/grid").sha256 == PrototypeGrid.default("gameemo-v2").sha256
    assert struck.hits
    if "headers" in fault:
        assert max(waits) >= 7


@pytest.mark.parametrize(
    ("fault", "line"),
    [
        ({"match": GRID, "status": 429}, "answered 429"),
        ({"match": GRID, "status": 500}, "answered 500"),
        ({"match": GRID, "drop": True}, "no whole answer"),
        ({"match": "GET .*cdn", "status": 500}, "answered 500"),
        ({"match": "GET .*cdn", "after_bytes": 0}, "no whole answer"),
        ({"match": "GET .*cdn", "truncate": 5000}, "no whole answer"),
        ({"match": "GET .*cdn", "alter": True}, "does not match its hash"),
    ],
    ids=lambda given: " ".join(f"{k}={v}" for k, v in given.items() if k != "match") if isinstance(given, dict) else "",
)
def test_a_fault_that_stays_ends_in_one_line_and_with_nothing_half_in_the_cache(
    served: HubServer, waits: list[float], fault: dict[str, Any], line: str, tmp_path: Path
) -> None:
    struck = served.fault(**fault, times=None)
    with pytest.raises(InputError, match=line) as excinfo:
        PrototypeGrid.from_pretrained("bob/grid")
    assert said(excinfo).startswith("hf-hub:bob/grid: ")
    struck.stop()
    assert PrototypeGrid.from_pretrained("bob/grid").sha256 == PrototypeGrid.default("gameemo-v2").sha256


def test_a_wrong_token_a_missing_right_a_missing_repository_and_a_missing_revision_are_told_apart(
    served: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = PrototypeGrid.default("gameemo-v2")
    cases: list[tuple[Callable[[], object], str]] = [
        (lambda: PrototypeGrid.from_pretrained("bob/grid", token="hf_wrong"), "token is not valid"),
        (lambda: grid.push_to_hub("ann/grid", token="hf_wrong"), "token is not valid"),
        (lambda: grid.push_to_hub("bob/grid"), "your token may not do this"),
        (lambda: PrototypeGrid.from_pretrained("bob/nothing"), "no such repository"),
        (lambda: PrototypeGrid.from_pretrained("bob/grid@v9"), "no revision 'v9'"),
        (lambda: PrototypeGrid.from_pretrained("bob/grid", local_files_only=True), "not in the local cache"),
        (lambda: grid.push_to_hub("grid"), "no name to push to"),
        (lambda: grid.push_to_hub("ann/grid@v1"), "a branch by --revision"),
        (lambda: grid.push_to_hub("ann/grid", revision="v1", create_pr=True), "against the main branch"),
    ]
    for action, line in cases:
        with pytest.raises(InputError, match=line) as excinfo:
            action()
        assert re.search(r"(bob|ann)/|'grid'", said(excinfo))
    assert "grid.safetensors" not in (served.repo("ann/grid").files() if "ann/grid" in served.repos else {})


def test_a_private_repository_is_hidden_from_others(here: HubServer) -> None:
    PrototypeGrid.default("gameemo-v2").push_to_hub("ann/secret", private=True)
    with pytest.raises(InputError, match="no such repository"):
        PrototypeGrid.from_pretrained("ann/secret", token="hf_bob")
    assert PrototypeGrid.from_pretrained("ann/secret").dim == 64


@pytest.mark.parametrize("path", ["/api/repos/create", "/preupload/", "objects/batch", "PUT ", "/commit/"])
@pytest.mark.parametrize("fault", [{"status": 500}, {"drop": True}, {"status": 429, "headers": {"Retry-After": "1"}}])
def test_a_push_that_meets_a_passing_fault_arrives_whole(
    here: HubServer, waits: list[float], path: str, fault: dict[str, Any]
) -> None:
    struck = here.fault(path, **fault)
    grid = PrototypeGrid.default("gameemo-v2")
    grid.push_to_hub("ann/grid")
    assert struck.hits
    assert set(here.repo("ann/grid").files()) >= {"README.md", "LICENSE", "grid.safetensors", "grid.png"}
    assert PrototypeGrid.from_pretrained("ann/grid").sha256 == grid.sha256


def test_a_push_whose_answer_gets_lost_makes_one_commit(here: HubServer, waits: list[float]) -> None:
    here.fault("/commit/", after_bytes=0)
    done = PrototypeGrid.default("gameemo-v2").push_to_hub("ann/grid", commit_message="once")
    assert [c.message for c in here.repo("ann/grid").commits()].count("once") == 1
    assert done.commit == here.repo("ann/grid").head().oid


@pytest.mark.parametrize("path", ["/preupload/", "objects/batch", "PUT ", "/commit/"])
def test_a_push_that_fails_leaves_no_commit_behind(here: HubServer, waits: list[float], path: str) -> None:
    here.fault(path, status=500, times=None)
    with pytest.raises(InputError, match="answered 500") as excinfo:
        PrototypeGrid.default("gameemo-v2").push_to_hub("ann/grid")
    assert said(excinfo).startswith("hf-hub:ann/grid: ")
    assert set(here.repo("ann/grid").files()) == {".gitattributes"}


def test_a_file_that_was_damaged_in_the_cache_is_fetched_again(served: HubServer) -> None:
    snapshot = fetch(HubId("bob/grid"), ["grid.safetensors"])
    blob = (snapshot.folder / "grid.safetensors").resolve()
    data = bytearray(blob.read_bytes())
    data[-3] ^= 1
    blob.write_bytes(data)
    assert PrototypeGrid.from_pretrained(str(snapshot.id)).sha256 == PrototypeGrid.default("gameemo-v2").sha256
    blob = (snapshot.folder / "grid.safetensors").resolve()
    blob.write_bytes(bytes(data))
    with pytest.raises(InputError, match="does not match its hash"):
        PrototypeGrid.from_pretrained("bob/grid", local_files_only=True)
    assert not blob.exists()


def test_the_command_ends_with_one_line_and_writes_nothing(
    served: HubServer, tmp_path: Path, ngd: Callable[..., Any]
) -> None:
    out = tmp_path / "grid.safetensors"
    done = ngd("prototypes", "pull", "bob/nothing", "--out", str(out))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "bob/nothing" in done.stderr
    assert not out.exists()


def test_an_earlier_file_survives_a_pull_that_fails(
    served: HubServer, waits: list[float], tmp_path: Path, ngd: Callable[..., Any]
) -> None:
    out = tmp_path / "grid.safetensors"
    PrototypeGrid.random(8).save(out)
    before = out.read_bytes()
    served.fault("GET .*cdn", status=500, times=None)
    assert ngd("prototypes", "pull", "bob/grid", "--out", str(out)).returncode == 2
    assert out.read_bytes() == before


def test_an_ablation_pins_its_hub_ids_and_does_nothing_twice(
    here: HubServer, run: Path, faces: Path, tmp_path: Path
) -> None:
    PrototypeGrid.default("gameemo-v2").push_to_hub("ann/grid")
    arguments = ["b0_ce", "b2_proto", "b2_proto:grid=ann/grid", "b2_proto:loss.kd=0", f"data.root={faces}"]
    arguments += ["data.name=schematic", "data.workers=0", "student.backbone=test_resnet", "student.image_size=32"]
    arguments += ["optim.epochs=1", "optim.batch_size=16"]
    ablate(arguments, 1, tmp_path / "out")
    files = sorted((tmp_path / "out" / "runs").rglob("*"))
    before = {file: file.stat().st_mtime_ns for file in files}
    written = load_recipe(Recipe, tmp_path / "out" / "runs" / "b2_proto-0" / "recipe.yaml")
    assert written.grid == f"hf-hub:ann/grid@{here.repo('ann/grid').head().oid}"
    ablate(arguments, 1, tmp_path / "out")
    assert {file: file.stat().st_mtime_ns for file in files} == before
    PrototypeGrid.default("gameemo-v1").push_to_hub("ann/grid")
    with pytest.raises(InputError, match="was begun with grid=hf-hub:ann/grid@"):
        ablate(arguments, 1, tmp_path / "out")
