"""Simulated recordings and band power, in every reader's layout. May import eeg.readers and eeg.signal."""
