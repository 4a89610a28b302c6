"""Names, citations and terms of the data sets, for cards and licences."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import yaml

from ngd_timm.core.files import packaged

METHOD = (
    'Z. Li, W. Xu, X. Zhao, Y. Zhu, "NeuroGaze-Distill: Brain-informed Distillation and Depression-Inspired Geometric '
    'Priors for Robust Facial Emotion Recognition", arXiv 2509.11916 (2025).'
)
BIBTEX = """\
@misc{li2025neurogazedistill,
  title         = {{NeuroGaze-Distill}: Brain-informed Distillation and Depression-Inspired Geometric Priors for Robust Facial Emotion Recognition},
  author        = {Li, Zilin and Xu, Weiwei and Zhao, Xuanqi and Zhu, Yiran},
  year          = {2025},
  eprint        = {2509.11916},
  archivePrefix = {arXiv}
}"""  # noqa: E501
FORBIDDEN = (
    "to identify, watch or profile people, to judge people at work or in education (the EU AI Act forbids inferring "
    "emotions there), to diagnose, or to decide anything about a person"
)


@dataclass(frozen=True)
class Credit:
    """A data set as cards and licences cite it; see hub/templates/credits.yaml."""

    title: str
    citation: str = ""
    terms: str = ""
    doing: str = ""
    note: str = ""
    home: str = ""


def _credits(kind: str) -> Mapping[str, Credit]:
    text = (packaged("hub") / "templates" / "credits.yaml").read_text(encoding="utf-8")
    return {name: Credit(**entry) for name, entry in yaml.safe_load(text)[kind].items()}


EEG = _credits("eeg")
"""By the name at the head of a data set's description."""
FACES = _credits("faces")
"""By the name that recipes give a data set."""


def dataset_name(dataset: str) -> str:
    """The name at the head of a data set's description: "DREAMER (Katsigiannis …" is DREAMER."""
    return re.split(r" \(|[,;:]", dataset)[0].strip()


def dataset_names(dataset: str) -> list[str]:
    """The same for a pool, whose description joins those of its sets by " + "."""
    return [dataset_name(part) for part in dataset.split(" + ") if part]


def eeg_credits(metadata: Mapping[str, str]) -> list[Credit]:
    """The known EEG data sets behind a grid, from its metadata: the rated ones, then the unlabelled support."""
    names = [name for key in ("dataset", "support") for name in dataset_names(metadata.get(key, ""))]
    return [EEG[name] for name in dict.fromkeys(names) if name in EEG]
