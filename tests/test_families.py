"""A fast part of tests/families.py, and what its table promises."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from families import CHECKS, Family, families, smallest_input, verdict

from ngd_timm.models.head_calls import ONE_CALL, TWO_CALLS

TABLE = (Path(__file__).parent.parent / "docs" / "backbones.md").read_text(encoding="utf-8")
# each kind of head: plain, cls token, BN on the way, dropout behind the pre-logits, two heads, list of features
NAMES = ["test_convnext", "test_vit", "cpubone_nano", "lcnetv2_small", "levit_128s", "dla46x_c"]


@pytest.mark.parametrize("name", NAMES)
def test_a_family_wraps_trains_a_step_and_is_reloaded_by_timm_bit_equal(name: str) -> None:
    options, size = smallest_input(name)
    subject = Family(name, size, options)
    for check in CHECKS:
        if check != "onnx":  # a minute a model
            assert verdict(getattr(subject, check)) is True, check


def test_a_family_without_layer_groups_of_its_own_gets_those_that_timm_finds() -> None:
    assert verdict(Family("poolformerv2_s12", 64, {}).groups) is True


def test_a_family_that_fails_a_check_is_reported_with_the_reason() -> None:
    subject = Family("test_resnet", 32, {})
    subject.wraps().student.pretrained_cfg["architecture"] = "test_resnet_that_is_not"
    assert "Unknown model" in str(verdict(subject.reload))


def test_the_table_has_every_family_the_first_four_checks_pass_in_all_and_head_calls_are_the_wrappers() -> None:
    rows = {
        cells[0]: cells for line in TABLE.splitlines() if len(cells := line.strip("| ").split(" | ")) == 5 + len(CHECKS)
    }
    del rows["family"]
    assert set(rows) == set(families())
    for title in list(CHECKS.values())[:4]:
        passed = re.search(rf"^\| {re.escape(title)} \| (\d+) of (\d+) \|", TABLE, flags=re.M)
        assert passed
        assert passed[1] == passed[2] == str(len(rows))
    assert {family for family, cells in rows.items() if cells[4] == "2"} - {"sequencer"} == TWO_CALLS
    assert {family for family, cells in rows.items() if cells[4] == "1"} == ONE_CALL
