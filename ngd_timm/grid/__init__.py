"""The valence/arousal prototype grid: built, tested, described and published.

May import core.
"""
