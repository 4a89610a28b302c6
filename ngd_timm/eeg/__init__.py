"""EEG to prototypes: recordings, band power, topographic maps, a teacher with folds by subject, and the grid it gives.

May import grid and core. Nothing here is imported by `import ngd_timm`: the students never need it.
"""

from ngd_timm.eeg.readers.own import read_recordings
from ngd_timm.eeg.signal.bandpower import save_bandpower
from ngd_timm.eeg.signal.preprocess import band_power
from ngd_timm.eeg.signal.recording import Recording, RecordingSet
from ngd_timm.eeg.topomap import TopomapOperator

__all__ = ["Recording", "RecordingSet", "TopomapOperator", "band_power", "read_recordings", "save_bandpower"]
