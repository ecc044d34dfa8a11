"""The command line: which command, its help, its exit code. What commands do is in :mod:`trtcli.commands`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module

import click

from trtcli.errors import FAILED, report
from trtcli.log import Log
from trtcli.options import COMMANDS, GROUPS, NEEDS_RUN, NO_RUN, CommandTable, Option
from trtcli.parse import Parsed, UsageError, parse
from trtcli.version import __version__

INTRODUCTION = "Builds an engine from an ONNX model, benchmarks it, and reports, as trtexec does."


class FlagCommand(click.Command):
    """A command whose flags come from the table of options and are read by :mod:`trtcli.parse`, not by click."""

    def __init__(self, name: str, table: CommandTable) -> None:
        super().__init__(name, help=table.summary, add_help_option=False)
        self.table = table

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if any(word in ("-h", "--help") for word in args):
            click.echo(self.get_help(ctx))
            ctx.exit(0)
        ctx.obj = tuple(args)
        return []

    def invoke(self, ctx: click.Context) -> int:
        return run_command(self.name or "", ctx.obj)

    def get_help(self, ctx: click.Context) -> str:
        return command_help(self.name or "", self.table)


class TrtcliGroup(click.Group):
    """``trtcli COMMAND [FLAGS]``, or ``trtcli [FLAGS]``: then it is trtexec."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args:
            args = ["--help"]
        if args[0] in ("-h", "--help") or (args[0].startswith("-") and {"-h", "--help"} & set(args)):
            click.echo(top_help())
            ctx.exit(0)
        if args[0] == "--version":
            click.echo(f"trtcli {__version__}")
            ctx.exit(0)
        if args[0].startswith("-"):
            args = ["trtexec", *args]
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in self.commands:
            raise UsageError([_unknown_command(args[0])])
        return super().resolve_command(ctx, args)


def _unknown_command(word: str) -> str:
    if word.lower().endswith((".onnx", ".engine", ".plan")):
        flag = "onnx" if word.lower().endswith(".onnx") else "loadEngine"
        return f"Unknown command: {word} (did you mean --{flag}={word}?)"
    from difflib import get_close_matches

    near = get_close_matches(word, COMMANDS, 1)
    return f"Unknown command: {word}" + (f" (did you mean {near[0]}?)" if near else f" ({', '.join(_listed())})")


def run_command(name: str, argv: Sequence[str]) -> int:
    """Parse and run one command; every error ends here, in an exit code."""
    words = set(argv)
    log = Log(verbose="--verbose" in words, to_stderr="--json" in words)
    try:
        parsed: Parsed = parse(name, argv)
        for warning in parsed.warnings:
            log.warning(warning)
        return import_module(f"trtcli.commands.{name}").run(parsed, log)
    except BrokenPipeError:
        raise
    except (Exception, KeyboardInterrupt) as error:
        return report(error, log)


# --- help ------------------------------------------------------------------------------------------------------------


def _listed() -> list[str]:
    return [name for name in COMMANDS if name != "trtexec"]


def top_help() -> str:
    """The help of ``trtcli --help``: trtexec's flags, then the commands."""
    lines = [f"trtcli {__version__}. {INTRODUCTION}", "", "Usage: trtcli [FLAGS]", "       trtcli COMMAND [FLAGS]", ""]
    lines += ["Commands (trtcli COMMAND --help shows their flags):"]
    lines += [f"  {name:<10}{COMMANDS[name].summary}" for name in _listed()]
    return "\n".join([*lines, *_flag_lines(COMMANDS["trtexec"].options), *_FOOT])


def command_help(name: str, table: CommandTable) -> str:
    """The help of one command."""
    usage = f"Usage: trtcli {table.usage if name == 'trtexec' else f'{name} {table.usage}'}"
    summary = table.summary[0].upper() + table.summary[1:] + "."
    shown = [option for option in table.options if name not in NO_RUN or option.name not in (*NEEDS_RUN, "skipInference")]
    return "\n".join([usage, "", summary, *_MORE.get(name, ()), *_flag_lines(shown)])


_MORE = {
    "cache": (
        "",
        "  list FILE                 the workloads in it, their winners and times",
        "  show FILE KEY             one entry: what was asked, and every tactic that was tried",
        "  set FILE KEY TACTIC       make a tactic that was timed the winner",
        "  delete FILE KEY ...       forget entries, so that the next build times them again",
        "  merge OUT FILE ...        add the entries of files to OUT; of two the deeper search stays",
        "  diff A B                  entries that only one has, and other winners",
        "  prune FILE                drop entries that this version cannot use, and all kernels",
        "",
        "A KEY may be shortened to as many digits as make it unique.",
    ),
}


_FOOT = (
    "",
    "Flags are --name=value or --name value. Older flags of trtexec (TensorRT 8 to 10) work, with a warning.",
    "Exit code: 0 passed, 1 failed, 2 not capturable (check), 3 slower (compare), 130 interrupted, 143 terminated.",
)


def _flag_lines(options: Sequence[Option]) -> list[str]:
    lines: list[str] = []
    for group in GROUPS:
        members = [option for option in options if option.group == group]
        if members:
            lines += ["", f"{group}:"]
        for option in members:
            left = f"  --{option.name}" + (f"={option.metavar}" if option.metavar else "")
            words = getattr(option.read, "words", ())
            right = option.help + (f": {', '.join(words)}" if words else "")
            right += f" [{option.default}]" if option.default else ""
            if len(left) > 32:
                lines += [left, " " * 34 + right]
            else:
                lines.append(f"{left:<34}{right}")
    return lines


# --- entry -----------------------------------------------------------------------------------------------------------

group = TrtcliGroup("trtcli", commands={name: FlagCommand(name, table) for name, table in COMMANDS.items()})


def main(argv: Sequence[str] | None = None) -> int:
    """The entry point: runs a command line and returns its exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        code = group.main(args=args, prog_name="trtcli", standalone_mode=False) or 0
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # The reader of our output went away (`trtcli ... | head`): end quietly, also when Python flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except UsageError as error:
        return report(error, Log())
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.ClickException as error:
        return report(UsageError([error.format_message()]), Log())
    except click.Abort as error:  # what click makes of a KeyboardInterrupt
        return report(error.__cause__ or KeyboardInterrupt(), Log())
    except (KeyboardInterrupt, OSError) as error:
        return report(error, Log())
