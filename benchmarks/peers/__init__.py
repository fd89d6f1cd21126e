"""One adapter a contender.

Each runs in a process, and where it must in an environment, of its own.
"""
