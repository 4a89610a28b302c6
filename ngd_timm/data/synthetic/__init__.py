"""Faces that a program makes: drawn ones, every layout in miniature, corruptions.

May import core and the rest of data.
"""
