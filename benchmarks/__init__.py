"""Benchmarks of riemae and of other packages. ``make bench`` runs them all.

Their results are in ``results/``.
"""
