"""The site of the documents builds without a warning, and loads nothing from other hosts."""

import html.parser
import importlib.util
import os
import pathlib
import re
import subprocess
import sys

import pytest

pytest.importorskip("mkdocs")
ROOT = pathlib.Path(__file__).parents[1]
ASSETS = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src"}
LOADED = {
    "stylesheet",
    "icon",
    "preload",
    "prefetch",
    "preconnect",
    "dns-prefetch",
    "modulepreload",
}


@pytest.fixture(scope="module")
def hooks():
    spec = importlib.util.spec_from_file_location("docs_site", ROOT / "launch" / "docs_site.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "WARNING" not in done.stderr
    return folder


class Loaded(html.parser.HTMLParser):
    """The addresses that a page loads at once."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        if tag == "link" and LOADED & set((values.get("rel") or "").split()):
            self.found.append(values.get("href"))
        elif tag in ASSETS and values.get(ASSETS[tag]):
            self.found.append(values[ASSETS[tag]])


def of_other_hosts(folder):
    """(file, address) of everything that pages and style sheets load from elsewhere."""
    for path in sorted(folder.rglob("*.html")):
        addresses = Loaded(path.read_text()).found
        assert addresses, path
        yield from ((path.name, a) for a in addresses if re.match(r"(\w+:)?//", a))
        if 'class="mermaid"' in path.read_text():  # the theme would load Mermaid from elsewhere
            yield path.name, "mermaid"
    for path in sorted(folder.rglob("*.css")):
        loaded = re.findall(
            r"""(?:@import\s+|url\()["']?((?:https?:)?//[^"')]+)""", path.read_text()
        )
        yield from ((path.name, address) for address in loaded)


@pytest.mark.slow  # builds the site
def test_the_site_is_complete_and_its_own(site, hooks):
    assert list(of_other_hosts(site)) == []
    for document in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        assert (site / hooks.page_of(document)).with_suffix(".html").exists()
    for path in (ROOT / "docs").rglob("*.md"):
        assert (site / path.relative_to(ROOT / "docs")).with_suffix(".html").exists(), path
    home = (site / "index.html").read_text()
    assert "REPA-E in JAX: a VAE and a latent diffusion transformer" in home
    assert 'href="source/repae_jax/training/step.py.html"' in home
    assert ">def<" in (site / "source/repae_jax/training/step.py.html").read_text()
    reference = (site / "reference" / "training.html").read_text()
    assert 'id="repae_jax.training.loop.train"' in reference
    assert "resuming from its newest checkpoint" in reference


def test_what_another_host_gives_is_found(tmp_path):
    (tmp_path / "a.html").write_text(
        '<link rel="stylesheet" href="//x.org/a.css"><a href="https://x.org">x</a>'
        '<link rel="canonical" href="https://x.org"><img src="a.png">'
    )
    (tmp_path / "a.css").write_text("@import 'https://y.org/b.css'; a {background: url(b.png)}")
    assert list(of_other_hosts(tmp_path)) == [
        ("a.html", "//x.org/a.css"), ("a.css", "https://y.org/b.css"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("document", "link", "expected"),
    [
        ("README.md", "docs/data.md#sources", "data.md#sources"),
        ("README.md", "configs/", "source/configs.md"),
        ("README.md", "CONTRIBUTING.md", "contributing.md"),
        ("docs/data.md", "weights.md", "weights.md"),
        ("docs/data.md", "../configs/digits.py", "source/configs/digits.py.md"),
        ("docs/coming-from/repa.md", "../data.md", "../data.md"),
        ("docs/coming-from/repa.md", "../../configs/digits.py", "../source/configs/digits.py.md"),
        ("docs/results.md", "study_digits.jsonl", "study_digits.jsonl"),
        ("docs/data.md", "#sources", "#sources"),
        ("docs/data.md", "https://x.org/a.md", "https://x.org/a.md"),
    ],
)
def test_links_of_documents_become_those_of_pages(hooks, document, link, expected):
    assert hooks.rewrite(f"a [b]({link}) c", document) == f"a [b]({expected}) c"
    fenced = f"```text\n[b]({link})\n```\n"
    assert hooks.rewrite(fenced, document) == fenced


def test_every_link_between_documents_leads_somewhere(hooks):
    documents = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"]
    documents += [path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")]
    for document in documents:
        text = hooks.FENCE.sub("", (ROOT / document).read_text())
        for match in hooks.LINK.finditer(text):
            assert (ROOT / hooks.target_of(document, match[1])).exists(), (document, match[0])


def test_the_menu_has_every_document():
    menu = (ROOT / "mkdocs.yml").read_text()
    for path in (ROOT / "docs").rglob("*.md"):
        assert f": {path.relative_to(ROOT / 'docs').as_posix()}" in menu
    assert "/site/" in (ROOT / ".gitignore").read_text().splitlines()
