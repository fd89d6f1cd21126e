"""Probability distributions that a decoder returns: parameters, Fisher information, features that
are flat.
"""
