"""Path solvers, one algorithm per file."""
