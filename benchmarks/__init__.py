"""Benchmarks beside other packages. ``make bench`` runs them all; see ``results/`` for what they found."""
