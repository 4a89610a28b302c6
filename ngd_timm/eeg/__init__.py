"""EEG to prototypes: recordings, band power, topographic maps, a teacher with folds by subject, and the grid it gives.

Nothing here is imported by `import ngd_timm`: the students never need it.
"""
