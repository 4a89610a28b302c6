"""Grids and students to the Hub and back: the real client, real HTTP, a server on loopback, and its faults."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import yaml
from hub_server import HubServer, client_here
from safetensors.torch import save_file

import ngd_timm
from ngd_timm import PrototypeGrid, load_run, wrap
from ngd_timm.core.affect import CLASSES
from ngd_timm.core.commands import shown_command
from ngd_timm.core.errors import InputError
from ngd_timm.core.hub import HubId, Published, fetch, hub_id, pin, upload
from ngd_timm.core.recipe import Recipe, load_recipe
from ngd_timm.data.synthetic.schematic import draw_face
from ngd_timm.evaluate.metrics import shown_protocols
from ngd_timm.evaluate.run import Run, read_metrics
from ngd_timm.evaluate.student import evaluate
from ngd_timm.experiments.ablation import ablate
from ngd_timm.models.kd_teacher import KDTeacher
from ngd_timm.models.student import load_student, open_student, save_student
from ngd_timm.publish.card import student_card
from ngd_timm.publish.push import packaged_spaces, stage_run
from ngd_timm.train.loop import resume, train

GRID = PrototypeGrid.default("gameemo-v2")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A server, with this process logged in to it as ann; the client waits no time between its tries."""
    with HubServer() as server:
        server.tokens |= {"hf_ann": {"ann", "lab"}, "hf_bob": {"bob"}, "hf_user": {"user"}}
        client_here(monkeypatch, server, tmp_path / "home", "hf_ann")
        monkeypatch.setattr(time, "sleep", lambda seconds: None)
        yield server


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    return lambda: monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def settings(faces: Path, **more: Any) -> dict[str, Any]:
    return {
        "student": {"backbone": "test_resnet", "image_size": 32},
        "data": {"name": "schematic", "root": str(faces), "workers": 0},
        "optim": {"epochs": 1, "batch_size": 16, "lr": 1e-3},
        **more,
    }


@pytest.fixture(scope="module")
def run(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("home of anna") / "run"
    loss = {"proto_kd": 0.2, "tau": 0.1, "d_geo": 0.05, "ramp": [0, 1]}
    more = {"grid": "gameemo-v2", "loss": loss, "eval": {"schematic": f"{faces}:test"}}
    recipe = Recipe.model_validate(settings(faces, name="tiny", out=str(out), **more))
    return train(recipe, ["ngd", "train", f"{out.parent}/tiny.yaml", f"data.root={faces}", f"out={out}"])


def push_run(run: Run, repo: str, grey: bool = False, **options: Any) -> Published:
    """As `ngd push` does."""
    return upload(lambda folder: stage_run(run, folder, repo, None, grey), repo, **options)


def refused(action: Callable[[], object], match: str) -> str:
    """The one line with which an action is refused."""
    with pytest.raises(InputError, match=match) as error:
        action()
    assert "\n" not in str(error.value)
    return str(error.value)


# ------------------------------------------------------------------ names


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("user/grid", HubId("user/grid")),
        ("hf-hub:user/grid@v1.2", HubId("user/grid", "v1.2")),
        ("user/grid@refs/pr/3", HubId("user/grid", "refs/pr/3")),
        *((text, None) for text in ("gameemo-v2", "runs/b0_ce-0/grid.safetensors", "a/b/c", "/home/anna", "../grid")),
        ("C:\\anna\\grid", None),
    ],
)
def test_a_hub_id_is_distinguished_from_a_path_and_a_name(text: str, expected: HubId | None) -> None:
    assert hub_id(text) == expected


def test_a_path_that_exists_is_never_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "b0").mkdir(parents=True)
    assert hub_id("runs/b0") is None
    assert hub_id("runs/b1") is None  # a slip, and not a user called runs
    assert hub_id("hf-hub:runs/b0") == HubId("runs/b0")


@pytest.mark.parametrize("text", ["hf-hub:grid", "hf-hub:user/grid@", "hf-hub:a b/c", "hf-hub:../x"])
def test_the_prefix_before_anything_else_is_refused(text: str) -> None:
    refused(lambda: hub_id(text), "no repository on the Hub")


# ------------------------------------------------------------------ there and back


def test_a_grid_is_pushed_in_one_commit_pulled_and_read_from_the_cache_without_the_network(
    hub: HubServer, tmp_path: Path, ngd: Callable[..., Any], offline: Callable[[], None]
) -> None:
    done = ngd("prototypes", "push", "gameemo-v2", "ann/grid")
    assert done.returncode == 0, done.stderr
    commit = hub.repos["ann/grid"].head()
    assert f"hf-hub:ann/grid@{commit.oid}, sha256 of the grid {GRID.sha256}" in done.stdout
    assert len(hub.repos["ann/grid"].commits) == 2
    assert set(commit.files) == {".gitattributes", "README.md", "LICENSE", "grid.safetensors", "grid.png"}
    pull = ("prototypes", "pull", "ann/grid", "--out", str(tmp_path / "pulled.safetensors"))
    for _ in range(2):
        pulled = ngd(*pull)
        assert f"from hf-hub:ann/grid@{commit.oid}" in pulled.stdout, pulled.stderr
        assert PrototypeGrid.load(pull[-1]).sha256 == GRID.sha256
        offline()
        hub.requests.clear()
    assert hub.requests == []


