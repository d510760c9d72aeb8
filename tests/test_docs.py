"""What README.md and docs/ show works, and what the code declares is what they say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.documents import (
    DOCS,
    DOCUMENTS,
    FOREIGN,
    ROOT,
    RUN_ELSEWHERE,
    blocks,
    foreign,
    run,
)
from tools.write_docs import filled, functions, places

# What the Python of a document prints, where no block of the document says so itself.
PRINTED = {
    "README.md": ("IVF_FLAT", "[(7, 7, 0.0), "),
    "docs/reference.md": ("1000\n",),
}
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)#?([^)\s]*)\)")
WITH_CODE = [
    name
    for name, text in DOCUMENTS.items()
    if any(block.language in ("python", "sql") for block in blocks(text))
]
RUNNING = [name for name in WITH_CODE if name not in RUN_ELSEWHERE]
# What users type first, on every DuckDB.
OF_THE_CORE = ("README.md", "docs/reference.md")
assert set(OF_THE_CORE) <= set(RUNNING)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.core] if name in OF_THE_CORE else [])
        for name in RUNNING
    ],
)
def test_a_document_runs_from_top_to_bottom(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if "HNSW" in DOCUMENTS[name] or "Milvus" in DOCUMENTS[name]:
        pytest.importorskip("hnswlib")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    printed = run(DOCUMENTS[name])
    assert all(text in printed for text in PRINTED.get(name, ()))
    assert capsys.readouterr().err == ""


@pytest.mark.core
def test_blocks_that_do_not_run_are_known_one_and_all() -> None:
    found = {name: foreign(text) for name, text in DOCUMENTS.items()}
    assert {name: counts for name, counts in found.items() if counts} == FOREIGN


def test_pages_that_run_elsewhere_do() -> None:
    for name in set(RUN_ELSEWHERE) & set(WITH_CODE):
        test = (ROOT / RUN_ELSEWHERE[name]).read_text(encoding="utf-8")
        assert Path(name).name in test


@pytest.mark.core
def test_no_block_of_code_hides_from_being_run() -> None:
    for name, text in DOCUMENTS.items():
        fences = re.findall(r"^\s*(?:```|~~~)\S", text, re.MULTILINE)
        code = [block for block in blocks(text) if block.language != "result"]
        assert len(fences) == len(code), name


@pytest.mark.parametrize(
    "name", [name for name, text in DOCUMENTS.items() if places(text)]
)
def test_what_is_generated_is_what_the_code_declares(name: str) -> None:
    text = DOCUMENTS[name]
    assert text == filled(text), "run: python tools/write_docs.py"


def test_everything_that_can_be_generated_has_its_place() -> None:
    reference = DOCUMENTS["docs/reference.md"]
    assert sorted(places(reference)) == sorted([*functions(), "types", "errors"])
    assert places(DOCUMENTS["docs/choosing.md"]) == ["measured"]


@pytest.mark.parametrize("function", functions())
def test_the_reference_lists_the_arguments_of(function: str) -> None:
    section = DOCUMENTS["docs/reference.md"].partition(f"\n## {function}\n")[2]
    section = section.partition("\n## ")[0]
    table = re.search(r"^\| argument .*\n(?:\|.*\n)+", section, re.MULTILINE)
    listed: list[tuple[str, str | None]] = []
    declared = functions()[function]
    for line in (table[0] if table else "").splitlines()[2:]:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        names = re.findall(r"`(\w+)`", cells[0])
        default = cells[2].strip("`") or None
        if default is None and len(names) > 1:  # "as those of" another function
            listed += [each for each in declared if each[0] in names]
        else:
            listed += [(name, default) for name in names]
    assert listed == declared


@pytest.mark.core
def test_links_lead_to_files_and_headings_that_are_there() -> None:
    anchors = {
        name: {
            re.sub(r"[^\w\s-]", "", heading.lower()).strip().replace(" ", "-")
            for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE)
        }
        for name, text in DOCUMENTS.items()
    }
    known = {str((ROOT / name).resolve()): name for name in DOCUMENTS}
    # Pages that only the site has.
    only_built = {str(DOCS / name) for name in ("changelog.md", "security.md")}
    for name, text in DOCUMENTS.items():
        for target, anchor in LINK.findall(text):
            here = ROOT / name
            path = (here.parent / target).resolve() if target else here
            assert path.exists() or str(path) in only_built, (name, target)
            if anchor:
                assert anchor in anchors[known[str(path)]], (name, target, anchor)
