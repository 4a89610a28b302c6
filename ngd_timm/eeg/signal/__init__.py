"""From recordings to band power: filters, Welch, baselines. May import core."""
