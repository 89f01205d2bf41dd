"""Reports as a single self-contained HTML file, which opens offline."""

import base64
import dataclasses
import html
import json
import math
import os
import pathlib
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from repae_jax.utils.atomic_files import write_atomically

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

STYLE = """
:root { color-scheme: light dark; --page: #fff; --ink: #1c1f23; --quiet: #5b626b;
  --card: #f4f5f7; --line: #d9dce1; }
@media (prefers-color-scheme: dark) {
  :root { --page: #16181c; --ink: #e6e8eb; --quiet: #a0a7b1; --card: #21242a; --line: #383d46; }
  figure img { padding: .6rem; background: #fff; }
}
* { box-sizing: border-box; }
body { max-width: 62rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; background: var(--page);
  color: var(--ink); font: 1rem/1.55 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { margin: 0 0 1.2rem; font-size: 1.7rem; line-height: 1.25; }
h2 { margin: 2.4rem 0 .4rem; font-size: 1.2rem; }
p { max-width: 46rem; margin: .4rem 0 .8rem; }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(13rem, 1fr)); gap: .8rem;
  margin: 0; }
dl > div { padding: .8rem 1rem; border-radius: .5rem; background: var(--card); }
dt, .note { color: var(--quiet); font-size: .875rem; line-height: 1.4; }
dd { margin: 0; }
.value { margin: .1rem 0; font-size: 1.55rem; font-weight: 600;
  font-variant-numeric: tabular-nums; }
figure { margin: .8rem 0 0; overflow-x: auto; }
figure img { display: block; max-width: 100%; height: auto; border-radius: .4rem; }
.table { overflow-x: auto; }
table { border-collapse: collapse; font-size: .8125rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top; overflow-wrap: normal; }
summary { margin-top: 2.4rem; font-size: 1.2rem; font-weight: 600; cursor: pointer; }
pre { margin: .6rem 0 0; padding: 1rem; border: 1px solid var(--line); border-radius: .5rem;
  overflow-x: auto; font-size: .8125rem; line-height: 1.45; }
"""

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
{refresh}<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
<h1>{title}</h1>
{body}
</main>
</body>
</html>
"""


@dataclasses.dataclass(frozen=True)
class Section:
    """A section of a report: heading, text, and optionally a picture and a table.

    Attributes:
      title: the heading.
      text: plain text; an empty line starts a new paragraph.
      picture_path: a PNG file to embed; None: no picture.
      alt: alternative text of the picture; "": the title.
      table: rows of cells, the heading first; empty: no table.
    """

    title: str
    text: str = ""
    picture_path: str | os.PathLike | None = None
    alt: str = ""
    table: Sequence[Sequence[str]] = ()


def write_report(
    path: str | os.PathLike,
    *,
    title: str,
    summary: Sequence[tuple[str, str, str]] = (),
    sections: Sequence[Section] = (),
    config_text: str = "",
    refresh: int = 0,
) -> pathlib.Path:
    """Write a self-contained HTML file atomically; returns its path.

    The file embeds styles and pictures and has no scripts or outside resources. Light or dark
    follows the reader's setting, and all text is escaped.

    Args:
      path: the file to write or replace.
      title: the page's heading.
      summary: (label, value, note) of each number at the top, as displayed; an empty note is left
        out.
      sections: the sections in order.
      config_text: the run's configuration, collapsed at the end; left out if empty.
      refresh: the seconds after which a browser loads the page again; 0: never.

    Raises:
      FileNotFoundError: a section's picture does not exist.
      ValueError: a section's picture is not a PNG.
      UserError: the file cannot be written.
    """
    body = [_summary(summary)] if summary else []
    body += [_section(section) for section in sections]
    if config_text:
        body.append(
            "<details>\n<summary>Configuration</summary>\n"
            f'<pre tabindex="0">{html.escape(config_text)}</pre>\n</details>'
        )
    again = f'<meta http-equiv="refresh" content="{refresh}">\n' if refresh else ""
    page = PAGE.format(title=html.escape(title), style=STYLE, body="\n".join(body), refresh=again)
    # A file name that is invalid UTF-8 reaches the text as lone surrogates; escape these.
    return write_atomically(path, page.encode("utf-8", errors="backslashreplace"))


def write_figures(path: str | os.PathLike, figures: Mapping[str, Any]) -> pathlib.Path:
    """Write figures as JSON, atomically; returns the path. NaN and infinity become null.

    Raises:
      UserError: the file cannot be written.
    """
    text = json.dumps(_finite(figures), indent=2, allow_nan=False)
    return write_atomically(path, (text + "\n").encode())


def _finite(value):
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _summary(numbers):
    cards = []
    for label, value, note in numbers:
        lines = [
            f"<dt>{html.escape(label)}</dt>",
            f'<dd class="value">{html.escape(value)}</dd>',
        ]
        if note:
            lines.append(f'<dd class="note">{html.escape(note)}</dd>')
        cards.append("<div>\n" + "\n".join(lines) + "\n</div>")
    return "<dl>\n" + "\n".join(cards) + "\n</dl>"


def _section(section):
    paragraphs = [part.strip() for part in section.text.split("\n\n") if part.strip()]
    lines = [f"<h2>{html.escape(section.title)}</h2>"]
    lines += [f"<p>{html.escape(text)}</p>" for text in paragraphs]
    if section.table:
        lines.append(_table(section.table))
    if section.picture_path is not None:
        lines.append(_figure(pathlib.Path(section.picture_path), section.alt or section.title))
    return "<section>\n" + "\n".join(lines) + "\n</section>"


def _table(rows):
    def row(cells, tag):
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    head, *body = rows
    lines = [row(head, "th"), *(row(cells, "td") for cells in body)]
    return '<div class="table" tabindex="0"><table>\n' + "\n".join(lines) + "\n</table></div>"


def _figure(path, alt):
    content = path.read_bytes()
    if content[:8] != PNG_SIGNATURE or content[12:16] != b"IHDR":
        raise ValueError(f"{path}: not a PNG file; pictures are written by figures.save_png")
    width, height = struct.unpack(">II", content[16:24])
    # The minimal width lets a picture scroll sideways on a phone, so its labels stay readable.
    return (
        f'<figure tabindex="0"><img src="data:image/png;base64,'
        f'{base64.b64encode(content).decode()}" alt="{html.escape(alt)}" width="{width}" '
        f'height="{height}" style="min-width: min({width}px, 34rem)"></figure>'
    )
