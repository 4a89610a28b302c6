"""From recordings to band power: filters, Welch, baselines, a cache.

May import core.
"""
