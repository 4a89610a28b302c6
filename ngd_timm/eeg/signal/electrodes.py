"""The electrodes of the headsets whose data sets are read here, in the order of the files."""

from __future__ import annotations

__all__ = ["BIOSEMI_32", "EMOTIV_14"]

EMOTIV_14 = ("AF3", "F7", "F3", "FC5", "T7", "P7", "O1", "O2", "P8", "T8", "FC6", "F4", "F8", "AF4")
"""Emotiv EPOC and EPOC+: DREAMER, GAMEEMO."""

BIOSEMI_32 = (
    *("Fp1", "AF3", "F3", "F7", "FC5", "FC1", "C3", "T7", "CP5", "CP1", "P3", "P7", "PO3", "O1", "Oz", "Pz"),
    *("Fp2", "AF4", "Fz", "F4", "F8", "FC6", "FC2", "Cz", "C4", "T8", "CP6", "CP2", "P4", "P8", "PO4", "O2"),
)
"""BioSemi ActiveTwo with 32 electrodes: MAHNOB-HCI, and DEAP's recordings from Geneva."""
