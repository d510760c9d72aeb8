"""Writes into docs/ what the code declares: `python tools/write_docs.py`.

Pages hold it between two marks, `<!-- generated: NAME -->` and `<!-- end of NAME -->`.
A test compares; what differs is mended by running this. Numbers come from the last
benchmark, benchmarks/results/latest.json.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from duckvec import errors
from duckvec.index_types import INDEX_TYPES
from duckvec.index_types.base import IndexType
from duckvec.metrics import METRICS
from duckvec.parameters import Parameter

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
RESULTS = ROOT / "benchmarks" / "results" / "latest.json"
WIDTH = 60
# What speaks for a type, beside its numbers. The empty name stands for no index.
WHEN = {
    "": "there are few rows or few searches; always exact",
    "FLAT": "the answer must be exact, and many queries come in one statement",
    "IVF_FLAT": "in doubt: quick to build, and exact where it is asked to be",
    "IVF_SQ8": "IVF_FLAT takes too much memory",
    "IVF_SQ8H": "as IVF_SQ8, where the installed faiss has a GPU",
    "IVF_PQ": "memory is short; needs the most rescoring",
    "NSG": "searches must be fast and the build may take its time",
    "HNSW": "searches must be fast at a high recall, and memory is there",
    "ANNOY": "seldom: it needs the most work for a high recall",
}
_PLACE = re.compile(
    r"<!-- generated: (?P<name>\w+) -->\n.*?<!-- end of (?P=name) -->", re.DOTALL
)
_PARAMETER_HEAD = (
    "| parameter | values | default | what it does |",
    "|---|---|---|---|",
)
_MACRO = re.compile(r"\bMACRO (\w+)\((.*?)\) AS\b", re.DOTALL)


def pages() -> list[Path]:
    """Return all pages of docs/."""
    return sorted(DOCS.rglob("*.md"))


def places(text: str) -> list[str]:
    """Return the names of the marked places of a page."""
    return [match["name"] for match in _PLACE.finditer(text)]


def filled(text: str) -> str:
    """Return the text of a page with every marked place filled anew.

    Raises:
        KeyError: nothing is known by the name of a place.
    """
    return _PLACE.sub(lambda match: _place(match["name"]), text)


def functions() -> dict[str, list[tuple[str, str | None]]]:
    """Return the public SQL functions: each argument and its default.

    None stands for the default of an argument that must be given.
    """
    found: dict[str, list[tuple[str, str | None]]] = {}
    for file in sorted(files("duckvec.sql").iterdir(), key=lambda each: each.name):
        if not file.name.endswith(".sql"):
            continue
        for name, text in _MACRO.findall(file.read_text(encoding="utf-8")):
            if not name.startswith("__"):
                found[name] = [
                    (argument.strip(), default.strip() if default else None)
                    for argument, _, default in (
                        each.partition(":=") for each in text.split(",") if each.strip()
                    )
                ]
    return found


def synopsis(name: str) -> str:
    """Return how a function is called, as a block of text."""
    arguments = [
        argument if default is None else f"{argument} := {default}"
        for argument, default in functions()[name]
    ]
    call = f"{name}({', '.join(arguments)})"
    if len(call) > WIDTH:
        call = f"{name}(\n" + ",\n".join(f"    {each}" for each in arguments) + "\n)"
    return f"```text\n{call}\n```"


def types() -> str:
    """Return a section for each index type, with its parameters."""
    return "\n\n".join(_type_section(kind) for kind in INDEX_TYPES.values())


def error_classes() -> str:
    """Return the table of the classes of errors."""
    rows = []
    for kind in vars(errors).values():
        if isinstance(kind, type) and issubclass(kind, errors.VectorIndexError):
            bases = ", ".join(f"`{base.__name__}`" for base in kind.__bases__)
            raised = (kind.__doc__ or "").partition("\n")[0].removeprefix("Raised ")
            rows.append(f"| `{kind.__name__}` | {bases} | {raised.rstrip('.')} |")
    return "\n".join(["| error | is a | raised |", "|---|---|---|", *rows])


def measured() -> str:
    """Return the last benchmark's numbers for choosing a type, and what they are of."""
    results: Mapping[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8"))
    versions = results["versions"]
    built_with = "; ".join(
        f"{name} {', '.join(f'{key} {value}' for key, value in row['params'].items())}"
        for name, row in results["types"].items()
        if row["params"]
    )
    about = (
        f"{results['data']}; k = {results['k']}, L2, default search parameters, DuckDB "
        f"{versions['duckdb']}, {results['threads']} threads, {results['machine']}, "
        f"{results['date']}. The vectors themselves are "
        f"{results['vector_bytes'] / 1e6:.0f} MB. A *join* is {results['batch']:,} "
        f"queries in one statement, in queries per second. Built with {built_with}."
    )
    scan = results["duckdb"]["scan_ms"]
    rows = [
        "| take | build | files | recall@10 | one query | join | when |",
        "|---|---:|---:|---:|---:|---:|---|",
        f"| no index | | | 1 | {scan:.0f} ms | | {WHEN['']} |",
    ]
    rows += [
        f"| {name} | {row['build_seconds']:.1f} s "
        f"| {row['bytes'] / 1e6:.0f} MB | {_share(row['sql_recall'])} "
        f"| {row['sql_ms']:.1f} ms | {row['join_per_second']:,.0f}/s "
        f"| {WHEN[name]} |"
        for name, row in results["types"].items()
    ]
    return "\n".join([textwrap.fill(about, 90), "", *rows])


def _place(name: str) -> str:
    known = {"types": types, "errors": error_classes, "measured": measured}
    text = known[name]() if name in known else synopsis(name)
    return f"<!-- generated: {name} -->\n{text}\n<!-- end of {name} -->"


def _type_section(kind: IndexType) -> str:
    about = " ".join((kind.__doc__ or "").partition("\n\n")[0].split())
    facts = [f"Built with {kind.library}", f"metrics {', '.join(METRICS)}"]
    if kind.extra:
        facts[0] += f', which `pip install "duckvec[{kind.extra}]"` brings'
    if kind.aliases:
        facts.append(f"also called {', '.join(kind.aliases)}")
    lines = [f"### {kind.name}", "", about, "", "; ".join(facts) + "."]
    if kind.parameters:
        lines += ["", *_PARAMETER_HEAD]
        lines += [_parameter_row(parameter) for parameter in kind.parameters]
    return "\n".join(lines)


def _parameter_row(parameter: Parameter) -> str:
    default = "mandatory" if parameter.mandatory else parameter.default
    cells = [
        f"`{parameter.name}`, {parameter.phase}",
        _values(parameter),
        default,
        " ".join(parameter.description.split()),
    ]
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def _values(parameter: Parameter) -> str:
    """Return the values in words; a lower bound that depends on k is k."""
    if parameter.lower is None:
        return parameter.expectation()
    exceptions = "".join(f"{value} or " for value in parameter.exceptions)
    if parameter.maximum is None:
        return f"{exceptions}an integer of at least k"
    return f"{exceptions}an integer in [k, {parameter.maximum}]"


def _share(value: float) -> str:
    return f"{value:.3f}".rstrip("0").rstrip(".")


def write() -> None:
    """Fill the marked places of all pages."""
    for page in pages():
        before = page.read_text(encoding="utf-8")
        after = filled(before)
        if after != before:
            page.write_text(after, encoding="utf-8")
            print(f"wrote {page.relative_to(ROOT)}")


if __name__ == "__main__":
    write()
