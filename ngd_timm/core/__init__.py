"""What everything else stands on: errors, atomic files, devices, processes, the Hub, recipes, images, plots.

Imports nothing of ours.
"""
