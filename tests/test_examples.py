"""The examples run as they stand."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest

import duckvec

ROOT = Path(__file__).parents[1]
DEMO_LIBRARIES = ("annoy", "hnswlib", "matplotlib", "rich", "tqdm")


def run(script: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script)],
        cwd=folder,
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.mark.core
def test_the_plain_script_runs_and_says_nothing_on_stderr() -> None:
    done = run(ROOT / "examples" / "plain.py", ROOT)
    assert "by index" in done.stdout
    assert done.stderr == ""


@pytest.mark.core
def test_the_statements_run_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    text = (ROOT / "examples" / "statements.sql").read_text(encoding="utf-8")
    con = duckvec.connect()
    for statement in duckdb.extract_statements(text):
        assert con.execute(statement).fetchall(), statement.query
    con.close()


def leave_a_database(path: Path) -> None:
    """Leave what an earlier run of the demo may have left."""
    path.parent.mkdir()
    con = duckvec.connect(str(path))
    con.execute(
        "CREATE TABLE packages AS SELECT [i, 1]::FLOAT[2] AS v FROM range(9) t(i)"
    )
    con.execute("CALL create_vector_index('packages', 'FLAT')")
    con.close()


def test_the_demo_runs_again_and_its_last_lines_work_as_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = [name for name in DEMO_LIBRARIES if not importlib.util.find_spec(name)]
    if missing:
        pytest.skip(f"the demo needs {', '.join(missing)}")
    folder = tmp_path / "examples"
    shutil.copytree(ROOT / "examples" / "data", folder / "data")
    shutil.copy(ROOT / "examples" / "demo.py", folder)
    leave_a_database(folder / "output" / "packages.duckdb")
    done = run(folder / "demo.py", tmp_path)

    for text in ("Packages like", "recall@10", "plain scan", "IVF_PQ", "ANNOY"):
        assert text in done.stdout
    assert "100%" in done.stderr
    others = [line for line in re.split(r"[\r\n]+", done.stderr) if "%|" not in line]
    assert not "".join(others).strip(), others
    picture = folder / "output" / "comparison.png"
    assert picture.read_bytes().startswith(b"\x89PNG")

    monkeypatch.chdir(tmp_path)
    *_, python, _, _, _, create, search, drop = done.stdout.splitlines()
    names: dict[str, duckdb.DuckDBPyConnection] = {}
    exec(python, names)
    con = names["con"]
    assert con.sql(create).fetchall()[0][2] == "HNSW"
    assert len(con.sql(search).fetchall()) == 5
    assert con.sql(drop).fetchall()[0][2] == "FLAT"
    con.close()