@pytest.mark.parametrize("options", [(), ("--grey",)])
def test_a_student_is_read_by_the_code_on_its_card_with_timm_alone_and_has_its_logits(
    options: tuple[str, ...], hub: HubServer, run: Path, tmp_path: Path, ngd: Callable[..., Any], offline: Any
) -> None:
    assert ngd("push", str(run), "ann/student", *options).returncode == 0
    card = hub.repos["ann/student"].files()["README.md"].decode()
    code, *_ = re.findall(r"```python\n(.*?)```", card, re.S)
    assert "ngd_timm" not in code
    draw_face("happiness", seed=3, image_size=50).save(tmp_path / "face.png")
    student, _ = open_student(run)
    for _ in range(2):
        names: dict[str, Any] = {}
        exec(code.replace("face.png", str(tmp_path / "face.png")), names)
        face = names["transform"](names["face"])[None]
        assert face.shape == (1, 1 if options else 3, 32, 32)
        with torch.no_grad():
            # the face is drawn in grey
            torch.testing.assert_close(student(face[:, :1])[0], names["logits"], atol=1e-5, rtol=0)
        offline()


def test_the_options_of_a_push_reach_the_repository(hub: HubServer, run: Path, ngd: Callable[..., Any]) -> None:
    options = ("--private", "--revision", "trial", "--message", "Of our own faces")
    for command, repo in ((("push", str(run)), "ann/mine"), (("prototypes", "push", "gameemo-v2"), "ann/grid")):
        done = ngd(*command, repo, *options)
        assert done.returncode == 0, done.stderr
        found = hub.repos[repo]
        assert (found.private, found.head("trial").message) == (True, "Of our own faces")
        assert "model.safetensors" not in found.files()
        assert ngd(*command, repo, "--create-pr").returncode == 0
        assert "refs/pr/1" in found.branches


def test_a_run_comes_back_whole_and_trains_on(hub: HubServer, run: Path, faces: Path) -> None:
    local = load_run(run)
    done = push_run(local, "ann/student", grey=True)
    back = load_run("ann/student")
    assert back.source == f"hf-hub:ann/student@{done.commit}"
    assert (back.metrics, back.recipe.loss, back.predictions) == (local.metrics, local.recipe.loss, {})
    refused(lambda: back.rows, r"summary\.csv is missing")
    assert back.grid is not None
    assert local.grid is not None
    assert back.grid.sha256 == local.grid.sha256
    for name, tensor in local.student.state_dict().items():
        assert torch.equal(back.student.state_dict()[name], tensor)
    logits, embedding = wrap(back.student, grid=back.grid)(torch.randn(2, 1, 32, 32), return_embedding=True)
    assert (logits.shape, embedding.shape) == ((2, 8), (2, back.grid.dim))
    expected = local.metrics["schematic:test"]
    del expected["ratings"]["grid"]  # the projection to it stays at home
    assert evaluate("ann/student", [f"schematic={faces}:test"])["schematic:test"] == expected


def test_a_published_student_takes_rgb_and_scores_as_the_grey_one_that_it_was_made_of(
    hub: HubServer, run: Path, faces: Path, tmp_path: Path
) -> None:
    push_run(load_run(run), "ann/student")
    back, local = load_run("ann/student"), load_run(run)
    assert back.student.pretrained_cfg["input_size"] == (3, 32, 32)
    assert back.student.ngd_timm["folded_from"] == local.student_sha256 != back.student_sha256
    rgb, weights = torch.randn(2, 3, 32, 32), torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    with torch.no_grad():
        grey = local.student((rgb * weights).sum(dim=1, keepdim=True))
        torch.testing.assert_close(back.student(rgb), grey, atol=1e-5, rtol=0)
    scores = evaluate("ann/student", [f"schematic={faces}:train"], tmp_path / "scores.json")
    assert scores["schematic:train"]["8way"] == evaluate(run, [f"schematic={faces}:train"])["schematic:train"]["8way"]
    # metrics of either are metrics of the run
    for opened in (local, back):
        assert set(read_metrics([tmp_path / "scores.json"], opened)) == {"schematic:train"}


def test_the_docs_lines_about_the_hub_run_when_pasted(hub: HubServer, run: Path) -> None:
    page = (Path(__file__).parent.parent / "docs" / "hub.md").read_text(encoding="utf-8")
    (block,) = [code for code in re.findall(r"```python\n(.*?)```", page, flags=re.S) if '"user/' in code]
    PrototypeGrid.default().push_to_hub("user/my-grid", revision="v1", token="hf_user")
    push_run(load_run(run), "user/my-student", token="hf_user")
    names: dict[str, Any] = {"ngd_timm": ngd_timm, "timm": timm}
    exec(compile(block, "hub.md", "exec"), names)
    assert torch.equal(names["student"].fc.weight, names["run"].student.fc.weight)


