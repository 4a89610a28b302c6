"""Simulated recordings and band power with known valence and arousal, in every reader's layout.

May import eeg.readers and eeg.signal.
"""
