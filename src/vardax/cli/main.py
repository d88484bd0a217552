"""The `vardax` command.

    vardax run EXPERIMENT    run a named experiment: a table on the screen, files and figures in a folder
    vardax list              experiments and methods, a line on each
    vardax show NAME         an experiment's settings and expected scores, a method, or the table of a past run

Exit codes: 0 done, 2 for a command, name or setting that does not exist (the message names the nearest one that does),
130 interrupted. Only `run` imports JAX.
"""

import argparse
import importlib
import importlib.metadata
import pathlib
import re
import sys
import time
from collections.abc import Sequence
from typing import Any, NoReturn

from vardax.cli.catalogue import experiments, methods
from vardax.experiments.config import ConfigError, assignments, build, merge, read_toml, settings, unknown
from vardax.experiments.index import module_name
from vardax.experiments.table import format_table, table_of_folder

__all__ = ["main"]

USAGE_ERROR, INTERRUPTED = 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    try:
        options = _parse(list(sys.argv[1:] if arguments is None else arguments))
        return options.action(options)
    except ConfigError as error:
        print(f"vardax: {error}", file=sys.stderr)
        return USAGE_ERROR
    except KeyboardInterrupt:
        print("vardax: interrupted", file=sys.stderr)
        return INTERRUPTED


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are raised, so that they all leave by one door."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} (see `{self.prog} --help`)")


def _parser() -> tuple[_Parser, dict[str, argparse.ArgumentParser]]:
    about = "Data assimilation on JAX: run experiments, list and show what there is."
    parser = _Parser(prog="vardax", description=about, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"vardax {version()}")
    parser.set_defaults(action=lambda options: parser.print_help() or 0)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", parser_class=_Parser)

    run = commands.add_parser("run", help="run a named experiment", allow_abbrev=False)
    run.add_argument("experiment", metavar="EXPERIMENT", help="its name; `vardax list` shows them")
    run.add_argument("--cycles", type=int, help="number of observation times")
    run.add_argument("--seed", type=int, help="seed of the truth and of the observation errors")
    run.add_argument("--methods", help="names of methods, with commas between; all of them by default")
    run.add_argument("--quick", action="store_true", help="a short run, to see that it works")
    run.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any setting; may be repeated")
    run.add_argument("--config", metavar="FILE", help="settings from a TOML file, such as a run's resolved.toml")
    run.add_argument("--out", metavar="DIR", help="where to write; default runs/EXPERIMENT-DATE-TIME")
    run.set_defaults(action=_run)

    listing = commands.add_parser("list", help="list experiments and methods", allow_abbrev=False)
    listing.set_defaults(action=_list)

    show = commands.add_parser("show", help="show an experiment, a method, or a past run", allow_abbrev=False)
    show.add_argument("name", metavar="NAME", help="an experiment, a method, or the folder of a run")
    show.set_defaults(action=_show)
    return parser, dict(commands.choices)


def _parse(arguments: list[str]) -> argparse.Namespace:
    """The options; what is not known is said with the nearest known name."""
    parser, commands = _parser()
    first = next((a for a in arguments if not a.startswith("-")), None)
    if first is not None and first == arguments[0] and first not in commands:
        raise ConfigError(unknown("command", first, commands))
    options, rest = parser.parse_known_args(arguments)
    if rest:
        known = set(re.findall(r"--[a-z]+", commands.get(first or "", parser).format_help()))
        raise ConfigError(unknown("argument", rest[0].partition("=")[0], known))
    return options


def version() -> str:
    """The installed version."""
    try:
        return importlib.metadata.version("vardax")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


