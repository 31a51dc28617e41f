"""The command line: `python -m ssm_poison_lib`."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import sys
from collections.abc import Sequence

from ssm_poison_lib._commands import COMMANDS
from ssm_poison_lib.studies.store import StudyError

_EPILOG = (
    "exit status: 0 done; 1 something failed (what is finished is kept); 2 wrong use;"
    " 130 interrupted\nexample: python -m ssm_poison_lib reproduce all"
)


def _parser(command: str | None) -> argparse.ArgumentParser:
    """Return the parser of all commands, with the arguments of the one that was asked for."""
    kept_lines = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m ssm_poison_lib",
        description="Run the experiments of the book.",
        epilog=_EPILOG,
        formatter_class=kept_lines,
    )
    version = importlib.metadata.version("ssm-poison-lib")
    parser.add_argument("--version", action="version", version=f"ssm-poison-lib {version}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in COMMANDS.items():
        one = commands.add_parser(name, help=text, formatter_class=kept_lines)
        if name == command:
            module = importlib.import_module(f"ssm_poison_lib._commands.{name}")
            one.epilog = module.EPILOG
            module.configure(one)
            one.set_defaults(run=module.run)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status.

    Args:
        arguments: of the command line, those of this process by default.

    Returns:
        0 if all was done, 1 if something failed or a file cannot be written (what is finished is
        kept), 2 for wrong use, 130 after Ctrl-C.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    try:
        options = _parser(
            next((word for word in given if not word.startswith("-")), None)
        ).parse_args(given)
        return int(options.run(options))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    except StudyError as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"{where}{error.strerror or error}; what is finished is kept", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            "stopped; what is finished is kept, the same command goes on from there",
            file=sys.stderr,
        )
        return 130


if __name__ == "__main__":
    sys.exit(main())
