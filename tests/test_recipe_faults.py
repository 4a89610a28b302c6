"""Recipes: keys and files that make no recipe are refused before anything is read or written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from faults import FOLDER, RAMP, TRAIN, encoded, rows, write


@rows(
    "key, message",
    {
        "a value of a wrong type": ("optim.epochs=many", "optim.epochs: "),
        "a value out of range": ("loss.tau=0", "loss.tau: Input should be greater than 0"),
        "NaN": ("optim.lr=.nan", "optim.lr: Input should be"),
        "infinity": ("loss.ce=.inf", "loss.ce: Input should be a finite number"),
        "a number that overflows": ("optim.lr=1e999", "optim.lr: Input should be a finite number"),
        "an unknown key": ("optim.epoch=3", "did you mean 'optim.epochs'"),
        "a key with a Cyrillic o": ("оptim.lr=1", "unknown key 'оptim'; did you mean 'optim'"),
        "a key with a line break": ("'optim\n.lr=1'", r"unknown key 'optim\n'; did you mean"),
        "a key of 3 000 letters": ("o" * 3000 + "=1", "unknown key 'ooo"),
        "a key without a value": ("optim.epochs", "is not key=value"),
        "a value without a key": ("=3", "is not key=value"),
        "a key with an empty part": ("optim..lr=1", "unknown key"),
        "a key below a text": ("name.of=1", "'name' is a value, not a section"),
        "a key below a number": ("seed.of=1", "seed: Input should be a valid integer"),
        "an open bracket": ("data.root=[", "is not valid YAML"),
        "2 000 open brackets": ("data.root=" + "[" * 2000, "is not valid YAML"),
        "a tag that does not fit": ("optim.lr='!!bool x'", "is not valid YAML"),
        "5 000 hexadecimal digits": ("init=[0x" + "f" * 5000 + "]", "is not valid YAML"),
        "a date in month 13": ("seed=2024-13-45", "is not valid YAML"),
        "a name that leads to another folder": ("name=../up", "name: "),
        "no data": ("", "data.root is not set"),
        "a temperature without effect": ("loss.kd=.3 teacher=x loss.temperature=1", "has no effect on kd_mode=mse"),
        "few labels of a stream": ("data.label_fraction=.05 data.streaming=true", "which data.streaming does not hold"),
        "a stream read twice": ("data.epoch_repeats=2 data.streaming=true", "data.epoch_repeats is for small sets"),
        "no label at all": ("data.label_fraction=0", "data.label_fraction: Input should be greater than 0"),
        "weights averaged twice": ("optim.ema=.99 optim.swa=.25", "both average the weights; leave one out"),
        "unlabelled images without a teacher": ("data.unlabelled=[faces]", "images for a teacher to label"),
        "an unknown backbone": ("data.root=x student.backbone=resnet81", "did you mean"),
    },
)
def test_a_wrong_key_on_the_command_line(key: str, message: str, refused: Any) -> None:
    refused(f"train b0_ce {key}", message)


@rows(
    "content, message",
    {
        "a folder": (FOLDER, "no recipe file"),
        "an empty file": ("", "is a mapping of keys, got NoneType"),
        "a list": ("- a\n- b\n", "is a mapping of keys"),
        "two recipes in a file": ("name: a\n---\nname: b\n", "not valid YAML"),
        "a tab before a key": ("optim:\n\tlr: 1\n", "not valid YAML"),
        "a PNG": (encoded(RAMP), "not valid YAML"),
        "2 MiB": ("name: a\n" + "#" * (2 << 20), "at most 1 MiB"),
        "100 000 open brackets": ("name: " + "[" * 100_000, "not valid YAML"),
        "a key that stands twice": ("name: a\nname: b\n", "stands twice"),
        "a key that is a number": ("name: a\n1: 2\n", "Keys should be strings, got 1"),
        "a key that is a list": ("name: a\n? [a, b]\n: 1\n", "is no key"),
        "a key that is a set": ("name: a\n? !!set {a}\n: 1\n", "not valid YAML"),
        "an alias": ("name: a\nx: &a [1]\ny: *a\n", "aliases"),
        "a YAML bomb": ("a: &a [x,x]\nb: &b [*a,*a]\nc: &c [*b,*b]\n", "aliases"),
        "code": ("name: !!python/object/apply:os.system [true]\n", "not valid YAML"),
        "a number of 5 000 digits": ("name: a\nseed: " + "9" * 5000, "not valid YAML"),
        "a date in month 13": ("name: a\nseed: 2024-13-45\n", "not valid YAML"),
        "a NUL in a path": ('name: a\ndata: {root: "a\\0b"}\n', "control characters"),
        "half a surrogate pair": ('name: a\nout: "\\ud800"\n', "not valid YAML"),
    },
)
def test_a_file_that_is_no_recipe(content: Any, message: str, refused: Any, tmp_path: Path) -> None:
    write(tmp_path, {"mine.yaml": content})
    refused("train mine.yaml", message)


def test_a_recipe_that_may_not_be_read_is_refused(refused: Any, tmp_path: Path) -> None:
    write(tmp_path, {"mine.yaml": "name: a"})
    (tmp_path / "mine.yaml").chmod(0)
    refused("train mine.yaml", "Permission denied")


@rows(
    "options, message",
    {
        "a sweep over a key that does not exist": ("--set loss.dgeo=.1,.2", "did you mean 'loss.d_geo'"),
        "a sweep of one value": ("--set loss.d_geo=.1", "two different values or more"),
        "a sweep of no value": ("--set loss.d_geo=", "two different values or more"),
        "a sweep that gives a value twice": ("--set loss.d_geo=.1,0.10", "two different values or more"),
        "a sweep given twice": ("--set loss.d_geo=.1,.2 --set loss.d_geo=.3,.4", "is given twice"),
        "a sweep with an open bracket": ("--set loss.ramp=[0,0],[.2", "two different values or more"),
        "a sweep over a value that is none": ("--set loss.d_geo=.1,much", "loss.d_geo: Input should be"),
        "a sweep over seeds": ("--set seed=1,2", "an ablation sets seed itself"),
        "a sweep of two recipes at once": ("b0_ce --set loss.d_geo=.1,.2", "write for example --set b0_ce:loss.d_geo"),
        "a sweep of a recipe that is not there": ("--set b3_ful:loss.d_geo=.1,.2", "did you mean 'b3_full'"),
        "a choice by an unknown metric": ("--choose f1=ckplus", "unknown metric"),
        "a choice by a set that is not scored": ("--choose macro_f1=ckplus", "add eval.ckplus=ROOT"),
    },
)
def test_a_sweep_or_a_choice_that_cannot_be(options: str, message: str, refused: Any) -> None:
    refused(f"ablate b3_full {options} teacher=student data.name=schematic data.root=faces --out out", message)


@rows(
    "command, message",
    {
        "neither a recipe nor a run": ("train", "give one recipe"),
        "an unknown recipe": ("train b3_ful", "did you mean 'b3_full'"),
        "a recipe file that is missing": ("train absent.yaml", "no recipe file"),
        "a recipe file of 300 letters": ("train " + "x" * 300 + ".yaml", "File name too long"),
        "an unknown optimizer": (f"{TRAIN} optim.opt=addam", "optim.opt=addam"),
        "a backbone's repository without hf-hub:": (f"{TRAIN} student.backbone=timm/a.b", "write hf-hub:timm/a.b"),
        "a backbone's folder that is missing": (f"{TRAIN} student.backbone=local-dir:gone", "timm can't open it"),
        "weights that timm lacks": (
            f"{TRAIN} student.backbone=nf_resnet26 student.pretrained=true",
            "has no weights of",
        ),
        "a device that is not there": (f"{TRAIN} device=cuda:99", "is not on this machine"),
        "a set to choose on that is not evaluated": (f"{TRAIN} best_on=[ckplus]", "not in eval (empty); add it there"),
        "a set to choose on that stands twice": (
            f"{TRAIN} 'eval={{schematic: faces:test}}' best_on=[schematic,schematic]",
            "best_on names a set twice",
        ),
        "an unknown set to evaluate": (f"{TRAIN} 'eval={{ckpluss: x}}'", "did you mean 'ckplus'"),
        "the run's own validation set to evaluate": (
            f"{TRAIN} 'eval={{schematic: faces:valid}}'",
            "is the run's own validation set",
        ),
        "a set to evaluate that is missing": (f"{TRAIN} 'eval={{ckplus: gone/there/x}}'", "gone/there/x"),
        "a teacher that is missing": (f"{TRAIN} loss.kd=.3 teacher=gone/there/x", "neither a run directory"),
        "a start that is missing": (f"{TRAIN} init=gone/there/x", "is neither a run directory"),
        "a grid of another width than the features, without a projection": (
            f"{TRAIN} grid=gameemo-v2 loss.proto_kd=.1 student.projection=none",
            "projection=none needs a grid as wide as",
        ),
        "a grid of another size": (f"{TRAIN} grid=gameemo-v2 grid_size=7 loss.proto_kd=.1", "grid_size asks for 7"),
    },
)
def test_something_that_a_recipe_names_and_is_not_there(command: str, message: str, refused: Any) -> None:
    refused(command, message)
