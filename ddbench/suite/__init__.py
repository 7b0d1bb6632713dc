"""Grids of runs from a file, each cell in a process of its own.

May import: results and below. Start with ``grid`` (a file to cells), then ``runner`` (cells to processes).
"""
