"""The EEG teacher: folds, fitting, held-out scores, embeddings brought into a grid.

May import the rest of eeg, grid and core.
"""
