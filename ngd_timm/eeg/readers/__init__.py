"""Recordings from files: DREAMER, MAHNOB-HCI, DEAP, anybody's own.

May import eeg.signal and core.
"""
