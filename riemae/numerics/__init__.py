"""What every layer rests on: tolerances, small matrices, independent rows, randomness, checks."""
