"""What every layer rests on: tolerances by dtype, small matrices, rows that do not touch, random
numbers, checks.
"""
