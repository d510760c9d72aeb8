"""Hooks of mkdocs: what lies outside of docs/ and belongs to the site all the same.

CHANGELOG.md, SECURITY.md and the limits in README.md become pages, the drawing of the
last benchmark an image, and the examples files to read. Links are written for readers
of the repository; those to such files are turned to their place in the site. Links to
other files outside of docs/ stay, and fail the strict build.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
# From the root of the repository, and in the site.
BROUGHT_IN = {
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "benchmarks/results/latest.png": "images/benchmark.png",
    **{
        str(path.relative_to(ROOT)): str(path.relative_to(ROOT))
        for path in sorted((ROOT / "examples").iterdir())
        if path.suffix in (".py", ".sql", ".ipynb")
    },
}
LIMITS = "limits.md"
MOVED = {**BROUGHT_IN, "README.md": "index.md", "README.md#limits": LIMITS}
_LINK = re.compile(r"(?<=\]\()(?!https?:|#)([^)#\s]+)(#[^)\s]*)?")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files that lie elsewhere."""
    for source, place in BROUGHT_IN.items():
        files.append(
            File.generated(config, place, abs_src_path=str(ROOT / source)),
        )
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    limits = readme.partition("\n## Limits\n")[2].partition("\n## ")[0]
    files.append(File.generated(config, LIMITS, content=f"# Limits\n{limits}"))
    return files


def on_page_markdown(
    markdown: str, page: Page, config: MkDocsConfig, files: Files
) -> str:
    """Turn links to files outside of docs/ to their place in the site."""
    place = page.file.src_uri
    came_from = {there: source for source, there in BROUGHT_IN.items()}
    came_from[LIMITS] = "README.md"
    folder = posixpath.dirname(came_from.get(place, f"docs/{place}"))

    def turned(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, link[1]))
        anchor = link[2] or ""
        there = MOVED.get(target + anchor)
        if there is None and (target in MOVED or target.startswith("docs/")):
            there = MOVED.get(target, target.removeprefix("docs/")) + anchor
        if there is None:
            return link[0]
        return posixpath.relpath(there, posixpath.dirname(place) or ".")

    return _LINK.sub(turned, markdown)
