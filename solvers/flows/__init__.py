"""Initial value problems: exponential map, transport, Jacobi fields, conjugate points."""
