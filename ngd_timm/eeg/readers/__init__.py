"""Recordings from files: DREAMER, MAHNOB-HCI, DEAP, own recordings. May import eeg.signal and core."""
