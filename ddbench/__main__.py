"""``python -m ddbench`` is ``ddbench``."""

from ddbench.cli.main import main

if __name__ == "__main__":
    main()
