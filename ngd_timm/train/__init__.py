"""One training run: set-up, the loop, checkpoints.

May import evaluate and what it may.
"""
