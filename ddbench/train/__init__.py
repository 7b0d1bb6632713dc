"""Networks as functions of flat vectors, and the only trainer.

May import: data, base. Start with ``fit``: experts, start networks, students and ceilings are all trained there.
``compile`` says when code is compiled, and remembers how it came out.
"""
