"""Recordings from files: DREAMER, MAHNOB-HCI, DEAP, FACED, BIDS, own recordings. May import eeg.signal and core."""
