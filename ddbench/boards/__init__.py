"""Leaderboards: their rules, entries as files, rankings, and pages that need no server.

May import: results and below; not suite. Start with ``board``, the rules that every entry is held to.
"""
