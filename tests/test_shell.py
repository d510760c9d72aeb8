"""The command `duckvec`, as people and scripts use it."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import duckdb
import numpy as np
import pytest
from rich.console import Console

import duckvec
from duckvec.shell.output import Result, as_csv, as_json, as_markdown, print_box
from duckvec.shell.running import Session, is_complete
from tests.data import Vectors, create, create_table

# Where the tests run in the background, Ctrl-C is ignored; not in a shell.
PROGRAM = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from duckvec.shell import main; main()"
)
COMMAND = [sys.executable, "-c", PROGRAM]
# The signal may reach any thread; here it is not the one that waits.
PRESS = """
import signal, threading, time

def press():
    while "duckvec-shell" not in [thread.name for thread in threading.enumerate()]:
        time.sleep(0.05)
    time.sleep(0.5)
    signal.raise_signal(signal.SIGINT)

threading.Thread(target=press, daemon=True).start()
"""
DRAWN = {
    "NO_COLOR": "1",
    "PROMPT_TOOLKIT_NO_CPR": "1",
    "COLUMNS": "200",
    "TERM": "xterm",
}


def duckvec_command(
    *arguments: str | Path, text: str | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        input=text,
        stdin=subprocess.DEVNULL if text is None else None,
        capture_output=True,
        text=True,
        env={**os.environ, **DRAWN},
        timeout=120,
        check=False,
    )


@pytest.fixture
def indexed(path: Path, vectors: Vectors) -> Path:
    con = duckvec.connect(str(path))
    create_table(con, vectors)
    create(con, "IVF_FLAT")
    con.close()
    return path


def test_sql_of_the_command_line(indexed: Path) -> None:
    done = duckvec_command(indexed, "-c", "SELECT 1 AS one; SELECT NULL AS two")
    assert (done.returncode, done.stderr) == (0, "")
    assert "│   1 │" in done.stdout and "│ NULL │" in done.stdout
    query = "(SELECT embedding FROM items WHERE id = 7)"
    search = f"SELECT id, distance FROM vector_search('items', {query}, 3)"
    done = duckvec_command(indexed, "-c", search, "--json")
    rows = json.loads(done.stdout)
    assert rows[0] == {"id": 7, "distance": 0.0} and len(rows) == 3
    done = duckvec_command(indexed, "--csv", "-c", search)
    assert next(csv.reader(io.StringIO(done.stdout))) == ["id", "distance"]
    done = duckvec_command(indexed, "--markdown", "-c", search)
    assert done.stdout.splitlines()[:3] == [
        "| id | distance |",
        "|---:|---:|",
        "| 7 | 0 |",
    ]


def test_sql_of_files_and_of_the_standard_input(path: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.sql"
    script.write_text("CREATE TABLE t (i INTEGER); INSERT INTO t VALUES (1), (2);")
    assert duckvec_command(path, "-f", script).returncode == 0
    done = duckvec_command(path, "--csv", text="SELECT sum(i) AS total FROM t;")
    assert done.stdout == "total\n3\n"
    done = duckvec_command("--csv", text="SELECT 'in memory' AS place")
    assert done.stdout == "place\nin memory\n"


@pytest.mark.parametrize(
    ("arguments", "code", "error"),
    [
        (["-c", "SELEC 1"], 1, 'syntax error at or near "SELEC"'),
        (
            ["-c", "SELECT 1; FROM vector_search('itms', [1], 1)"],
            1,
            'no table "itms"; did you mean "items"?',
        ),
        (["--read-only", "-c", "DELETE FROM items"], 1, "read-only"),
        (["--nonsense"], 2, "No such option"),
        (["-f", "missing.sql"], 2, "does not exist"),
    ],
)
def test_exit_codes_and_errors(
    indexed: Path, arguments: list[str], code: int, error: str
) -> None:
    done = duckvec_command(indexed, *arguments)
    assert done.returncode == code
    assert error in done.stderr and "Traceback" not in done.stderr


def test_a_file_that_cannot_be_opened(tmp_path: Path) -> None:
    broken = tmp_path / "broken.db"
    broken.write_text("no database")
    done = duckvec_command(broken, "-c", "SELECT 1")
    assert done.returncode == 1 and done.stderr and "Traceback" not in done.stderr
    assert duckvec_command("info", tmp_path / "missing.db").returncode == 2


def test_info_and_verify(indexed: Path) -> None:
    done = duckvec_command("info", indexed)
    assert done.returncode == 0
    assert "main.items" in done.stdout and "IVF_FLAT" in done.stdout
    assert "ready" in done.stdout and "faiss" in done.stdout
    rows = json.loads(
        duckvec_command("info", indexed, "--json").stdout.split("]\n")[0] + "]"
    )
    assert rows[0]["indexed_rows"] == 3000
    done = duckvec_command("verify", indexed)
    assert done.returncode == 0 and done.stdout.count("right") == 2
    folder = indexed.with_name(indexed.name + ".duckvec")
    (file,) = folder.glob("*.index")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    done = duckvec_command("verify", indexed)
    assert done.returncode == 1 and "altered" in done.stdout
    file.unlink()
    done = duckvec_command("verify", indexed)
    assert done.returncode == 1 and "missing" in done.stdout


def test_verify_finds_what_became_of_table_and_catalog(indexed: Path) -> None:
    with duckdb.connect(str(indexed)) as con:
        con.execute("ALTER TABLE items DROP COLUMN embedding")
    done = duckvec_command("verify", indexed)
    assert done.returncode == 1 and "no column" in done.stdout
    with duckdb.connect(str(indexed)) as con:
        con.execute("DROP TABLE items")
    done = duckvec_command("verify", indexed)
    assert done.returncode == 1 and "no such table" in done.stdout
    assert done.stderr == ""
    with duckdb.connect(str(indexed)) as con:
        con.execute("UPDATE duckvec.indexes SET index_type = 'NOPE'")
    done = duckvec_command("verify", indexed)
    assert done.returncode == 1 and "NOPE" in done.stdout


def test_wide_rows_are_drawn_upright() -> None:
    text = io.StringIO()
    row = Result([f"column {n}" for n in range(14)], [list(range(14))])
    print_box(Console(file=text, width=80), row)
    lines = text.getvalue().splitlines()
    assert len(lines) == 14 + 3 and all(len(line) <= 80 for line in lines)
    assert [word for word in lines[14].split() if word != "│"] == ["column", "13", "13"]


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C is another thing there")
def test_ctrl_c_ends_a_build_of_a_script(path: Path) -> None:
    con = duckvec.connect(str(path))
    rows = np.random.default_rng(0).standard_normal((40_000, 64)).astype(np.float32)
    create_table(con, Vectors(rows, rows[:1]))
    con.close()
    build = (
        "SELECT 'begun' AS state; CALL create_vector_index('items', 'HNSW', "
        "{'M': 48, 'efConstruction': 500})"
    )
    process = subprocess.Popen(
        [*COMMAND, str(path), "--csv", "-c", build],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **DRAWN},
    )
    assert process.stdout is not None
    assert [process.stdout.readline() for _ in range(2)] == ["state\n", "begun\n"]
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=60)
    assert (process.returncode, out, errors) == (130, "", "interrupted\n")
    con = duckvec.connect(str(path))
    assert con.execute("FROM vector_indexes()").fetchall() == []
    con.close()
    assert list(path.with_name(path.name + ".duckvec").glob("*")) == []


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C is another thing there")
def test_ctrl_c_that_another_thread_gets_ends_a_statement() -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-c", PRESS + PROGRAM, ":memory:"),
            *("-c", "SELECT count(*) FROM range(1_000_000_000_000)"),
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env={**os.environ, **DRAWN},
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


def test_info_without_an_index(path: Path) -> None:
    duckvec.connect(str(path)).close()
    done = duckvec_command("info", path)
    assert done.returncode == 0 and "0 rows" in done.stdout


def test_help_says_what_there_is() -> None:
    done = duckvec_command("--help")
    assert done.returncode == 0
    for word in ("info", "verify", "demo", "sql"):
        assert word in done.stdout
    assert duckvec.__version__ in duckvec_command("--version").stdout


def test_the_demo_leaves_nothing_behind(tmp_path: Path) -> None:
    done = subprocess.run(
        [*COMMAND, "demo", "--rows", "600"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, **DRAWN},
        timeout=120,
        check=False,
    )
    assert done.returncode == 0 and done.stderr == ""
    assert "IVF_PQ" in done.stdout and "vector_search" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "complete"),
    [
        ("SELECT 1;", True),
        ("SELECT 1", False),
        ("SELECT ';", False),
        ("SELECT 'a;b';", True),
        ("", True),
        (".help", True),
        ("SELEC;", True),
    ],
)
def test_a_statement_ends_with_a_semicolon(text: str, complete: bool) -> None:
    assert is_complete(text) is complete


def test_values_are_written_for_programs() -> None:
    values = [None, float("nan"), [1.0, 2.0], {"a": 1}, "x|y\nz", True, b"\x00"]
    result = Result([f"c{at}" for at in range(len(values))], [values])
    (row,) = json.loads(as_json(result))
    assert list(row.values()) == [
        None,
        None,
        [1.0, 2.0],
        {"a": 1},
        "x|y\nz",
        True,
        "b'\\x00'",
    ]
    assert as_csv(result).splitlines()[1].startswith(",nan,")
    assert "x\\|y z" in as_markdown(result)
    assert json.loads(as_json(Result(["a"], []))) == []


def test_a_session_names_what_can_be_completed(indexed: Path) -> None:
    session = Session(str(indexed))
    names = session.names()
    assert {"items", "embedding", "vector_search", "create_vector_index"} <= set(names)
    assert not [name for name in names if name.startswith("__")]
    session.close()


@pytest.fixture
def history(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "history"


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_the_prompt(indexed: Path, history: Path) -> None:
    pexpect = pytest.importorskip("pexpect")
    child = pexpect.spawn(
        COMMAND[0],
        [*COMMAND[1:], str(indexed)],
        env={**os.environ, **DRAWN, "DUCKVEC_HISTORY": str(history)},
        encoding="utf-8",
        timeout=60,
        dimensions=(60, 160),
    )
    child.expect("duckvec>")
    child.send("SELECT count(*) AS many\r")
    child.expect("…>")
    child.send("FROM items;\r")
    child.expect("3000")
    child.expect("ms")
    child.send("FROM vector_serch('items', [1], 1);\r")
    child.expect("did you mean|Did you mean|does not exist")
    child.send(".indexes\r")
    child.expect("IVF_FLAT")
    child.send(".nonsense\r")
    child.expect("no command .nonsense")
    child.send("vector_sea\t")
    child.expect("vector_search")
    child.sendcontrol("c")
    child.send(".x[/]\r")
    child.expect_exact("no command .x[/]")
    child.send("SELECT INTERVAL 2000000000 MONTHS;\r")
    child.expect("duckvec>")
    for seconds in (2, 4, 8, 16):  # which the prompt may take to begin
        child.send("SELECT sum(hash(i)) FROM range(1000000000000) t(i);\r")
        child.expect("range")
        time.sleep(seconds)
        child.sendintr()
        if child.expect(["interrupted", pexpect.TIMEOUT], timeout=10) == 0:
            break
    else:
        pytest.fail("Ctrl-C ended nothing")
    child.send("SELECT 40 + 2 AS answer;\r")
    child.expect("42")
    child.send(".quit\r")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
    assert "SELECT count(*) AS many" in history.read_text()


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_a_long_build_shows_a_bar(path: Path, history: Path) -> None:
    pexpect = pytest.importorskip("pexpect")
    con = duckvec.connect(str(path))
    rows = np.random.default_rng(0).standard_normal((20_000, 64)).astype(np.float32)
    create_table(con, Vectors(rows, rows[:1]))
    con.close()
    child = pexpect.spawn(
        COMMAND[0],
        [*COMMAND[1:], str(path)],
        env={**os.environ, **DRAWN, "DUCKVEC_HISTORY": str(history)},
        encoding="utf-8",
        timeout=100,
        dimensions=(60, 160),
    )
    child.expect("duckvec>")
    child.send(
        "CALL create_vector_index('items', 'HNSW', {'M': 16, 'efConstruction': 200});\r"
    )
    child.expect("building HNSW on items")
    child.expect("%")
    child.expect("row_count")
    child.send(".quit\r")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
