"""The counts of the fuzzing at the end of a run, also where several processes share the tests."""

import collections

from fuzz.campaign import OUTCOMES


def pytest_terminal_summary(terminalreporter):
    """One line a target."""
    told = [
        value
        for reports in terminalreporter.stats.values()
        for report in reports
        for name, value in getattr(report, "user_properties", ())
        if name == "fuzz" and report.when == "call"
    ]
    if not told:
        return
    total = collections.Counter()
    terminalreporter.section("fuzzing")
    for target, counts in told:
        total += collections.Counter(counts)
        terminalreporter.write_line(f"{target:34} {_text(counts)}")
    terminalreporter.write_line(f"{'all':34} {_text(total)}")


def _text(counts):
    parts = [f"{outcome} {counts[outcome]}" for outcome in OUTCOMES if counts.get(outcome)]
    return f"{sum(counts.values()):6} cases: {', '.join(parts)}"
