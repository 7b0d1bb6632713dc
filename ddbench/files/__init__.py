"""Sets of other tools, in and out: read without running them, recognised, converted; and what ``eval`` is given.

May import: run and below. Start with ``target``, which opens whatever ``ddbench eval`` is pointed at; ``safe_load``
is the only door through which foreign files enter.
"""
