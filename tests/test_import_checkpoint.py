"""A checkpoint of somebody else's becomes a student that timm loads and that scores as the network did."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from faults import rows

from ngd_timm.core.errors import InputError
from ngd_timm.models.imported import import_checkpoint
from ngd_timm.models.student import open_student

IMPORT = "import-checkpoint best.ckpt --backbone test_resnet --size 32 --channels 1 --out new"


def network(**options: Any) -> Any:
    torch.manual_seed(1)
    return timm.create_model("test_resnet", **{"num_classes": 8, "in_chans": 1, **options}).eval()


def prefixed(prefix: str, weights: dict[str, Any]) -> dict[str, Any]:
    return {f"{prefix}{name}": tensor for name, tensor in weights.items()}


WEIGHTS = network().state_dict()
PROJECTION = {"proj.weight": torch.ones(64, 96), "prototypes": torch.ones(25, 64)}


@rows(
    "content, line",
    {
        "the weights alone": (WEIGHTS, "from the top"),
        "half precision": ({n: t.half() if t.is_floating_point() else t for n, t in WEIGHTS.items()}, "from the top"),
        "an old torch's": ({n: t for n, t in WEIGHTS.items() if not n.endswith("num_batches_tracked")}, "from the top"),
        "a compiled one": ({"model": prefixed("_orig_mod.", WEIGHTS)}, "from 'model', under '_orig_mod.'"),
        "Lightning's": ({"state_dict": prefixed("model.", WEIGHTS) | PROJECTION, "epoch": 9}, "under 'model.'"),
        "a student beside its teacher": (
            {"state_dict": prefixed("teacher.", WEIGHTS) | prefixed("module.student.", WEIGHTS)},
            "from 'state_dict', under 'module.student.'",
        ),
        "nested": ({"student": {"state_dict": prefixed("backbone.", WEIGHTS)}}, "from 'student.state_dict'"),
        "a moving average": ({"ema": prefixed("module.", WEIGHTS), "best": torch.tensor(0.6)}, "from 'ema'"),
    },
)
def test_weights_are_found_wherever_checkpoints_have_them(content: Any, line: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "best.ckpt")
    lines = import_checkpoint(tmp_path / "best.ckpt", "test_resnet", tmp_path / "new", image_size=32, in_chans=1)
    assert line in lines[0]
    images = torch.randn(2, 1, 32, 32)
    loaded = timm.create_model(f"local-dir:{tmp_path / 'new'}", pretrained=True).eval()
    with torch.inference_mode():
        torch.testing.assert_close(loaded(images), network()(images), atol=1e-4, rtol=0)


def test_a_refused_import_leaves_nothing(tmp_path: Path) -> None:
    torch.save(timm.create_model("densenet121", num_classes=8).state_dict(), tmp_path / "best.ckpt")
    with pytest.raises(InputError, match="can't take an image of"):
        import_checkpoint(tmp_path / "best.ckpt", "densenet121", tmp_path / "new", image_size=16)
    assert [path.name for path in tmp_path.iterdir()] == ["best.ckpt"]


def test_a_classifier_of_another_name_is_found_by_its_shape_and_what_served_training_is_named(
    tmp_path: Path, ngd: Callable[..., Any], faces: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    body = {name: tensor for name, tensor in WEIGHTS.items() if not name.startswith("fc.")}
    head = {"head.weight": WEIGHTS["fc.weight"], "head.bias": WEIGHTS["fc.bias"]}
    torch.save({"model": prefixed("backbone.", body) | head | PROJECTION, "model_ema": WEIGHTS}, "best.ckpt")
    Path("map.json").write_text('{"contempt": 7, "fear": 0, "happy": 1, "sad": 2, "surprise": 3, "anger": 4, '
                                '"disgust": 5, "neutral": 6}')  # fmt: skip
    shown = ngd(*IMPORT.split(), "--classes", "map.json", "--mean", "0.4", "--std", "0.2")
    assert shown.returncode == 0, shown.stderr
    for words in (
        "fc.weight is head.weight, the only one of its shape",
        "left out: 2 (proj.weight, prototypes)",
        "not read: model_ema; --key reads them",
        "logits: fear, happiness, sadness, surprise, anger, disgust, neutral, contempt",
        "images: 1 x 32 x 32, mean (0.4,), std (0.2,)",
    ):
        assert words in shown.stdout
    student, names = open_student("new")
    assert names[6] == "neutral"
    torch.testing.assert_close(student.fc.weight, WEIGHTS["fc.weight"])
    assert ngd("evaluate", "new", "--data", f"schematic={faces}:test").returncode == 0
    averaged = ngd(*IMPORT.replace("new", "averaged").split(), "--key", "model_ema")
    assert "92 weights of test_resnet from 'model_ema'\n" in averaged.stdout