def _run(options: argparse.Namespace) -> int:
    module = _experiment(options.experiment)
    config = build(module.Config, _chosen_settings(module, options))
    for name in config.methods:
        if name not in methods():
            raise ConfigError(unknown("method", name, methods()))
    folder = _new_folder(options)
    from vardax.experiments.progress import progress
    from vardax.experiments.report import missing_extras, write_report

    print(f"{options.experiment}: {config.cycles} cycles, seed {config.seed}; writing to {folder}", flush=True)
    for extra, what in missing_extras().items():
        print(f"without {what}: for them, pip install 'vardax[{extra}]'")
    results = module.run(config, progress)
    print("\n" + format_table(results.scores) + "\n")
    for name, slots in results.left_out.items():
        print(f"left out: {name} needs {', '.join(slots)}, which this experiment does not have")
    files = write_report(folder, options.experiment, config, results)
    print(f"written to {folder}: {', '.join(path.name for path in files)}")
    return 0


def _experiment(name: str) -> Any:
    known = experiments()
    if name not in known:
        raise ConfigError(unknown("experiment", name, known))
    return importlib.import_module(module_name(name))


def _chosen_settings(module: Any, options: argparse.Namespace) -> dict[str, Any]:
    """Later wins: file, --quick, --cycles, --seed and --methods, --set."""
    chosen = read_toml(options.config) if options.config else {}
    if options.quick:
        merge(chosen, module.QUICK)
    merge(chosen, {key: getattr(options, key) for key in ("cycles", "seed") if getattr(options, key) is not None})
    if options.methods is not None:
        chosen["methods"] = [name.strip() for name in options.methods.split(",") if name.strip()]
    return merge(chosen, assignments(options.set))


def _new_folder(options: argparse.Namespace) -> pathlib.Path:
    """An empty folder, so that no run overwrites another."""
    if options.out is None:
        stamp = pathlib.Path("runs") / f"{options.experiment}-{time.strftime('%Y%m%d-%H%M%S')}"
        folder = next(
            f for f in (stamp, *(stamp.with_name(f"{stamp.name}-{k}") for k in range(2, 1000))) if not f.exists()
        )
    else:
        folder = pathlib.Path(options.out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot write to {str(folder)!r}: {error.strerror}.") from None
    if any(folder.iterdir()):
        raise ConfigError(f"the folder {str(folder)!r} is not empty; choose another one with --out.")
    return folder


def _list(options: argparse.Namespace) -> int:
    for title, entries in (("Experiments", experiments()), ("Methods", methods())):
        width = max(map(len, entries), default=0)
        print(f"{title}")
        for name, entry in entries.items():
            print(f"  {name.ljust(width)}  {entry.line}")
    print("\n`vardax show NAME` says more, `vardax run EXPERIMENT` runs one.")
    return 0


def _show(options: argparse.Namespace) -> int:
    name = options.name
    folder = pathlib.Path(name)
    if name in experiments():
        print(_describe_experiment(name))
    elif name in methods():
        entry = methods()[name]
        print(f"{name}\n\n{entry.module_text}\n\n{entry.class_text}")
    elif (folder / "metrics.json").is_file():
        print(table_of_folder(folder))
    elif folder.is_dir():
        raise ConfigError(f"the folder {name!r} has no metrics.json; expected the folder of a run.")
    else:
        known = [*experiments(), *methods()]
        raise ConfigError(unknown("experiment, method or folder of a run", name, known))
    return 0


def _describe_experiment(name: str) -> str:
    module = _experiment(name)
    rows = [(key, str(value), text) for key, value, text in settings(module.Config())]
    widths = [max(len(row[k]) for row in rows) for k in (0, 1)]
    lines = [module.__doc__.strip(), "", "Settings"]
    lines += [f"  {key.ljust(widths[0])}  {value.ljust(widths[1])}  {text}" for key, value, text in rows]
    lines += ["", "With --quick: " + ", ".join(f"{key} = {value}" for key, value in module.QUICK.items())]
    lines += ["", "Expected scores (analysis RMSE)"]
    width = max(map(len, module.EXPECTED))
    for row, score in module.EXPECTED.items():
        stated = "" if score.stated is None else f"  (stated: {score.stated:g})"
        error = "" if score.standard_error is None else f" ± {score.standard_error:.3f}"
        lines.append(f"  {row.ljust(width)}  {score.measured:.3f}{error}{stated}")
    return "\n".join(lines)
