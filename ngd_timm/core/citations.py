"""Names, citations and terms of the data sets, for cards and licences."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["EEG", "FACES", "FORBIDDEN", "METHOD", "Credit", "dataset_name"]


@dataclass(frozen=True)
class Credit:
    """A data set as cards and licences cite it.

    Attributes:
        title: Its name.
        citation: What to cite; empty where there is nothing to cite.
        terms: One sentence on what its owners allow.
        doing: What participants did while they were recorded.
        note: What a reader of scores has to know.
    """

    title: str
    citation: str = ""
    terms: str = ""
    doing: str = ""
    note: str = ""


METHOD = (
    'Z. Li, W. Xu, X. Zhao, Y. Zhu, "NeuroGaze-Distill: Brain-informed Distillation and Depression-Inspired Geometric '
    'Priors for Robust Facial Emotion Recognition", arXiv 2509.11916 (2025).'
)

FORBIDDEN = (
    "to identify, watch or profile people, to judge people at work or in education (the EU AI Act forbids inferring "
    "emotions there), to diagnose, or to decide anything about a person"
)

EEG: Mapping[str, Credit] = {
    "GAMEEMO": Credit(
        "GAMEEMO",
        'T. B. Alakus, M. Gonen, I. Turkoglu, "Database for an emotion recognition system based on EEG signals and '
        'various computer games - GAMEEMO", Biomedical Signal Processing and Control 60 (2020), 101951.',
        "Its authors published the database for research; the band-power file that the averages were made from came "
        "without a licence of its own.",
        "playing games",
        "The powers are of z-scored windows, hence relative. A game was rated once, so that all windows of a trial "
        "share one label.",
    ),
    "DREAMER": Credit(
        "DREAMER",
        'S. Katsigiannis, N. Ramzan, "DREAMER: A database for emotion recognition through EEG and ECG signals from '
        'wireless low-cost off-the-shelf devices", IEEE Journal of Biomedical and Health Informatics 22 (2018), '
        "98-107.",
        "It is given out for research under an agreement with its authors.",
        "watching film clips",
    ),
    "MAHNOB-HCI": Credit(
        "MAHNOB-HCI",
        'M. Soleymani, J. Lichtenauer, T. Pun, M. Pantic, "A multimodal database for affect recognition and implicit '
        'tagging", IEEE Transactions on Affective Computing 3 (2012), 42-55.',
        "It is given out for research under an agreement with its authors.",
        "watching film clips",
    ),
    "DEAP": Credit(
        "DEAP",
        'S. Koelstra et al., "DEAP: A database for emotion analysis using physiological signals", IEEE Transactions on '
        "Affective Computing 3 (2012), 18-31.",
        "It is given out for research under an agreement with its authors.",
        "watching music videos",
    ),
}
"""By the name at the head of a data set's description."""

_FER2013 = (
    'I. Goodfellow et al., "Challenges in representation learning: A report on three machine learning contests", '
    "ICONIP 2013, 117-124."
)
_AGREEMENT = "Its images are given out for research under an agreement with their owners and are not to be passed on."

FACES: Mapping[str, Credit] = {
    "ferplus": Credit(
        "FER+ (images of FER2013)",
        'E. Barsoum, C. Zhang, C. Canton Ferrer, Z. Zhang, "Training deep networks for facial expression recognition '
        f'with crowd-sourced label distribution", ICMI 2016, 279-283. Images: {_FER2013}',
        "The images are FER2013's, for research and not to be passed on; the labels are Microsoft's (MIT).",
    ),
    "fer2013": Credit("FER2013", _FER2013, "The images are for research and not to be passed on."),
    "affectnet": Credit(
        "AffectNet",
        'A. Mollahosseini, B. Hasani, M. H. Mahoor, "AffectNet: A database for facial expression, valence, and arousal '
        'computing in the wild", IEEE Transactions on Affective Computing 10 (2019), 18-31.',
        _AGREEMENT,
    ),
    "ckplus": Credit(
        "CK+",
        'P. Lucey et al., "The Extended Cohn-Kanade Dataset (CK+): A complete dataset for action unit and '
        'emotion-specified expression", CVPR Workshops 2010, 94-101.',
        _AGREEMENT,
    ),
    "rafdb": Credit(
        "RAF-DB",
        'S. Li, W. Deng, J. Du, "Reliable crowdsourcing and deep locality-preserving learning for expression '
        'recognition in the wild", CVPR 2017, 2584-2593.',
        _AGREEMENT,
    ),
    "jaffe": Credit(
        "JAFFE",
        'M. Lyons, S. Akamatsu, M. Kamachi, J. Gyoba, "Coding facial expressions with Gabor wavelets", FG 1998, '
        "200-205.",
        _AGREEMENT,
    ),
    "sfew": Credit(
        "SFEW",
        'A. Dhall, R. Goecke, S. Lucey, T. Gedeon, "Static facial expression analysis in tough conditions: Data, '
        'evaluation protocol and benchmark", ICCV Workshops 2011, 2106-2112.',
        _AGREEMENT,
    ),
    "schematic": Credit("schematic faces", terms="A program drew the faces; no person is in them."),
}
"""By the name that recipes give a data set."""


def dataset_name(dataset: str) -> str:
    """The name at the head of a data set's description.

    Example:
        >>> dataset_name("DREAMER (Katsigiannis & Ramzan 2018), 14-channel Emotiv")
        'DREAMER'
    """
    return re.split(r" \(|[,;:]", dataset)[0].strip()
