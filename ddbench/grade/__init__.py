"""How good a set is: the rules, selection on validation data, students, and evaluations on test data.

May import: plugins, problem, train, data, base. Start with ``protocol`` (the rules), then ``evaluation``, which writes
what it finds as files; ``distilled`` is the file of a set that describes itself.
"""
