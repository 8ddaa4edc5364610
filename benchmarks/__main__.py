"""`python -m benchmarks`: run them, show a table, write JSON."""

import argparse
import contextlib
import dataclasses
import datetime
import importlib.metadata
import json
import math
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType
from typing import Any

from benchmarks import kept, life, many, options, pictures, prefix, processes, shared, streams, tools
from benchmarks.bench import FLOOR, FULL, OURS, QUICK, STAND_IN, TYPED, Asked, Bench, Row, installed_typed

_SUBJECTS = (streams, kept, many, life, shared, tools, options, prefix, pictures)
BENCHMARKS = {name: run for subject in _SUBJECTS for name, run in subject.BENCHMARKS.items()}
_COLUMNS = (FLOOR, *TYPED, STAND_IN)
_JSON = Path("build/benchmarks.json")


def main() -> int:
    """The command line."""
    wanted, quick, parent, output = _arguments()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _end)
    processes.allow_many_files()
    began, about = time.monotonic(), _about(quick)
    failed = []
    with (
        tempfile.TemporaryDirectory(prefix="benchmarks-", dir=parent, ignore_cleanup_errors=True) as directory,
        processes.stand_in(Path(directory)) as model,
    ):
        bench = Bench(QUICK if quick else FULL, model, Path(directory), installed_typed())
        for name in wanted:
            print(f"{time.monotonic() - began:4.0f} s  {name}: {_first_line(name)}", file=sys.stderr, flush=True)
            try:
                BENCHMARKS[name](bench)
            except (OSError, RuntimeError, subprocess.SubprocessError) as error:
                failed.append(f"{name}: {error}")
    about["load_after"] = os.getloadavg()[0]
    about["seconds"] = round(time.monotonic() - began)
    print(_report(about, bench.rows, failed))
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(_as_json(about, bench.rows, failed), indent=1) + "\n")
    print(f"{output} is written", file=sys.stderr)
    return 1 if failed else 0


def _arguments() -> tuple[list[str], bool, Path | None, Path]:
    names = "\n".join(f"  {name:<12} {_first_line(name)}" for name in BENCHMARKS)
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=f"Measure the server beside others.\n\n{names}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="benchmark", help="which to run (default: all)")
    parser.add_argument("--quick", action="store_true", help="try the benchmarks out; the figures mean little")
    parser.add_argument("--dir", type=Path, help="where sessions are kept meanwhile (default: the system's place)")
    parser.add_argument("--json", type=Path, default=_JSON, help="the file to write (default: %(default)s)")
    given = parser.parse_args()
    for name in given.names:
        if name not in BENCHMARKS:
            parser.error(f"there is no benchmark {name}; there are {', '.join(BENCHMARKS)}")
    return given.names or list(BENCHMARKS), given.quick, given.dir, given.json


def _first_line(name: str) -> str:
    return (BENCHMARKS[name].__doc__ or "").partition("\n")[0]


def _end(number: int, _frame: FrameType | None) -> None:
    for other in (signal.SIGINT, signal.SIGTERM):
        signal.signal(other, signal.SIG_IGN)  # what follows is short, and ends every process
    raise SystemExit(128 + number)


def _about(quick: bool) -> dict[str, Any]:
    versions = {}
    for package in ("flask", "openai", "waitress", "fastapi", "uvicorn"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    commit = "unknown"
    with contextlib.suppress(OSError, subprocess.CalledProcessError):  # no git, or no checkout
        git = ["git", "-C", str(processes.CHECKOUT), "describe", "--always", "--dirty"]
        commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    return {
        "quick": quick,
        "time": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "commit": commit,
        "python": platform.python_version(),
        "versions": versions,
        "cores": len(os.sched_getaffinity(0)),
        "load_before": os.getloadavg()[0],
    }


def _report(about: dict[str, Any], rows: list[Row], failed: list[str]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    lines = [
        f"{about['time']}, commit {about['commit']}, Python {about['python']}, {versions}; {about['cores']} cores, "
        f"load {about['load_before']:.1f} before and {about['load_after']:.1f} after {about['seconds']} s.",
    ]
    if about["quick"]:
        lines.append("**A quick run: it shows that everything works, and its figures mean little.**")
    elif about["load_before"] > about["cores"] / 4:
        lines.append("**The machine was busy with something else: compare the ratios, not the figures.**")
    lines += [
        "",
        f"| | unit | {OURS} | to the floor | asked | beyond | reached | {' | '.join(_COLUMNS)} | |",
        f"|---|---|{'---:|' * 4}---|{'---:|' * len(_COLUMNS)}---|",
    ]
    for row in rows:
        asked = row.asked or Asked()
        cells = [
            row.what,
            row.unit,
            _shown(row.figure(OURS)),
            _shown(row.ratio),
            _asked(asked),
            _shown(asked.beyond),
            "" if about["quick"] else row.verdict(),
            *(_shown(row.figure(name)) for name in _COLUMNS),
            row.note,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", *(f"**Failed: {text}**" for text in failed)]
    return "\n".join(lines)


def _asked(asked: Asked) -> str:
    said = [_shown(asked.value)] if asked.value is not None else []
    if asked.floor is not None:
        said.append(f"{'at least' if asked.at_least else 'at most'} {asked.floor:g} × floor")
    return ", ".join(said)


def _shown(value: float | None) -> str:
    if value is None:
        return ""
    if math.isinf(value):
        return "never"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _as_json(about: dict[str, Any], rows: list[Row], failed: list[str]) -> dict[str, Any]:
    figures = []
    for row in rows:
        medians = {name: row.figure(name) for name in row.figures}
        figure = dataclasses.asdict(row) | {"rounds": row.figures, "medians": medians, "ratio": row.ratio}
        del figure["figures"]
        figures.append(figure)
    return {**about, "figures": figures, "failed": failed}


if __name__ == "__main__":
    sys.exit(main())
