"""Errors, atomic files, devices, processes, the Hub, recipes, images and plots, for all other folders.

Imports nothing of ours.
"""
