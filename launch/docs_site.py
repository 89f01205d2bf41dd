"""MkDocs hooks: the site of README, docs/ and the files that they link to, and the API's pages.

The documents stay as a forge shows them. Links out of docs/ lead to pages that are made here of the
linked files; README.md is the first page.
"""

import json
import os
import pathlib
import posixpath
import re

from mkdocs.structure.files import File

ROOT = pathlib.Path(__file__).parents[1]
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
SOURCE = "source"  # folder of the site for files that documents link to
# Page of the reference -> its modules.
REFERENCE = {
    "Pretrained VAEs": ("repae_jax.runs.pretrained",),
    "Configurations": (
        "repae_jax.config.defaults", "repae_jax.config.published",
        "repae_jax.config.published_text", "repae_jax.config.recipes",
        "repae_jax.config.overrides", "repae_jax.study.plan",
    ),
    "Training": (
        "repae_jax.training.loop", "repae_jax.training.hooks", "repae_jax.training.default_hooks",
        "repae_jax.training.step",
    ),
    "Networks": (
        "repae_jax.models.networks", "repae_jax.models.family", "repae_jax.models.inputs",
        "repae_jax.models.backbones.base", "repae_jax.models.conditioning.base",
        "repae_jax.models.tokenizers.base", "repae_jax.models.encoders.base",
        "repae_jax.models.text_encoders.base", "repae_jax.models.discriminators",
        "repae_jax.models.projectors",
    ),
    "Objectives": (
        "repae_jax.objectives.objective", "repae_jax.objectives.terms",
        "repae_jax.objectives.interpolant", "repae_jax.objectives.alignment",
        "repae_jax.objectives.diffusion", "repae_jax.objectives.reconstruction",
    ),
    "Data": ("repae_jax.data.sources", "repae_jax.data.pipeline"),
    "Sampling": (
        "repae_jax.sampling.sampler", "repae_jax.sampling.generate", "repae_jax.runs.open_run",
    ),
    "Measures": (
        "repae_jax.evaluation.frechet", "repae_jax.evaluation.representation",
        "repae_jax.evaluation.spatial", "repae_jax.study.results",
    ),
    "Errors": ("repae_jax.errors",),
}  # fmt: skip
LINK = re.compile(r"(?<=\]\()(?!https?:|mailto:|#)([^)\s#]+)(#[^)\s]*)?(?=\))")
FENCE = re.compile(r"^(```.*?^```\s*$)", re.M | re.S)
_LANGUAGES = {".py": "python", ".sh": "bash", ".sbatch": "bash", ".yaml": "yaml", ".toml": "toml"}


def target_of(document: str, link: str) -> str:
    """The file or folder of the repository that a link in a document of the repository names."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(document), link))


def page_of(path: str) -> str:
    """The page or file of the site for a file or folder of the repository."""
    if path in PAGES:
        return PAGES[path]
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return f"{SOURCE}/{path}.md"


def document_of(page: str) -> str:
    """The document of the repository that a page of the site shows."""
    return {v: k for k, v in PAGES.items()}.get(page, f"docs/{page}")


def rewrite(text: str, document: str) -> str:
    """The text of a document with its links as those of its page; fenced code stays."""
    start = posixpath.dirname(page_of(document)) or "."

    def link(match):
        page = page_of(target_of(document, match[1].rstrip("/")))
        return posixpath.relpath(page, start) + (match[2] or "")

    parts = FENCE.split(text)
    return "".join(part if part.startswith("```") else LINK.sub(link, part) for part in parts)


def linked(text: str, document: str) -> set[str]:
    """The files and folders outside of docs/ that a document links to and that are no pages."""
    text = FENCE.sub("", text)
    found = {target_of(document, match[1].rstrip("/")) for match in LINK.finditer(text)}
    return {path for path in found if page_of(path).startswith(f"{SOURCE}/")}


def show(path: pathlib.Path) -> str:
    """The Markdown page of a file or folder that documents link to."""
    name = path.relative_to(ROOT).as_posix()
    if path.is_dir():
        names = sorted(p.name + "/" * p.is_dir() for p in path.iterdir() if p.name[0] not in "._")
        return "\n".join([f"# {name}/", "", *(f"- `{entry}`" for entry in names)])
    if path.suffix == ".ipynb":
        return _show_notebook(path, name)
    text, fence = path.read_text(), "`````"
    return f"# {name}\n\n{fence}{_LANGUAGES.get(path.suffix, 'text')}\n{text}\n{fence}\n"


def _show_notebook(path, name):
    cells = [f"*{name}, without its outputs*"]
    for cell in json.loads(path.read_text())["cells"]:
        source = "".join(cell["source"])
        cells.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
    return "\n\n".join(cells)


def on_files(files, config):
    """Add README, the other documents of the root, the files that are linked, and the reference."""
    wanted = set()
    for document, page in PAGES.items():
        text = (ROOT / document).read_text()
        files.append(File.generated(config, page, content=text))
    for file in list(files.documentation_pages()):
        wanted |= linked(file.content_string, document_of(file.src_uri))
    for path in [path for path in wanted if path.endswith(".ipynb")]:
        wanted |= linked(show(ROOT / path), path)
    for path in sorted(wanted):
        if not (ROOT / path).exists():
            raise FileNotFoundError(f"a document links to {path}, which does not exist")
        files.append(File.generated(config, f"{SOURCE}/{path}.md", content=show(ROOT / path)))
    for title, modules in REFERENCE.items():
        content = "\n\n".join([f"# {title}", *(f"::: {module}" for module in modules)])
        name = title.lower().replace(" ", "-")
        files.append(File.generated(config, f"reference/{name}.md", content=content))
    return files


def on_page_markdown(markdown, page, config, files):
    """Lead links out of docs/ to the pages of the site."""
    uri = page.file.src_uri
    if uri.endswith(".ipynb.md"):
        return rewrite(markdown, uri.removeprefix(f"{SOURCE}/").removesuffix(".md"))
    if uri.startswith((f"{SOURCE}/", "reference/")):
        return markdown
    return rewrite(markdown, document_of(uri))


def on_config(config):
    """Find the package in this checkout, whatever folder the build starts in."""
    config.plugins["mkdocstrings"].config.handlers["python"]["paths"] = [os.fspath(ROOT)]
    return config
