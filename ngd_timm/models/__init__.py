"""timm backbones with a projection, saved and opened students, KD teachers, calibration.

May import losses, grid and core.
"""
