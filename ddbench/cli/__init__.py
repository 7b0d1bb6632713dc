"""The command line: parsing, and what each command does with what it parsed.

May import everything; nothing imports it. Start with ``main``. Only ``console`` prints, and only this room knows
click; torch and plugins are loaded when a command needs them.
"""
