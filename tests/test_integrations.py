"""Every block of docs/integrations.md runs, section by section."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import duckdb
import pytest

import duckvec
from duckvec.errors import ParameterError

pytestmark = pytest.mark.core

ROOT = Path(__file__).parents[1]
DOCUMENT = (ROOT / "docs" / "integrations.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", DOCUMENT, re.M | re.S))

# Sections that run in this process: what they need, and what they print.
RUNNING: dict[str, tuple[list[str], list[str]]] = {
    "pandas": (["pandas"], ["7  0.000000", "query_index"]),
    "Polars": (["polars"], ["shape: (5, 3)", "shape: (15, 4)"]),
    "Arrow": ([], ["['query_index', 'id', 'embedding', 'distance'] 15"]),
    "Parquet": ([], []),
    "Hugging Face datasets": (["datasets"], ["{'id': 7, 'distance': 0.0}"]),
    "Embedding models": ([], []),
    "Ibis": (["ibis"], ["id: [[3,"]),
    "SQLAlchemy": (
        ["sqlalchemy", "duckdb_engine"],
        ["'IVF_FLAT', 'L2', '{\"nlist\": 64}'", "[(3, 0.0), ("],
    ),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to run in, with the example data."""
    shutil.copytree(ROOT / "examples" / "data", tmp_path / "examples" / "data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_blocks(section: str) -> tuple[dict[str, Any], list[list[Any]]]:
    """Run the Python and SQL blocks of a section; return names and rows of queries."""
    names: dict[str, Any] = {}
    results = []
    for language, text in BLOCK.findall(SECTIONS[section]):
        if language == "python":
            exec(text, names)
        elif language == "sql":
            for statement in duckdb.extract_statements(text):
                results.append(names["con"].execute(statement).fetchall())
    return names, results


def test_every_section_is_tried_and_links_lead_to_sections() -> None:
    tried = {*RUNNING, "Jupyter", "dbt"}
    assert set(SECTIONS) == tried
    anchors = {heading.lower().replace(" ", "-") for heading in SECTIONS}
    assert set(re.findall(r"\]\(#([^)]+)\)", DOCUMENT)) == anchors
    for target in re.findall(r"\]\((\.\./[^)]+)\)", DOCUMENT):
        assert (ROOT / "docs" / target).exists(), target


@pytest.mark.parametrize("section", RUNNING)
def test_the_blocks_of_a_section_run(
    section: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    libraries, printed = RUNNING[section]
    for library in libraries:
        pytest.importorskip(library)
    if section == "Ibis" and duckdb.__version__ >= "2":
        pytest.skip("Ibis 12.0 does not work with DuckDB 2.0")
    with warnings.catch_warnings():
        # Ibis and duckdb-engine call what DuckDB and pandas advise against.
        warnings.simplefilter(
            "ignore" if section in ("Ibis", "SQLAlchemy") else "error"
        )
        names, results = run_blocks(section)
    out = capsys.readouterr().out
    for text in printed:
        assert text in out
    if section == "Parquet":
        assert [rows[0] for rows in results if ("ec2ssh", 0.0) in rows]
    if "con" in names:
        names["con"].close()


def test_the_nearest_notes_are_those_that_share_words(folder: Path) -> None:
    names, results = run_blocks("Embedding models")
    *_, near, joined = results
    assert near == [(3, "red hat with a feather"), (2, "blue hat")]
    assert joined == [("hat", "blue hat"), ("shoes", "red shoes")]
    names["con"].execute("INSERT INTO notes SELECT 4, NULL, embed(NULL)")
    added = names["con"].execute("SELECT embedding FROM notes WHERE id = 4").fetchall()
    assert added == [(None,)]
    names["con"].close()


def test_datasets_can_be_read_in_batches(folder: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = [[float(i), 1.0] for i in range(100)]
    dataset = datasets.Dataset.from_dict({"id": range(100), "embedding": rows})
    con = duckvec.connect()
    con.execute("CREATE TABLE items (id BIGINT, embedding FLOAT[2])")
    con.execute("CALL create_vector_index('items', 'FLAT')")
    for batch in dataset.with_format("arrow").iter(batch_size=30):
        con.execute("INSERT INTO items FROM batch")
        del batch
    found = con.execute("SELECT id FROM vector_search('items', [42, 1], 1)").fetchall()
    assert found == [(42,)]
    assert con.execute("SELECT count(*) FROM items").fetchall() == [(100,)]
    con.close()


def test_every_connection_of_a_pool_is_loaded(folder: Path) -> None:
    pytest.importorskip("duckdb_engine")
    sqlalchemy = pytest.importorskip("sqlalchemy")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        names, _ = run_blocks("SQLAlchemy")
        engine, nearest = names["engine"], names["nearest"]
        with engine.connect() as one, engine.connect() as two:
            for connection in (one, two):
                rows = connection.execute(
                    nearest, {"query": [3.0, 3.0, 1.0]}
                ).fetchall()
                assert len(rows) == 3
            with pytest.raises(sqlalchemy.exc.DBAPIError, match="did you mean"):
                one.execute(sqlalchemy.text("FROM vector_search('itms', [1], k => 5)"))
        engine.dispose()
    duckdb.connect("shop.duckdb").close()  # nothing keeps the file


def write_project(folder: Path) -> None:
    """Write the files of the dbt section, each of which is named in its first line."""
    for language, text in BLOCK.findall(SECTIONS["dbt"]):
        assert language in ("yaml", "jinja")
        first, _, rest = text.partition("\n")
        path = folder / re.fullmatch(r"(?:#|--) (\S+)", first)[1]  # type: ignore[index]
        path.parent.mkdir(exist_ok=True)
        path.write_text(rest, encoding="utf-8")


def run_dbt(folder: Path) -> subprocess.CompletedProcess[str]:
    call = "from dbt.cli.main import cli; cli()"
    options = ["--no-send-anonymous-usage-stats", "--no-use-colors", "--quiet"]
    command = [sys.executable, "-c", call, *options, "run", "--profiles-dir", "."]
    return subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "DO_NOT_TRACK": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_dbt_project_builds_indexes_keeps_them_and_searches(tmp_path: Path) -> None:
    pytest.importorskip("dbt.adapters.duckdb")
    write_project(tmp_path)
    for rows_of_events in (5000, 6000):
        done = run_dbt(tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stderr == ""
        con = duckvec.connect(str(tmp_path / "shop.duckdb"))
        states = con.execute(
            "SELECT collection, index_type, indexed_rows, state FROM vector_indexes() "
            "ORDER BY collection"
        ).fetchall()
        neighbours = con.execute(
            "SELECT count(*), count(*) FILTER (neighbour = id AND distance = 0) "
            "FROM neighbours"
        ).fetchall()
        con.close()
        assert states == [
            ("events", "IVF_FLAT", rows_of_events, "ready"),
            ("items", "IVF_FLAT", 5000, "ready"),
        ]
        assert neighbours == [(30, 10)]


def test_the_dbt_plugin_takes_the_options_of_load(tmp_path: Path) -> None:
    base = pytest.importorskip("dbt.adapters.duckdb.plugins").BasePlugin
    credentials = SimpleNamespace(settings={"threads": 2})

    def create(**config: Any) -> Any:
        return base.create("duckvec.dbt", config=config, credentials=credentials)

    folder = tmp_path / "vectors"
    plugin = create(directory=str(folder), background=False, threads=2)
    con = duckdb.connect(str(tmp_path / "shop.duckdb"))
    plugin.configure_connection(con)
    assert con.execute("FROM vector_indexes()").fetchall() == []
    con.execute("CREATE TABLE items AS SELECT [1, 2]::FLOAT[2] AS v FROM range(9)")
    cursor = con.cursor()
    plugin.configure_cursor(cursor)
    cursor.execute("CALL create_vector_index('items', 'FLAT')")
    con.close()
    assert list(folder.rglob("*.index"))
    with pytest.raises(ParameterError, match='no option "folder"; there are directory'):
        create(folder=str(folder))
