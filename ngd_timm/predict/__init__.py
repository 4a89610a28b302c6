"""Predictions for images that somebody has.

May import models and what they may.
"""
