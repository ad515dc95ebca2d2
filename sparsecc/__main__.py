"""The entry point of the ``sparsecc`` command."""

import sys


def main() -> None:
    try:
        from sparsecc.command_line import app
    except ModuleNotFoundError as error:
        remedy = "the command line needs pip install 'sparsecc[compile]'"
        print(f"sparsecc: {error.name} is not installed; {remedy}", file=sys.stderr)
        sys.exit(2)
    app()


if __name__ == "__main__":
    main()
