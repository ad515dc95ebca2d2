"""The entry point of the ``sparsecc`` command."""

import sys


def main() -> None:
    try:
        from sparsecc.command_line import app
    except ModuleNotFoundError as error:
        name = error.name
        print(f"sparsecc: {name} is not installed; the command line needs pip install 'sparsecc[compile]'", file=sys.stderr)
        sys.exit(2)
    app()


if __name__ == "__main__":
    main()
