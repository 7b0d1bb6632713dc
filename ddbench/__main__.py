"""The command ``ddbench``, and ``python -m ddbench``: signals are heard before anything else is loaded."""

from ddbench.base import interrupts


def main() -> None:
    """Run the command line."""
    interrupts.hear()
    try:
        try:
            from ddbench.cli.main import main as command

            command()
        except SystemExit as end:
            interrupts.rest(end.code)
            raise
    except KeyboardInterrupt:  # while an error was being said
        interrupts.leave()


if __name__ == "__main__":
    main()
