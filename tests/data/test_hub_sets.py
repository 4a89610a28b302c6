"""Data sets as they lie on the Hub: the real client, real HTTP, a server on loopback, tiny copies of published sets."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from datasets import ClassLabel, Features, Value
from hub_server import HubServer
from hub_sets import HUB_SETS, HubSet, face, image_and_label, list_of_one, parquet, rated, webdataset
from huggingface_hub import parse_eval_result_entries
from writers import png

from ngd_timm.core.affect import CLASSES
from ngd_timm.core.errors import InputError
from ngd_timm.core.recipe import Recipe
from ngd_timm.data import load_fer, load_split
from ngd_timm.train.loop import resume, train


def plant(hub: HubServer, hub_set: HubSet) -> str:
    """Put a copy of a set on the server; its commit."""
    repo, _, revision = hub_set.root.partition("@")
    commit = hub.put(repo, {"README.md": b"", **hub_set.files([*hub_set.splits.values()])})
    if revision:
        hub.repos[repo].branches[revision] = hub.repos[repo].branches.pop("main")
    return commit


@pytest.mark.parametrize("hub_set", HUB_SETS, ids=lambda s: s.root)
def test_every_published_schema_is_read_with_each_face_beside_its_own_class(
    hub_set: HubSet, data_hub: HubServer
) -> None:
    commit = plant(data_hub, hub_set)
    for split, theirs in hub_set.splits.items() or [("all", "train")]:
        dataset, report = load_split(hub_set.name, hub_set.root, split, drop_duplicates=False)
        assert report.dropped == {}
        assert len(set(dataset["label"][:])) == len(dataset) >= 7
        for row in dataset:
            drawn = np.asarray(face(CLASSES[row["label"]], theirs), dtype=int)
            assert np.abs(np.asarray(row["image"].convert("L"), dtype=int) - drawn).mean() < 3, row["source"]
        if hub_set.name == "ckplus":
            assert dataset["subject"][:] == [f"S01{i}" for i in range(7)]
        assert report.dataset_id == f"{hub_set.root.partition('@')[0]}@{commit}"
        streamed = load_fer(hub_set.name, hub_set.root, split, drop_duplicates=False, streaming=True)
        assert [row["label"] for row in streamed] == dataset["label"][:]


@pytest.mark.parametrize("files", [webdataset, list_of_one, image_and_label("angry happy", label="labels")])
def test_a_local_copy_of_a_hub_data_set_is_read_as_the_set_itself(
    files: Any, data_hub: HubServer, tmp_path: Path
) -> None:
    copy = files(["train", "test"])
    for name, data in copy.items():
        (tmp_path / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "copy" / name).write_bytes(data)
    data_hub.put("ann/faces", {"README.md": b"", **copy})
    ours, theirs = (load_split("rafdb", root, "test")[1] for root in (tmp_path / "copy", "ann/faces"))
    assert (ours.sha256, ours.counts) == (theirs.sha256, theirs.counts)
    assert ours.dataset_id == ""
    if files is webdataset:
        with pytest.raises(InputError, match="webdataset can't be streamed, only parquet files and Hub ids"):
            load_fer("rafdb", tmp_path / "copy", streaming=True)


PLAIN = Features({"img": Value("binary"), "emotion": Value("int64"), "who": Value("string")})
ROWS = {"img": [png(i) for i in range(4)], "emotion": [0, 1, 2, 1], "who": ["angry", "sleepy", "sad", "happy"]}


def test_options_name_the_columns_and_the_classes_of_numbers(data_hub: HubServer, tmp_path: Path) -> None:
    (tmp_path / "faces.parquet").write_bytes(parquet(ROWS, PLAIN))
    data_hub.put("ann/faces", {"README.md": b"", "train.parquet": parquet(ROWS, PLAIN)})
    for root in (tmp_path / "faces.parquet", "ann/faces"):
        with pytest.raises(InputError, match=r"column 'emotion' holds plain integers.*ROOT,names=angry/disgusted/…"):
            load_fer("fer2013", root)
        with pytest.raises(InputError, match="emotion 2 is not in the class map, which has 0 angry, 1 disgusted"):
            load_fer("fer2013", f"{root},names=angry/disgusted/-")
        numbered = load_fer("fer2013", root, options={"names": ["angry", "disgusted", "fear"]})
        assert [CLASSES[i] for i in numbered["label"]] == ["anger", "disgust", "fear", "disgust"]
        dataset, report = load_split("fer2013", f"{root},image=img,label=who,unknown=drop")
        assert [CLASSES[i] for i in dataset["label"]] == ["anger", "sadness", "happiness"]
        assert report.dropped == {"labelled 'sleepy'": 1}


@pytest.mark.parametrize(
    "names",
    ["{'0': angry, '1': happy, '2': sad}", "[angry, happy, sad]"],
    ids=["by number", "a list"],
)
def test_class_names_of_a_local_copy_come_from_its_cards_dataset_info(names: str, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.parquet").write_bytes(parquet(ROWS, PLAIN))
    feature = f"{{name: emotion, dtype: {{class_label: {{names: {names}}}}}}}"
    (tmp_path / "README.md").write_text(
        f"---\ndataset_info:\n  features: [{{name: img, dtype: image}}, {feature}]\n---\n"
    )
    for root in (tmp_path, tmp_path / "data" / "train.parquet"):
        assert [CLASSES[i] for i in load_fer("fer2013", f"{root},label=emotion")["label"]] == [
            *("anger", "happiness", "sadness", "happiness")
        ]


def test_a_card_whose_configs_number_the_classes_otherwise_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train.parquet").write_bytes(parquet(ROWS, PLAIN))
    configs = [
        {"config_name": name, "features": [{"name": "emotion", "dtype": {"class_label": {"names": names}}}]}
        for name, names in (("raw", ["angry", "happy", "sad"]), ("clean", ["happy", "angry", "sad"]))
    ]
    (tmp_path / "README.md").write_text(f"---\n{yaml.safe_dump({'dataset_info': configs})}---\n")
    with pytest.raises(InputError, match=r"README\.md numbers the classes of 'emotion' otherwise in one config"):
        load_fer("fer2013", f"{tmp_path},label=emotion")
    chosen = load_fer("fer2013", f"{tmp_path},label=emotion,names=angry/happy/sad")["label"]
    assert [CLASSES[i] for i in chosen] == ["anger", "happiness", "sadness", "happiness"]


def test_a_row_of_the_hub_may_not_name_a_file_of_this_machine(data_hub: HubServer, tmp_path: Path) -> None:
    (tmp_path / "private.png").write_bytes(png(1))
    record = {"bytes": None, "path": str(tmp_path / "private.png")}
    table = pa.table({"image": [record], "label": ["happy"]})
    pq.write_table(table, file := tmp_path / "train.parquet")
    data_hub.put("user/faces", {"README.md": b"", "train.parquet": file.read_bytes()})
    with pytest.raises(InputError, match=r"which is no downloaded file; the set must hold its images"):
        load_fer("fer2013", "user/faces")


@pytest.mark.parametrize("info", ["[1]", "{features: [{name: emotion, dtype: {class_label: {names: {a: b}}}}]}"])
def test_a_card_whose_dataset_info_is_damaged_is_refused(info: str, tmp_path: Path) -> None:
    (tmp_path / "train.parquet").write_bytes(parquet(ROWS, PLAIN))
    (tmp_path / "README.md").write_text(f"---\ndataset_info: {info}\n---\n")
    with pytest.raises(InputError, match=r"README\.md: its dataset_info can't be read"):
        load_fer("fer2013", tmp_path)


def test_class_names_that_are_numbers_are_numbers(tmp_path: Path) -> None:
    features = Features({"image": Value("binary"), "label": ClassLabel(names=["1", "2"]), "text": Value("string")})
    rows = {"image": [png(0), png(1)], "label": [0, 1], "text": ["1", "2"]}
    (tmp_path / "train.parquet").write_bytes(parquet(rows, features))
    for column in ("label", "text"):
        with pytest.raises(InputError, match=f"column '{column}' holds plain integers.*names=angry/disgusted"):
            load_fer("rafdb", f"{tmp_path},label={column}")
        read = load_fer("rafdb", f"{tmp_path},label={column},names=-/surprise/fear")
        assert [CLASSES[i] for i in read["label"]] == ["surprise", "fear"]


def test_one_of_several_configs_is_chosen_by_name(data_hub: HubServer) -> None:
    configs = "\n".join(f"- config_name: {c}\n  data_files: {c}/*.parquet" for c in ("small", "large"))
    files = {f"{c}/train.parquet": parquet(ROWS, PLAIN) for c in ("small", "large")}
    commit = data_hub.put("ann/faces", {"README.md": f"---\nconfigs:\n{configs}\n---\n".encode(), **files})
    root = "ann/faces,names=angry/happy/sad,label=emotion"
    with pytest.raises(InputError, match=r"'ann/faces' has several configs; .*config=NAME: small, large"):
        load_fer("fer2013", root)
    with pytest.raises(InputError, match=r"has no config 'huge'.*: small, large"):
        load_fer("fer2013", f"{root},config=huge")
    assert len(load_fer("fer2013", f"{root},config=large,revision={commit}")) == 4
    with pytest.raises(InputError, match="two revisions; give one"):
        load_fer("fer2013", "ann/faces@main,revision=v1")


def test_a_loading_script_names_the_revision_to_read_instead(data_hub: HubServer) -> None:
    data_hub.put("ann/faces", {"README.md": b"", "faces.py": b"raise SystemExit"})
    with pytest.raises(InputError, match=r"loading script \(faces.py\).*: ann/faces@refs/convert/parquet") as caught:
        load_fer("fer2013", "ann/faces")
    assert "\n" not in str(caught.value)


def test_a_data_set_that_is_not_there_or_not_whole_is_one_line(data_hub: HubServer) -> None:
    data_hub.put("ann/faces", {"README.md": b"", "train.parquet": parquet(ROWS, PLAIN)[:-50]})
    for root in ("ann/nothing", "ann/faces"):
        with pytest.raises(InputError, match=f"'{root}' is no path here, and as a dataset on the Hub") as caught:
            load_fer("fer2013", root)
        assert "\n" not in str(caught.value)


def test_a_data_set_once_read_is_read_offline_with_its_commit(
    data_hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = data_hub.put("ann/faces", {"README.md": b"", **rated([])})
    before = load_split("diffusionfer", "ann/faces")[1]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    data_hub.requests.clear()
    assert load_split("diffusionfer", "ann/faces")[1] == before
    assert before.dataset_id == f"ann/faces@{commit}"
    assert data_hub.requests == []


@pytest.mark.parametrize("streaming", [False, True])
def test_a_set_says_whose_it_is_and_can_be_pickled(streaming: bool, data_hub: HubServer) -> None:
    commit = data_hub.put("ann/faces", {"README.md": b"", **rated([])})
    dataset = load_fer("diffusionfer", "ann/faces", streaming=streaming)
    again = pickle.loads(pickle.dumps(dataset))
    for info in (dataset.info, again.info):
        assert info.description == f"DiffusionFER, read from hf.co/datasets/ann/faces@{commit}"
        assert "D. Kim" in info.citation
        assert "CC0" in info.license
        assert info.homepage.startswith("https://")
        assert list(info.features) == list(dataset.features)
        assert info.features["label"].names == list(CLASSES)
    assert [row["label"] for row in again] == [row["label"] for row in dataset]


def test_scores_on_a_hub_data_set_name_it_and_its_commit_on_the_card(
    data_hub: HubServer, trained_run: Path, tmp_path: Path, ngd: Callable[..., Any]
) -> None:
    hub_set = next(s for s in HUB_SETS if s.root == "Jeneral/fer-2013@refs/convert/parquet")
    commit = plant(data_hub, hub_set)
    scored = str(tmp_path / "scored.json")
    done = ngd("evaluate", str(trained_run), "--data", f"fer2013={hub_set.root}:test", "--out", scored)
    assert done.returncode == 0, done.stderr
    entry = json.loads(Path(scored).read_text())["fer2013:test"]
    assert entry["dataset_id"] == f"Jeneral/fer-2013@{commit}"
    staged = tmp_path / "staged"
    done = ngd("push", str(trained_run), "ann/student", "--metrics", scored, "--folder", str(staged))
    assert done.returncode == 0, done.stderr
    assert json.loads((staged / "metrics.json").read_text())["fer2013:test"]["dataset_id"] == entry["dataset_id"]
    header = yaml.safe_load((staged / "README.md").read_text().split("---")[1])
    assert header["datasets"] == ["Jeneral/fer-2013"]
    sets = [result["dataset"] for result in header["model-index"][0]["results"]]
    assert {(s["type"], s.get("revision")) for s in sets} == {("schematic", None), ("Jeneral/fer-2013", commit)}
    (written,) = (staged / ".eval_results").iterdir()
    assert written.name == "fer2013-test.yaml"
    results = parse_eval_result_entries(yaml.safe_load(written.read_text()))
    assert [(r.dataset_id, r.dataset_revision) for r in results] == [("Jeneral/fer-2013", commit)] * len(results)
    assert [r.value for r in results] == [round(entry[p]["acc"], 2) for p in ("8way", "present")]


def test_a_run_on_a_hub_data_set_resumes_after_a_commit_that_changes_no_image(
    data_hub: HubServer, tmp_path: Path
) -> None:
    files = image_and_label(" ".join(CLASSES))(["train", "validation"])
    data_hub.put("ann/faces", {"README.md": b"", **files})
    settings: dict[str, Any] = {
        "name": "ck",
        "out": str(tmp_path / "run"),
        "student": {"backbone": "test_resnet", "image_size": 32},
    }
    data = {"name": "ferplus", "root": "ann/faces", "drop_duplicates": False, "workers": 0}
    run = train(Recipe.model_validate({**settings, "data": data, "optim": {"epochs": 1, "batch_size": 4}}))
    before = json.loads((run / "fingerprint.json").read_text())["data"]["train"]["dataset_id"]
    data_hub.put("ann/faces", {"README.md": b"Of our own.", **files})
    resume(run)
    assert load_split("ferplus", "ann/faces", "train")[1].dataset_id != before
    train_file, valid_file = sorted(files)
    data_hub.put("ann/faces", {**files, train_file: files[valid_file]})
    with pytest.raises(InputError, match="data is not what the run began with"):
        resume(run)
