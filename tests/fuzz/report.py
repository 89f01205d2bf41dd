"""The counts of a campaign, and the distinct faults with the command that repeats each."""

import collections

from fuzz.campaign import GOOD, OUTCOMES, Tally, command


class Report:
    """Tallies of several targets."""

    def __init__(self):
        self.tallies: dict[str, Tally] = {}

    def add(self, target: str, tally: Tally) -> None:
        """One more."""
        self.tallies[target] = tally

    def faults(self) -> dict[tuple, list]:
        """(target, outcome, place) -> [(case, what), ...]."""
        found = collections.defaultdict(list)
        for target, tally in self.tallies.items():
            for outcome, case, what in tally.faults:
                place = what.partition(" | ")[0] if outcome in ("exception", "memory") else what
                if outcome in ("silent", "message"):
                    place = f"{case[0]}: {_gist(case)}"
                found[target, outcome, place].append((case, what))
        return dict(found)

    def text(self) -> str:
        """Tables in Markdown."""
        lines = ["| target | cases | " + " | ".join(OUTCOMES) + " | slowest |"]
        lines += ["|---" * (len(OUTCOMES) + 3) + "|"]
        total = collections.Counter()
        for target, tally in self.tallies.items():
            lines.append(_row(target, tally.counts, f"{tally.slowest[0]:.1f} s"))
            total += tally.counts
        lines += [_row("all", total, ""), ""]
        for (target, outcome, place), cases in sorted(
            self.faults().items(), key=lambda item: (item[0][1], item[0][2])
        ):
            case, what = cases[0]
            lines += [f"- **{outcome}** {len(cases)}x, {target}: `{place}`", f"  {what}"]
            lines += [f"  `{command(target, case)[:600]}`"]
        return "\n".join(lines) + "\n"


def _gist(case):
    """The change without the tensor that it was made of, or the place."""
    _, change, *arguments = case
    if change == "set":
        return f"set {'/'.join(map(str, arguments[0]))}"
    return " ".join([change, *(a for a in arguments if isinstance(a, str))])


def _row(name, counts, slowest):
    cells = [name, counts.total(), *(counts[o] or "" for o in OUTCOMES), slowest]
    return f"| {' | '.join(str(cell) for cell in cells)} |"


__all__ = ["GOOD", "Report"]
