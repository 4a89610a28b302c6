"""Predictions for images of face crops.

May import models and what they may.
"""
