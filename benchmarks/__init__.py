"""Benchmarks beside other packages. ``make bench`` runs them all.

See ``results/`` for what they found.
"""
