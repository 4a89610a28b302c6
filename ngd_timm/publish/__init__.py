"""Cards, licences, pushes to the Hub and exports.

May import report and what it may.
"""
