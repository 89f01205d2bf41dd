"""Which versions of Python and jax pass the tests: the table of docs/matrix.md.

    bash launch/matrix.sh                                              test each, and record it
    python benchmarks/versions.py docs/matrix.jsonl --table            print the table

launch/matrix.sh calls `--add TESTS.xml --selection=WORDS` in each environment, with pytest's own
report and the words that selected the tests.
"""

import argparse
import datetime
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import platform
import subprocess
import xml.etree.ElementTree as ET
from typing import Any

ROOT = pathlib.Path(__file__).parents[1]
COLUMNS = {
    "Python": "python", "jax": "jax", "flax": "flax", "torch": "torch", "passed": "passed",
    "failed": "failed", "skipped": "skipped", "seconds": "seconds", "date": "date",
    "commit": "commit",
}  # fmt: skip


def count(report: pathlib.Path) -> dict[str, int]:
    """How many tests passed, failed and were skipped, and the seconds they took together.

    Args:
      report: pytest's --junitxml. An error outside a test counts as a failed test.
    """
    suite = ET.parse(report).getroot().find("testsuite")
    failed = int(suite.get("failures")) + int(suite.get("errors"))
    skipped = int(suite.get("skipped"))
    return {
        "passed": int(suite.get("tests")) - failed - skipped,
        "failed": failed,
        "skipped": skipped,
        "seconds": round(float(suite.get("time"))),
    }


def describe(selection: str, results: pathlib.Path) -> dict[str, Any]:
    """This environment, this commit ("+": with changes, other than of `results`) and today."""
    # Where tests skip for want of torch, it may still be found: the report says what ran.
    without = os.environ.get("REPAE_WITHOUT_TORCH", "0") != "0"
    has_torch = not without and importlib.util.find_spec("torch") is not None
    changed = _git("status", "--porcelain", "--untracked-files=no", f":!{results.resolve()}")
    return {
        "python": platform.python_version(),
        "jax": importlib.metadata.version("jax"),
        "flax": importlib.metadata.version("flax"),
        "torch": importlib.metadata.version("torch") if has_torch else "",
        "selection": selection,
        "date": datetime.date.today().isoformat(),
        "commit": _git("rev-parse", "--short", "HEAD") + ("+" if changed else ""),
    }


def _git(*words):
    done = subprocess.run(
        ["git", *words], cwd=ROOT, capture_output=True, text=True, check=False
    )  # fmt: skip
    return done.stdout.strip()


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown, one table for each selection of tests."""
    lines = []
    for selection in dict.fromkeys(row["selection"] for row in rows):
        lines += [f"`pytest {selection}`", "", f"| {' | '.join(COLUMNS)} |", "|---" * 10 + "|"]
        for row in rows:
            if row["selection"] == selection:
                cells = [str(row[key] or "none") if key == "torch" else str(row[key])
                         for key in COLUMNS.values()]  # fmt: skip
                lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines).rstrip()


def main() -> None:
    """Add a row, or print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=pathlib.Path)
    parser.add_argument("--table", action="store_true", help="print the table")
    parser.add_argument("--add", metavar="TESTS.xml", type=pathlib.Path, help="record this report")
    parser.add_argument("--selection", default="", help="what selected these tests")
    options = parser.parse_args()
    if options.add:
        row = {**describe(options.selection, options.results), **count(options.add)}
        options.results.parent.mkdir(parents=True, exist_ok=True)
        with options.results.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row))
    if options.table:
        print(table([json.loads(line) for line in options.results.read_text().splitlines()]))


if __name__ == "__main__":
    main()
