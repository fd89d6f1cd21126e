"""Probability distributions that a decoder returns: parameters and Fisher information."""
