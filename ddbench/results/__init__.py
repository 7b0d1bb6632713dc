"""Runs compared: conditions, means over seeds, tests, published numbers, tables.

May import: run (records of runs) and below. Start with ``compare``; ``aggregate`` makes lines of runs that differ in
their seed alone, ``differences`` tests them.
"""
