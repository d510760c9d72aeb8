"""What the README and the reference say is what the code says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import duckvec
from duckvec.calibration import TARGET_RECALL

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
REFERENCE = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")


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


def test_there_is_a_place_for_measured_numbers() -> None:
    begin, end = "<!-- bench:begin -->", "<!-- bench:end -->"
    assert README.count(begin) == README.count(end) == 1
    assert README.index(begin) < README.index(end)