def test_where_the_onnx_files_cannot_be_written_nothing_is_published(
    run: Path, tmp_path: Path, ngd: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnx" else found(name))
    done = ngd("push", str(run), "ann/student", "--onnx", "--folder", str(tmp_path / "staged"))
    assert (done.returncode, done.stderr.count("exporting to ONNX needs onnx")) == (2, 1)
    assert list(tmp_path.glob("staged*")) == []
    monkeypatch.undo()
    (tmp_path / "staged-ONNX").mkdir()
    (tmp_path / "staged-ONNX" / "mine.txt").write_text("mine")
    done = ngd("push", str(run), "ann/student", "--onnx", "--folder", str(tmp_path / "staged"))
    assert (done.returncode, done.stderr.count("staged-ONNX is not empty")) == (2, 1)
    assert not (tmp_path / "staged").exists()


def test_one_command_publishes_every_packaged_grid_and_student_and_the_space_under_one_name(
    hub: HubServer, ngd: Callable[..., Any]
) -> None:
    done = ngd("publish", "--namespace", "lab")
    assert done.returncode == 0, done.stderr
    for version in ("gameemo-v1", "gameemo-v2"):
        assert PrototypeGrid.from_pretrained(f"lab/{version}").sha256 == PrototypeGrid.default(version).sha256
        assert f'from_pretrained("lab/{version}")' in hub.repos[f"lab/{version}"].files()["README.md"].decode()
    space = hub.repos["spaces/lab/expressions"].files()
    assert {"app.py", "requirements.txt", "README.md", "examples/astronaut.jpg"} <= set(space)
    header = yaml.safe_load(space["README.md"].decode().split("---")[1])
    assert (header["sdk"], header["app_file"], header["models"]) == ("gradio", "app.py", ["lab/student-ferplus-v3"])
    card = hub.repos["lab/student-ferplus-v3"].files()["README.md"].decode()
    assert card.count("lab/student-ferplus-v3") > 5
    assert "ngd-timm/student-ferplus-v3" not in card
    pulled, packaged = open_student("lab/student-ferplus-v1")[0], load_student("student-ferplus-v1")
    assert all(torch.equal(pulled.state_dict()[name], value) for name, value in packaged.state_dict().items())


def test_the_page_is_published_as_a_static_space_where_it_is_built(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("space/README.md", "web/README.md", "web/dist/README.md", "web/dist/index.html"):
        (tmp_path / "hub" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "hub" / name).write_text(name)
    monkeypatch.setattr("ngd_timm.publish.push.packaged", lambda kind: tmp_path / kind)
    sdk, stage = packaged_spaces("lab")["lab/expressions-in-the-browser"]
    assert sdk == "static"
    upload(stage, "lab/page", space_sdk=sdk)
    assert {"README.md", "index.html"} <= set(hub.repos["spaces/lab/page"].files())
    shutil.rmtree(tmp_path / "hub" / "web" / "dist")
    assert list(packaged_spaces("lab")) == ["lab/expressions"]


def test_a_branch_and_a_pull_request_leave_main_as_it_is(hub: HubServer) -> None:
    GRID.push_to_hub("ann/grid", revision="trial", commit_message="A trial")
    assert "grid.safetensors" not in hub.repos["ann/grid"].files()
    assert hub.repos["ann/grid"].head("trial").message == "A trial"
    opened = PrototypeGrid.default("gameemo-v1").push_to_hub("ann/grid", create_pr=True)
    assert "/discussions/" in opened.url
    assert PrototypeGrid.from_pretrained("ann/grid", revision="refs/pr/1").sha256 != GRID.sha256
    assert PrototypeGrid.from_pretrained("ann/grid@trial").sha256 == GRID.sha256


# ------------------------------------------------------------------ what goes up


def test_nothing_that_goes_up_names_a_folder_of_anybodys_disk_and_its_hashes_are_the_files(
    run: Path, tmp_path: Path, faces: Path
) -> None:
    stage_run(load_run(run), tmp_path, "ann/student")
    hashed = {"config.json", "model.safetensors", "recipe.yaml", "metrics.json", "grid.safetensors"}
    files = {p.relative_to(tmp_path).as_posix(): p for p in tmp_path.rglob("*") if p.is_file()}
    drawn = {"examples/happiness.png", "examples/surprise.png"}
    assert set(files) == {*hashed, *drawn, "README.md", "LICENSE", "fingerprint.json", "grid.png"}
    home = Path.home()
    private = [b"anna", str(faces.parent).encode(), b"/tmp", *([f"{home}/".encode()] if home != home.parent else [])]
    for file in files.values():
        for folder in private:
            assert folder not in file.read_bytes(), f"{file.name} names {folder.decode()}"
    hashes = json.loads((tmp_path / "fingerprint.json").read_text())["sha256"]
    assert hashes == {name: hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in hashed}


def test_the_students_card_carries_both_protocols_with_intervals_the_grid_and_the_terms(
    run: Path, tmp_path: Path
) -> None:
    opened = load_run(run)
    stage_run(opened, tmp_path, "ann/student")
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    header = yaml.safe_load(card.split("---")[1])
    assert [header[key] for key in ("license", "library_name", "pipeline_tag")] == [
        "other",
        "timm",
        "image-classification",
    ]
    results = header["model-index"][0]["results"]
    assert [r["dataset"]["split"] for r in results] == ["valid", "test"]
    for result, entry in zip(results, opened.metrics.values(), strict=True):
        protocols = shown_protocols(entry)
        assert len(result["metrics"]) == 3 * len(protocols)
        for i, protocol in enumerate(protocols):
            for metric, shown in zip(("acc", "macro_f1", "bacc"), result["metrics"][3 * i : 3 * i + 3], strict=True):
                assert shown["value"] == round(entry[protocol][metric], 2)
                assert shown["args"]["ci95"] == [round(x, 2) for x in entry["ci95"][protocol][metric]]
    assert opened.grid is not None
    words = (opened.grid.sha256, "arXiv 2509.11916", "Mantel r", "![", "EU AI Act", "tau=0.1", "test_resnet")
    for text in (*words, "| happiness |", "\nngd train tiny.yaml data.root=faces0\n"):
        assert text in card
    assert "student_best" not in card
    chosen = replace(opened, recipe=opened.recipe.model_copy(update={"best_on": ("schematic",)}))
    assert "which is not this one: student_best/ was chosen by its present-only acc on schematic, so its scores" in (
        student_card(chosen, "ann/student")
    )
    licence = (tmp_path / "LICENSE").read_text(encoding="utf-8")
    assert "GAMEEMO" in licence
    assert "for research" in licence


def test_a_grid_that_may_show_one_subject_is_not_published(hub: HubServer) -> None:
    rng = np.random.default_rng(0)
    va, who = rng.uniform(-1, 1, (40, 2)), np.arange(40) % 20
    sparse = PrototypeGrid.build(rng.standard_normal((40, 8)), va, who, metadata={"dataset": "ours"})
    anonymous = PrototypeGrid.build(np.eye(3), np.array([[-1, -1], [1, 1], [0, 0]]))
    refused(lambda: sparse.push_to_hub("ann/grid"), "fewer than 3")
    refused(lambda: PrototypeGrid.random(8).push_to_hub("ann/grid"), "control")
    refused(lambda: anonymous.push_to_hub("ann/grid"), "whose data")
    assert hub.requests == []


def test_a_grid_built_by_hand_is_published_with_a_card_that_says_what_is_not_known(hub: HubServer) -> None:
    rng = np.random.default_rng(0)
    who, va = np.repeat(np.arange(6), 25), np.tile(PrototypeGrid.random(2).centers.numpy(), (6, 1))
    notes = {"dataset": "our lab's recordings, /home/anna/eeg/a.bdf"}
    grid = PrototypeGrid.build(rng.standard_normal((150, 8)), va, who, min_subjects=3, metadata=notes)
    done = grid.push_to_hub("lab/grid", private=True)
    repo = hub.repos["lab/grid"]
    assert repo.private
    assert done.commit == repo.head().oid
    assert "not recorded in the file" in repo.files()["README.md"].decode()
    assert b"anna" not in b"".join(repo.files().values())
    refused(lambda: PrototypeGrid.from_pretrained("lab/grid", token="hf_bob"), "no such repository")
    assert PrototypeGrid.from_pretrained("lab/grid").sha256 == grid.sha256


def test_a_dry_run_and_a_folder_request_nothing_of_the_hub(
    hub: HubServer, run: Path, tmp_path: Path, ngd: Callable[..., Any]
) -> None:
    to_folder = ("push", str(run), "ann/student", "--folder", str(tmp_path / "staged"))
    for arguments in (
        ("push", str(run), "ann/student", "--dry-run"),
        to_folder,
        ("prototypes", "push", "gameemo-v2", "ann/grid", "--dry-run"),
        ("publish", "--dry-run"),
    ):
        assert ngd(*arguments).returncode == 0
    assert (tmp_path / "staged" / "model.safetensors").is_file()
    assert hub.requests == []
    both = ngd("prototypes", "push", "gameemo-v2", "ann/grid", "--dry-run", "--folder", str(tmp_path / "both"))
    assert (both.returncode, "give one of the two" in both.stderr) == (2, True)
    assert not (tmp_path / "both").exists()
    again = ngd(*to_folder)
    assert (again.returncode, "is not empty" in again.stderr) == (2, True)


def test_further_metrics_go_on_the_card_unless_they_are_there_or_of_another_student(
    run: Path, tmp_path: Path, faces: Path, ngd: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    refused(lambda: stage_run(load_run(run), tmp_path / "b", "ann/s", load_run(run).metrics), "schematic:valid is in")
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
    del entries["schematic:train"]["student_sha256"]
    more.write_text(json.dumps(entries))
    assert ngd(*push).returncode == 0
    (warning,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert "schematic:train don't name their student" in warning
    card = (tmp_path / "staged" / "README.md").read_text(encoding="utf-8")
    assert "| schematic:train | given | 48 |" in card
    assert card.count("copies of training images kept") == 1


# ------------------------------------------------------------------ pinned


def test_a_recipes_hub_ids_are_pinned_and_a_resumed_run_gets_the_same_bytes(
    hub: HubServer, run: Path, faces: Path, tmp_path: Path, ngd: Callable[..., Any]
) -> None:
    GRID.push_to_hub("ann/grid")
    push_run(load_run(run), "ann/student")
    sources = {"grid": "ann/grid", "teacher": "ann/student", "init": "hf-hub:ann/student@main"}
    more = {"out": str(tmp_path / "run"), "loss": {"kd": 0.3, "proto_kd": 0.2}, **sources}
    (tmp_path / "pinned.yaml").write_text(yaml.safe_dump(settings(faces, name="pinned", **more)))
    assert ngd("train", str(tmp_path / "pinned.yaml"), "seed=1").returncode == 0
    out = tmp_path / "run"
    assert shown_command(json.loads((out / "fingerprint.json").read_text()), "") == "ngd train pinned.yaml seed=1"
    written = load_recipe(Recipe, out / "recipe.yaml")
    grid, student = (f"hf-hub:ann/{name}@{hub.repos[f'ann/{name}'].head().oid}" for name in ("grid", "student"))
    assert (written.grid, written.teacher, written.init) == (grid, student, student)
    fingerprint = json.loads((out / "fingerprint.json").read_text())
    assert fingerprint["hub"] == {"grid": grid, "teacher": student, "init": student}
    assert fingerprint["grid"] == GRID.sha256
    PrototypeGrid.default("gameemo-v1").push_to_hub("ann/grid")
    shutil.rmtree(out / "last")
    weights = (out / "student" / "model.safetensors").read_bytes()
    hub.requests.clear()
    resume(out)
    assert (out / "student" / "model.safetensors").read_bytes() == weights
    assert hub.requests == []


@pytest.fixture
def backbone(hub: HubServer, tmp_path: Path) -> timm.models.ResNet:
    """A timm model of 5 classes that bob published under bob/backbone, beside a pickle of other weights."""
    model = timm.create_model("test_resnet", num_classes=5)
    described = {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.5, 0.5], "num_classes": 5}
    timm.models.save_for_hf(model, str(tmp_path / "bob"), model_config=described, safe_serialization=True)
    config = json.loads((tmp_path / "bob" / "config.json").read_text())
    config["pretrained_cfg"] |= described
    files = {"config.json": json.dumps(config).encode(), "pytorch_model.bin": b"\x80\x04K\x01."}
    hub.put("bob/backbone", files | {"model.safetensors": (tmp_path / "bob" / "model.safetensors").read_bytes()})
    return model


def test_a_run_from_a_backbone_of_the_hub_keeps_its_commit_and_hash_and_resumes_without_the_network(
    hub: HubServer, backbone: timm.models.ResNet, faces: Path, tmp_path: Path, ngd: Callable[..., Any], offline: Any
) -> None:
    keys = [f"data.root={faces}", "data.name=schematic", "data.workers=0", "optim.epochs=1", "optim.batch_size=16"]
    keys += ["student.image_size=32", "student.in_chans=3", "student.pretrained=true", f"out={tmp_path / 'run'}"]
    assert ngd("train", "b0_ce", "student.backbone=hf-hub:bob/backbone@main", *keys).returncode == 0
    name = f"hf-hub:bob/backbone@{hub.repos['bob/backbone'].head().oid}"
    recipe = load_recipe(Recipe, tmp_path / "run" / "recipe.yaml")
    fingerprint = json.loads((tmp_path / "run" / "fingerprint.json").read_text())
    assert recipe.student.backbone == fingerprint["hub"]["student.backbone"] == name
    weights = hub.repos["bob/backbone"].files()["model.safetensors"]
    assert fingerprint["backbone"] == hashlib.sha256(weights).hexdigest()
    assert not any("pytorch_model" in request for request in hub.requests)
    trained = tmp_path / "run" / "student" / "model.safetensors"
    before = trained.read_bytes()
    assert open_student(tmp_path / "run")[0].pretrained_cfg["mean"] == [0.1, 0.2, 0.3]
    hub.put("bob/backbone", {"model.safetensors": b"another"})
    shutil.rmtree(tmp_path / "run" / "last")
    offline()
    hub.requests.clear()
    resume(tmp_path / "run")
    assert (trained.read_bytes() == before, hub.requests) == (True, [])


@pytest.mark.parametrize("prefix", ["hf-hub:", "hf_hub:"])
def test_wrap_takes_a_backbone_of_the_hub_by_revision_and_never_its_pickle(
    prefix: str, hub: HubServer, backbone: timm.models.ResNet
) -> None:
    commit = hub.repos["bob/backbone"].head().oid
    hub.put("bob/backbone", {"model.safetensors": b"another"})
    model = wrap(f"{prefix}bob/backbone@{commit}", pretrained=True)
    assert torch.equal(model.student.conv1[0].weight, backbone.conv1[0].weight)
    assert (model.num_classes, wrap(f"{prefix}bob/backbone").num_classes) == (8, 8)
    assert not any("pytorch_model" in request for request in hub.requests)


BACKBONES = {
    "bob/pickles": r"its pickles \(pytorch_model.bin\) are never loaded",
    "bob/unknown": r"timm can't open it \(Unknown model \(resnet81\)\)",
    "bob/halves": r"timm can't open it \(Missing key",
    "bob/backbone@v9": "no revision 'v9' there",
    "bob/nothing": "no such repository",
}


@pytest.mark.parametrize("name", BACKBONES)
def test_a_backbone_of_the_hub_that_is_no_timm_model_in_safetensors_is_refused(
    name: str, hub: HubServer, backbone: timm.models.ResNet, faces: Path, ngd: Callable[..., Any], tmp_path: Path
) -> None:
    files = hub.repos["bob/backbone"].files()
    hub.put("bob/pickles", {name: files[name] for name in ("config.json", "pytorch_model.bin")})
    hub.put("bob/unknown", {**files, "config.json": b'{"architecture": "resnet81"}'})
    save_file({"a": torch.zeros(3)}, str(tmp_path / "a.safetensors"))
    hub.put("bob/halves", {**files, "model.safetensors": (tmp_path / "a.safetensors").read_bytes()})
    refused(lambda: wrap(f"hf-hub:{name}", pretrained=True), BACKBONES[name])
    keys = (f"student.backbone=hf-hub:{name}", f"data.root={faces}", "student.pretrained=true", f"out={tmp_path / 'r'}")
    done = ngd("train", "b0_ce", "data.name=schematic", *keys)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert re.search(BACKBONES[name], done.stderr)
    assert not (tmp_path / "r").exists()


def test_pretrained_weights_that_are_not_cached_are_one_line_where_the_network_is_off(
    hub: HubServer, backbone: timm.models.ResNet, faces: Path, ngd: Callable[..., Any], offline: Callable[[], None]
) -> None:
    wrap("hf-hub:bob/backbone", pretrained=True)
    offline()
    wrap("hf-hub:bob/backbone", pretrained=True)
    keys = ("data.name=schematic", f"data.root={faces}", "student.pretrained=true")
    for name, repository in {"test_resnet": "timm/test_resnet.r160_in1k", "hf-hub:bob/other": "bob/other"}.items():
        done = ngd("train", "b0_ce", f"student.backbone={name}", *keys)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert f"ngd: hf-hub:{repository}: not in the local cache, and the network is off" in done.stderr


def test_an_ablation_pins_its_hub_ids(hub: HubServer, faces: Path, tmp_path: Path) -> None:
    GRID.push_to_hub("ann/grid")
    arguments = ["b2_proto", "grid=ann/grid", "loss.kd=0", f"data.root={faces}", "data.name=schematic"]
    arguments += ["data.workers=0", "student.backbone=test_resnet", "student.image_size=32"]
    arguments += ["optim.epochs=1", "optim.batch_size=16"]
    ablate(arguments, 1, tmp_path / "out")
    written = load_recipe(Recipe, tmp_path / "out" / "runs" / "b2_proto-0" / "recipe.yaml")
    assert written.grid == f"hf-hub:ann/grid@{hub.repos['ann/grid'].head().oid}"
    PrototypeGrid.default("gameemo-v1").push_to_hub("ann/grid")
    refused(lambda: ablate(arguments, 1, tmp_path / "out"), "was begun with grid=hf-hub:ann/grid@")


def test_a_pinned_commit_gives_those_bytes(hub: HubServer) -> None:
    PrototypeGrid.default("gameemo-v1").push_to_hub("ann/grid")
    pinned = pin("ann/grid", "grid.safetensors")
    GRID.push_to_hub("ann/grid")
    assert PrototypeGrid.from_spec(pinned).sha256 == PrototypeGrid.default("gameemo-v1").sha256
    assert PrototypeGrid.from_spec("ann/grid").sha256 == GRID.sha256


# ------------------------------------------------------------------ what is refused


def test_a_repository_of_pickles_is_refused(hub: HubServer) -> None:
    hub.put("bob/old", {"config.json": b"{}", "pytorch_model.bin": b"\x80\x04K\x01."})
    refused(lambda: open_student("bob/old"), r"pytorch_model.bin.* never loaded")
    refused(lambda: PrototypeGrid.from_pretrained("bob/old"), r"holds no grid\.safetensors")
    assert not any("pytorch_model" in request for request in hub.requests)


def test_a_student_that_is_not_the_one_that_was_pushed_or_of_a_later_format_is_refused(
    hub: HubServer, run: Path, tmp_path: Path
) -> None:
    push_run(load_run(run), "ann/student")
    files = hub.repos["ann/student"].files()
    other = timm.create_model("test_resnet", num_classes=8, in_chans=1)
    timm.models.save_for_hf(other, str(tmp_path), safe_serialization=True)
    hub.put("ann/student", {"model.safetensors": (tmp_path / "model.safetensors").read_bytes()})
    for read in (load_run, open_student):
        refused(lambda read=read: read("ann/student"), r"model.safetensors is not the file that was pushed")
    later = {**json.loads(files["fingerprint.json"]), "format_version": "2"}
    hub.put("ann/student", {**files, "fingerprint.json": json.dumps(later).encode()})
    refused(lambda: load_run("ann/student"), "upgrade ngd-timm")


def test_what_the_student_before_had_and_this_one_has_not_is_gone_after_a_push(
    hub: HubServer, run: Path, faces: Path, tmp_path: Path
) -> None:
    push_run(load_run(run), "ann/student")
    hub.put("ann/student", {".eval_results/old.yaml": b"- value: 99\n", "notes.txt": b"mine"})
    recipe = settings(faces, name="plain", out=str(tmp_path / "plain"))
    push_run(load_run(train(Recipe.model_validate(recipe))), "ann/student")
    assert load_run("ann/student").grid is None
    files = hub.repos["ann/student"].files()
    assert files.keys() & {"grid.safetensors", "grid.png", ".eval_results/old.yaml", "notes.txt"} == {"notes.txt"}


def test_without_the_network_a_file_that_was_never_looked_for_is_not_taken_for_missing(
    hub: HubServer, run: Path, faces: Path, offline: Callable[[], None]
) -> None:
    push_run(load_run(run), "ann/student")
    timm.create_model("hf-hub:ann/student", pretrained=True)  # caches what timm needs, not the run's record
    offline()
    refused(
        lambda: evaluate("ann/student", [f"schematic={faces}:test"]), "not in the local cache, and the network is off"
    )


def test_a_teacher_of_the_hub_teaches_what_its_run_teaches(
    hub: HubServer, run: Path, tmp_path: Path, offline: Callable[[], None]
) -> None:
    changes = ["student.logit_adjustment=0.5", "loss.class_weights=none", f"out={tmp_path / 'adjusted'}"]
    adjusted = train(load_recipe(Recipe, run / "recipe.yaml", changes))
    push_run(load_run(adjusted), "ann/teacher", grey=True)
    teacher, local = (KDTeacher.open(source, CLASSES, (0.5,), (0.25,)) for source in ("ann/teacher", adjusted))
    assert teacher.adjustments == local.adjustments == (0.5,)
    images = torch.randn(4, 1, 32, 32)
    assert torch.equal(teacher(images), local(images))
    written = (adjusted / "recipe.yaml").read_text(encoding="utf-8")
    hub.put("ann/teacher", {"recipe.yaml": written.replace("adjustment: 0.5", "adjustment: 2.0").encode()})
    open_student("ann/teacher")  # leaves the cache without this commit's recipe.yaml
    refused(
        lambda: KDTeacher.open("ann/teacher", CLASSES, (0.5,), (0.25,)), r"recipe\.yaml is not the file that was pushed"
    )
    part = {name: data for name, data in hub.repos["ann/teacher"].files().items() if name != "recipe.yaml"}
    hub.put("ann/part", part)
    refused(lambda: KDTeacher.open("ann/part", CLASSES, (0.5,), (0.25,)), "it lacks recipe.yaml, which says how")
    hub.put("ann/teacher", {"notes.txt": b"another commit"})
    open_student("ann/teacher")
    offline()
    refused(lambda: KDTeacher.open("ann/teacher", CLASSES, (0.5,), (0.25,)), "the network is off")


def test_a_grid_of_another_format_is_refused_by_its_repository_and_not_by_a_place_in_the_cache(
    hub: HubServer, tmp_path: Path
) -> None:
    save_file({"prototypes": torch.zeros(25, 4)}, str(tmp_path / "grid.safetensors"))
    hub.put("bob/odd", {"grid.safetensors": (tmp_path / "grid.safetensors").read_bytes()})
    line = refused(lambda: PrototypeGrid.from_pretrained("bob/odd"), "not a prototype grid")
    assert line.startswith("hf-hub:bob/odd@")
    assert str(tmp_path) not in line


# ------------------------------------------------------------------ faults


@pytest.fixture
def served(hub: HubServer, tmp_path: Path) -> HubServer:
    """A server that holds bob/grid, which this process may read."""
    GRID.save(tmp_path / "bob.safetensors")
    hub.put("bob/grid", {"grid.safetensors": (tmp_path / "bob.safetensors").read_bytes()})
    return hub


REFUSALS: dict[str, Callable[[], object]] = {
    "token is not valid": lambda: PrototypeGrid.from_pretrained("bob/grid", token="hf_wrong"),
    "the token is not valid": lambda: GRID.push_to_hub("ann/grid", token="hf_wrong"),
    "your token may not do this": lambda: GRID.push_to_hub("bob/grid"),
    "no such repository": lambda: PrototypeGrid.from_pretrained("bob/nothing"),
    "no revision 'v9'": lambda: PrototypeGrid.from_pretrained("bob/grid@v9"),
    "no revision '0000": lambda: PrototypeGrid.from_pretrained("bob/grid@" + "0" * 40),
    "not in the local cache": lambda: PrototypeGrid.from_pretrained("bob/grid", local_files_only=True),
    "'grid' is no name to push to": lambda: GRID.push_to_hub("grid"),
    "a branch by --revision": lambda: GRID.push_to_hub("ann/grid@v1"),
    "against the main branch": lambda: GRID.push_to_hub("ann/grid", revision="v1", create_pr=True),
}


@pytest.mark.parametrize("line", REFUSALS)
def test_what_the_hub_refuses_is_one_line_that_says_what_to_do(served: HubServer, line: str) -> None:
    assert re.search(r"(bob|ann)/|'grid'", refused(REFUSALS[line], line))
    assert "ann/grid" not in served.repos


def test_a_download_that_is_cut_or_fails_once_is_finished_by_the_client(served: HubServer) -> None:
    faults = [served.fault("/lfs/", "cut", times=1), served.fault("resolve/main/grid", 503, times=2)]
    assert PrototypeGrid.from_pretrained("bob/grid").sha256 == GRID.sha256
    assert [fault.times for fault in faults] == [0, 0]


@pytest.mark.parametrize(
    ("match", "kind", "line"),
    [
        ("/lfs/", "cut", "no complete response"),
        ("/lfs/", "altered", "does not match its sha256"),
        ("/lfs/", 500, "returned HTTP 500"),
        ("resolve/main/grid", 429, "returned HTTP 429"),
    ],
)
def test_a_fault_that_stays_ends_in_one_line_with_the_earlier_file_kept_and_nothing_half_in_the_cache(
    served: HubServer, match: str, kind: Any, line: str, tmp_path: Path, ngd: Callable[..., Any]
) -> None:
    out = tmp_path / "grid.safetensors"
    PrototypeGrid.random(8).save(out)
    before = out.read_bytes()
    fault = served.fault(match, kind)
    done = ngd("prototypes", "pull", "bob/grid", "--out", str(out))
    last = done.stderr.strip().split("\n")[-1]
    assert (done.returncode, last.startswith("ngd: hf-hub:bob/grid: "), line in last) == (2, True, True), done.stderr
    assert out.read_bytes() == before
    fault.times = 0
    assert PrototypeGrid.from_pretrained("bob/grid").sha256 == GRID.sha256


@pytest.mark.parametrize("match", ["/preupload/", "objects/batch", "PUT ", "/commit/"])
def test_a_push_that_fails_leaves_no_commit_behind(hub: HubServer, match: str) -> None:
    hub.fault(match, 500)
    assert refused(lambda: GRID.push_to_hub("ann/grid"), "returned HTTP 500").startswith("hf-hub:ann/grid: ")
    assert set(hub.repos["ann/grid"].files()) == {".gitattributes"}


def test_a_file_in_the_clients_shared_store_is_checked_against_its_sha256_and_not_its_name_there(
    served: HubServer, tmp_path: Path
) -> None:
    file = fetch(HubId("bob/grid"), ["grid.safetensors"]).folder / "grid.safetensors"
    blob, shared = file.resolve(), tmp_path / ("f" * 64)  # the store names files by their Xet hash
    blob.rename(shared)
    blob.symlink_to(shared)
    assert PrototypeGrid.from_pretrained("bob/grid").sha256 == GRID.sha256
    shared.write_bytes(shared.read_bytes()[:-1] + b"!")
    refused(lambda: PrototypeGrid.from_pretrained("bob/grid"), "does not match its sha256")
    assert PrototypeGrid.from_pretrained("bob/grid").sha256 == GRID.sha256


def test_a_full_disk_is_one_line(served: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ngd_timm.core.hub.hf_hub_download", full)
    refused(lambda: PrototypeGrid.from_pretrained("bob/grid"), "bob/grid: No space left on device; set HF_HOME")


def test_a_published_command_names_no_folder_whichever_way_an_option_is_written() -> None:
    command = ["ngd", "evaluate", "--data=ferplus=/data/FER:valid", "--data", "mine:fer2013=/data/mine", "--flip"]
    shown = shown_command({"command": command}, "")
    assert shown == "ngd evaluate --data=ferplus=FER:valid --data mine:fer2013=mine --flip"
