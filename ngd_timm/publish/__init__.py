"""What leaves the machine: cards, licences, pushes to the Hub, exports.

May import report and what it may.
"""
