"""Whole experiments: ablations, result pages, robustness, the demo. May import everything but the command line."""
