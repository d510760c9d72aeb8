"""What the README and the reference show works, and says what the code says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import duckdb
import pytest

import duckvec
from duckvec.calibration import TARGET_RECALL

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MIGRATION = (ROOT / "docs" / "migrating-from-milvus.md").read_text(encoding="utf-8")
REFERENCE = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def run_blocks(document: str) -> None:
    """Run every Python and SQL block, in their order, on one connection."""
    names: dict[str, Any] = {}
    for language, text in BLOCK.findall(document):
        if language == "python":
            exec(text, names)
        elif language == "sql":
            for statement in duckdb.extract_statements(text):
                assert names["con"].execute(statement).fetchall(), statement.query
    names["con"].close()


@pytest.mark.core
def test_the_readme_runs_from_top_to_bottom(
    capsys: pytest.CaptureFixture[str],
) -> None:
    run_blocks(README)
    printed = capsys.readouterr()
    assert "IVF_FLAT" in printed.out
    assert "[(7, 7, 0.0), " in printed.out
    assert printed.err == ""


@pytest.mark.core
def test_the_reference_runs_from_top_to_bottom(
    capsys: pytest.CaptureFixture[str],
) -> None:
    run_blocks(REFERENCE)
    printed = capsys.readouterr()
    assert printed.out.startswith("1000\n")
    assert printed.err == ""


@pytest.mark.core
def test_the_guide_from_milvus_runs_from_top_to_bottom(
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("hnswlib")
    run_blocks(MIGRATION)
    printed = capsys.readouterr()
    assert printed.out.splitlines() == [
        "(collection_name='test01', index_type=<IndexType: IVF_FLAT>, "
        "params={'nlist': 128})",
        "0.0 [True, False]",
        "0.0 [False, False]",
        "0.0 [False, False]",
        "FLAT",
        "(Status(code=0, message='Success'), 4997)",
        "[(1, (0.0, 0.0, 1.0), '_default', 0.0)]",
    ]
    assert printed.err == ""


@pytest.mark.core
@pytest.mark.parametrize(
    "function", ["vector_indexes", "vector_index_segments", "vector_index_types"]
)
def test_the_reference_lists_the_columns_of_what_there_is(function: str) -> None:
    con = duckvec.connect()
    columns = [row[:2] for row in con.execute(f"DESCRIBE FROM {function}()").fetchall()]
    con.close()
    section = REFERENCE.partition(f"## {function}\n")[2].partition("\n## ")[0]
    listed = [
        (name, data_type)
        for names, data_type in re.findall(
            r"^\| (`.*?`) \| ([A-Z]+(?:\[\])?) \|", section, re.MULTILINE
        )
        for name in re.findall(r"`(\w+)`", names)
    ]
    assert sorted(listed) == sorted(columns)


@pytest.mark.core
def test_both_documents_name_the_recall_that_defaults_are_chosen_for() -> None:
    for document in (README, REFERENCE):
        assert f"{100 * TARGET_RECALL:g} %" in document


@pytest.mark.core
def test_the_table_of_types_is_that_of_the_code() -> None:
    con = duckvec.connect()
    declared: dict[str, dict[str, list[str]]] = {}
    for index_type, name, phase, minimum, maximum, allowed in con.execute(
        "SELECT index_type, parameter, phase, minimum, maximum, allowed "
        "FROM vector_index_types()"
    ).fetchall():
        row = declared.setdefault(index_type, {"build": [], "search": []})
        if name is not None:
            row[phase].append(in_words(name, minimum, maximum, allowed))
    con.close()
    table = {
        index_type: {"build": split(build), "search": split(search)}
        for index_type, build, search in re.findall(
            r"^\| ([A-Z0-9_]+) \|(.*?)\|(.*?)\|$",
            README.partition("<!-- bench:begin -->")[0],
            re.MULTILINE,
        )
    }
    assert table == declared


def in_words(
    name: str, minimum: str, maximum: str | None, allowed: list[int] | None
) -> str:
    """Return a parameter as the README writes it."""
    if allowed is not None:
        return f"{name} in {{{', '.join(map(str, allowed))}}}"
    if name == "search_k":
        return "search_k -1 or ≥ k"
    if maximum is None:
        return f"{name} ≥ {minimum}"
    lowest = "k" if name == "ef" else minimum
    return f"{name} [{lowest}, {maximum}]"


def split(cell: str) -> list[str]:
    """Return the parameters in a cell."""
    text = cell.strip()
    return re.split(r", (?=\w+ [\[≥i-])", text) if text else []


def test_the_links_lead_to_files_that_are_there() -> None:
    for folder, document in ((ROOT, README), (ROOT / "docs", REFERENCE)):
        targets = re.findall(r"\]\((?!https?:|#)([^)#]+)", document)
        assert targets
        for target in targets:
            assert (folder / target).exists(), target


def test_links_within_a_document_lead_to_its_headings() -> None:
    for document in (README, REFERENCE):
        headings = re.findall(r"^#+ (.*)$", document, re.MULTILINE)
        anchors = {heading.lower().replace(" ", "-") for heading in headings}
        assert set(re.findall(r"\]\(#([^)]+)\)", document)) <= anchors


def test_there_is_a_place_for_measured_numbers() -> None:
    begin, end = "<!-- bench:begin -->", "<!-- bench:end -->"
    assert README.count(begin) == README.count(end) == 1
    assert README.index(begin) < README.index(end)
