"""The entry point of the ``sparsecc`` command."""

import sys


def main() -> None:
    try:
        from sparsecc.command_line import app
    except ModuleNotFoundError as error:
        sys.exit(f"sparsecc: {error.name} is not installed; the command line needs pip install 'sparsecc[compile]'")
    app()


if __name__ == "__main__":
    main()
