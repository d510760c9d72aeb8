"""The documentation site builds without a warning, and needs no network to be read."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# What a browser loads by itself; links that a reader follows are something else.
LOADED = re.compile(
    r"<(?:script|img|iframe|source|video|audio)\b[^>]*\bsrc=\"?(?P<src>(?:https?:)?//[^\s\">]+)"
    r"|<link\b(?=[^>]*\brel=\"?(?:stylesheet|icon|preload|preconnect|modulepreload))"
    r"[^>]*\bhref=\"?(?P<href>(?:https?:)?//[^\s\">]+)"
    r"|(?:url\(|@import )[\"']?(?P<css>(?:https?:)?//[^\s\"')]+)"
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built strictly."""
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stderr
    return folder


def loads(text: str) -> list[str]:
    """Return what a page or style sheet loads from other hosts."""
    return [
        match["src"] or match["href"] or match["css"] for match in LOADED.finditer(text)
    ]


def test_what_is_loaded_from_elsewhere_is_found() -> None:
    assert loads('<link rel="preload" href="https://a.example/x.css"> ') == [
        "https://a.example/x.css"
    ]
    assert loads('<script async src="//b.example/x.js">') == ["//b.example/x.js"]
    assert loads("@font-face { src: url('https://c.example/f.woff') }") == [
        "https://c.example/f.woff"
    ]
    assert not loads('<a href="https://duckdb.org">DuckDB</a> <img src="a.png">')


def test_no_page_loads_anything_from_elsewhere(site: Path) -> None:
    files = [path for kind in ("html", "css") for path in site.rglob(f"*.{kind}")]
    assert len(files) > 20
    for path in files:
        assert not loads(path.read_text(encoding="utf-8")), path


def test_the_pages_from_outside_of_docs_are_there(site: Path) -> None:
    for name, sentence in {
        "changelog.html": "Keep a Changelog",
        "security.html": "folder of artifacts",
        "limits.html": "New rows are scanned until",
    }.items():
        assert sentence in (site / name).read_text(encoding="utf-8"), name
    assert (site / "images" / "benchmark.png").stat().st_size > 0
    assert "images/benchmark.png" in (site / "performance.html").read_text("utf-8")
