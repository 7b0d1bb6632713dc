"""What a matcher is asked to solve, and what it answers with: problems, starts, experts, synthetic sets.

May import: train, data, base. Start with ``problem``; then ``starts``, which holds the one idea of ddbench: the student
graded after stage j is the network that stage j + 1 starts from. ``stages`` is for authors of schedulers.
"""
