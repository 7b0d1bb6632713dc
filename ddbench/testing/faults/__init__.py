"""Faults on purpose: ddbench's own commands killed, starved of disk, and given damaged and hostile files.

    python -m ddbench.testing.faults --minutes 30 --seed 7

May import: everything but the command line, which it runs as a user does. Start with ``__main__``; ``commands``
carries out one command in a forked process that can be struck at a chosen operation, ``cells`` are the tiny runs, and
``kills``, ``flips``, ``full`` and ``hostile`` each say what a trial is and when it is wrong; ``record`` counts.
"""
