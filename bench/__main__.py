"""`python -m bench`, or `dali-imagenet bench`: compare image loaders on this machine, and check them.

`--help` lists the commands.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
from collections.abc import Sequence

from .core import PROGRAM

# Modules with NAME, HELP, add_arguments(parser) and run(options) -> int. All are imported for every command: what
# costs, torch above all, is imported where it is used.
COMMANDS = (
    "compare.loaders",
    "compare.report",
    "compare.compare",
    "compare.generate",
    "compare.sources",
    "compare.views",
    "decode",
    "scaling",
    "ops",
    "gpu.gpu",
    "gpu.paper",
    "gpu.host",
    "checks.audit",
    "checks.parity",
    "checks.broken",
    "checks.fuzz",
    "checks.native",
    "checks.soak",
    "checks.first_batch",
    "checks.checkouts",
)
DEFAULT = "loaders"
EXTRA = ("rich", "matplotlib", "psutil")
WITHOUT_EXTRA = ("gpu", "checkouts")


def need_extra() -> None:
    absent = [module for module in EXTRA if importlib.util.find_spec(module) is None]
    if absent:
        sys.exit(f"The comparison needs {', '.join(absent)}. Install its extra: pip install 'dali-imagenet[compare]'")


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog=PROGRAM,
        usage=f"{PROGRAM} [COMMAND] [options]",
        description="Compare image loaders on this machine, and check what they hand out.",
        epilog=f"Without a command it is '{DEFAULT}': {PROGRAM} --quick --data DIR. "
        f"Each command has its own --help, as in: {PROGRAM} {DEFAULT} --help",
    )
    commands = top.add_subparsers(title="commands", metavar="COMMAND [options]", dest="command", prog=PROGRAM)
    for name in COMMANDS:
        module = importlib.import_module(f".{name}", __package__)
        command = commands.add_parser(module.NAME, help=module.HELP, description=module.__doc__)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or (words[0].startswith("-") and words[0] not in ("-h", "--help")):
        words.insert(0, DEFAULT)
    options = parser().parse_args(words)
    options.words = words[1:]
    if options.command not in WITHOUT_EXTRA:
        need_extra()
    try:
        _unpack(options)
    except (OSError, ValueError, ImportError) as error:
        print(f"--data: {error}", file=sys.stderr)
        return 2
    return int(options.run(options))


def _unpack(options: argparse.Namespace) -> None:
    """`--data` of any kind as the folder that the commands and all contestants read."""
    if isinstance(getattr(options, "data", None), str):  # a command that takes folders alone has a Path
        from .core import images

        options.data = images.as_folder(options.data)


if __name__ == "__main__":
    sys.exit(main())
