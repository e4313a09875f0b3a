"""`dali-imagenet`: look at data, pack them, see what a recipe makes of them, run timm's scripts, compare."""

from __future__ import annotations

import argparse
import importlib
import logging
import re
import sys
from types import ModuleType
from typing import Any

from dali_imagenet.cli.common import EXIT_CODES, FAILED, USAGE, CommandError

COMMANDS = (
    "index",
    "pack",
    "preview",
    "explain",
    "explore",
    "failures",
    "cache",
    "doctor",
    "train",
    "timm_train",
    "bench",
)
"""Modules of `dali_imagenet.cli`, in the order of the help."""


def main(argv: list[str] | None = None) -> int:
    parser, commands = parsers()
    options = parser.parse_args(argv)
    module: ModuleType = options.module
    words = _words(commands[options.command]) | getattr(module, "WORDS", {})
    caught: tuple[type[Exception], ...] = (CommandError,)
    if not hasattr(module, "ON_ITS_OWN"):
        caught += (OSError, ValueError, RuntimeError, TypeError, ImportError)
        _log(words)
    try:
        return int(module.run(options))
    except caught as error:
        text = _as_options(str(error), words)
        print(f"error: {text}", file=sys.stderr)
        # what `validation.wrong` says of an argument begins with its name
        return error.status if isinstance(error, CommandError) else USAGE if text.startswith("--") else FAILED


def parsers() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """The parser of all words, and those of the commands by name."""
    as_module = not sys.argv or not sys.argv[0].endswith(("dali-imagenet", "dali-imagenet.exe"))
    prog = "python -m dali_imagenet" if as_module else "dali-imagenet"
    top = argparse.ArgumentParser(
        prog=prog,
        usage=f"{prog} COMMAND ...",
        description=str(__doc__).partition(": ")[2].capitalize(),
        epilog=f"Each command has its own --help.\n\n{EXIT_CODES}",
        formatter_class=_HelpFormatter,
    )
    commands = top.add_subparsers(title="commands", metavar="COMMAND", dest="command", required=True, prog=prog)
    found = {}
    for name in COMMANDS:
        module = importlib.import_module(f"dali_imagenet.cli.{name}")
        about, _, more = str(module.__doc__).strip().partition("\n\n")
        own: dict[str, Any] = {"prefix_chars": "\0", "add_help": False} if hasattr(module, "OWN_PARSER") else {}
        command = commands.add_parser(
            module.NAME,
            help=module.HELP,
            description=about,
            epilog=f"{more}\n\n{EXIT_CODES}".strip(),
            formatter_class=_HelpFormatter,
            **own,
        )
        module.add_arguments(command)
        command.usage = _usage(command)
        command.set_defaults(module=module)
        found[module.NAME] = command
    return top, found


def _usage(command: argparse.ArgumentParser) -> str:
    """The command with what it needs; its options are listed below."""
    words = []
    for action in command._actions:
        if not action.option_strings:
            name = str(action.metavar or action.dest).upper()
            words.append(
                {"?": f"[{name}]", "*": f"[{name} ...]", argparse.REMAINDER: "..."}.get(str(action.nargs), name)
            )
    return " ".join([command.prog, *words, "[options]"]).replace(" ... [options]", " ...")


class _HelpFormatter(argparse.HelpFormatter):
    """Paragraphs stay apart, and what is indented stays as it is."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=26)
        self._action_max_length = 14  # else the longest command is taken for too long

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        fill = super()._fill_text

        def filled(paragraph: str) -> str:
            return paragraph if paragraph.startswith(" ") else fill(paragraph, width, indent)

        return "\n\n".join(filled(paragraph) for paragraph in text.split("\n\n"))


def _words(command: argparse.ArgumentParser) -> dict[str, str]:
    """Arguments of the library, and what they are called in that command."""
    named = {action.dest: next(iter(action.option_strings[-1:]), action.dest) for action in command._actions}
    return {"root": "data"} | named


def _as_options(message: str, words: dict[str, str]) -> str:
    """A message about arguments of the library as one about the options of a command."""
    return re.sub(rf"(?<![\w/.'])({'|'.join(words)})=", lambda found: f"{words[found[1]]} ", message)


def _log(words: dict[str, str]) -> None:
    """What the package says goes to standard error, in the command's words; of other libraries, warnings."""

    class Formatter(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            return _as_options(super().format(record), words)

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Formatter("%(message)s"))
    logging.basicConfig(handlers=[handler])
    logging.getLogger("dali_imagenet").setLevel(logging.INFO)


if __name__ == "__main__":
    sys.exit(main())
