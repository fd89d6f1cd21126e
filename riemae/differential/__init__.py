"""Derivatives of any function of rows, by the fastest mode of torch that is right for it."""

from riemae.differential.functional import contraction, jacobian, jvp, second_derivative, vjp

__all__ = ["contraction", "jacobian", "jvp", "second_derivative", "vjp"]
