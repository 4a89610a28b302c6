"""The EEG teacher: folds, fitting, held-out scores, and the grid. May import the rest of eeg, grid and core."""
