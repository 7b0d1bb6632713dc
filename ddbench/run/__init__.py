"""A run: from a spec to a folder with the distilled set, its evaluation and its cost; and reading it back.

May import: grade, plugins, problem, train, data, base. Start with ``run`` (the loop over stages) and ``stage`` (the
loop over iterations); ``spec`` is everything that decides a set, ``record`` a run as it is read from its folder,
and ``row`` what of it stands in tables.
"""
