"""One adapter per contender.

Each runs in a process of its own, and where necessary in an environment of its own.
"""
