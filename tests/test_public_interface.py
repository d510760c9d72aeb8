"""What users see of the Python interface: types, help, and the changelog."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import duckdb
import pytest

import duckvec
import duckvec.milvus

pytestmark = pytest.mark.core

ROOT = Path(__file__).parents[1]
CHANGELOG = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
TEMPLATES = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
KINDS = ("Added", "Changed", "Deprecated", "Removed", "Fixed", "Security")


def public_callables() -> Iterator[tuple[str, Any]]:
    """Public functions and methods of what the two public modules name."""
    for module in (duckvec, duckvec.milvus):
        for name in module.__all__:
            thing = getattr(module, name)
            label = f"{module.__name__}.{name}"
            if inspect.isfunction(thing):
                yield label, thing
            elif inspect.isclass(thing):
                for own, member in vars(thing).items():
                    if inspect.isfunction(member) and not own.startswith("_"):
                        yield f"{label}.{own}", member


CALLABLES = dict(public_callables())


def test_the_interface_that_is_looked_at_is_the_one_that_users_have() -> None:
    assert {"duckvec.load", "duckvec.connect", "duckvec.unload"} <= set(CALLABLES)
    assert {
        "duckvec.VectorIndexes.search",
        "duckvec.milvus.Milvus.create_index",
    } <= set(CALLABLES)


@pytest.mark.parametrize("name", CALLABLES)
def test_every_public_function_is_annotated_and_described(name: str) -> None:
    function = CALLABLES[name]
    hints = get_type_hints(function)
    parameters = [p for p in inspect.signature(function).parameters if p != "self"]
    assert set(hints) == {*parameters, "return"}
    text = inspect.getdoc(function) or ""
    assert re.match(r"[A-Z`].*\.$", text.partition("\n")[0]), text
    if "Args:" in text:
        described = text.partition("Args:")[2]
        for parameter in parameters:
            assert re.search(rf"^ +\**{parameter}: ", described, re.M), parameter


@pytest.mark.parametrize(
    "thing", [duckvec.load, duckvec.connect, duckvec.VectorIndexes]
)
def test_help_has_an_example_that_runs(
    thing: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = inspect.getdoc(thing) or ""
    (example,) = re.findall(r"```python\n(.*?)```", text, re.S)
    con = duckvec.connect("shop.db")
    con.execute(
        "CREATE TABLE items AS SELECT i AS id, [i, i % 7, 1]::FLOAT[3] AS embedding "
        "FROM range(5000) t(i)"
    )
    con.close()
    names: dict[str, Any] = {"duckdb": duckdb, "duckvec": duckvec}
    names["vector"] = [3.0, 3.0, 1.0]
    exec(example, names)
    names["con"].close()


def test_the_changelog_keeps_to_the_form_of_keep_a_changelog() -> None:
    assert CHANGELOG.startswith("# Changelog\n")
    releases = re.findall(r"^## (.*)$", CHANGELOG, re.M)
    assert releases
    for number, release in enumerate(releases):
        unreleased = r"\[Unreleased\]|\[\d+\.\d+\.\d+\] - Unreleased|"
        dated = r"\[\d+\.\d+\.\d+\] - \d{4}-\d{2}-\d{2}"
        allowed = f"(?:{unreleased if number == 0 else ''}{dated})"
        assert re.fullmatch(allowed, release), release
    assert any(duckvec.__version__ in release for release in releases)
    for release in re.split(r"^## .*$", CHANGELOG, flags=re.M)[1:]:
        kinds = re.findall(r"^### (.*)$", release, re.M)
        assert kinds == [kind for kind in KINDS if kind in kinds]
        for section in re.split(r"^### .*$", release, flags=re.M)[1:]:
            lines = [line for line in section.splitlines() if line]
            assert lines
            assert all(line.startswith(("- ", "  ")) for line in lines)


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_an_issue_template_is_a_form(path: Path) -> None:
    yaml = pytest.importorskip("yaml")
    form = yaml.safe_load(path.read_text(encoding="utf-8"))
    if path.stem == "config":
        assert form == {"blank_issues_enabled": True}
        return
    assert set(form) == {"name", "description", "labels", "body"}
    fields = [item for item in form["body"] if item["type"] != "markdown"]
    names = [item["id"] for item in fields]
    assert len(set(names)) == len(names)
    for item in fields:
        assert item["type"] in ("textarea", "input", "dropdown", "checkboxes")
        assert item["attributes"]["label"]
