# ruff: noqa: RUF001 - letters that look like others are meant
"""Hostile arguments for every SQL function, and what must hold whatever they are.

`Target` is a database with an index and with canaries: tables, files, settings. A call
with any arguments answers, or fails with one sentence, and changes nothing that it is
not about.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np

import duckvec
from tests.data import assert_same, clustered, create_table, exact, search

VECTORS = clustered(400, 8)
NLIST = '{"nlist": 4}'
LONGEST_ERROR = 1000
# What is wrong with a query is known where DuckDB puts these words before it.
RAISED_BY_HITS = "Python exception occurred while executing the UDF: QueryError: "
CHECKED_EVERY = 25
RENEWED_EVERY = 1000
CHILD_SECONDS = 120.0


class HostileError(AssertionError):
    """Raised when a call did what it must not do; the text tells which."""


NAMES = (
    "items",
    "main.items",
    'hostile.main."items"',
    '"odd ""name"" ;--"',
    "empty",
    "words",
    "canary",
    "duckvec.indexes",
    "duckvec.segments",
    "items; DROP TABLE canary",
    "items'); DROP TABLE canary; --",
    'items" ; DROP TABLE canary; --',
    "items) UNION SELECT * FROM canary --",
    "items /* canary",
    "items -- canary",
    "(SELECT * FROM canary)",
    "read_csv('/etc/passwd')",
    "/etc/passwd",
    "'/etc/passwd'",
    '"/etc/passwd"',
    "../../etc/passwd",
    "..",
    "file.parquet",
    '"canary.csv"',
    "items\x00",
    "items\x00; DROP TABLE canary",
    "\x00",
    "",
    " ",
    '"',
    '""',
    ".",
    "items.",
    "a.b.c.d",
    "іtems",  # a Cyrillic letter
    "ｉｔｅｍｓ",  # wide ones
    "items\u200b",
    "items\u202e",
    "it\u0301ems",
    "items\n",
    "items\r\n; DROP TABLE canary",
    "\ufeffitems",
    "😀",
    "x" * 1000,
    '"' + "x" * 100_000 + '"',
    "temp.main.items",
    "system.main.items",
    "information_schema.tables",
    "sqlite_master",
    "pragma_database_list",
    "$1",
    "?",
    "{session}",
    "%s%n",
)
COLUMNS = (
    *("embedding", "EMBEDDING", "price", "id", "rowid", "distance", "__query", ""),
    'embedding"',
    'embedding" FROM canary --',
    "embedding; DROP TABLE canary",
    "embedding\x00",
    "(SELECT 1)",
    "*",
    "x" * 100_000,
    "ｅmbedding",
    "line\nbreak",
)
TYPES = (
    *("IVF_FLAT", "ivf_flat", " HNSW ", "FLAT", "SQ8", "IVF_PQ", "NSG", "ANNOY", ""),
    "IVF_FLAT'; DROP TABLE canary; --",
    "os:system",
    "../flat",
    "__import__('os')",
    "IVF\x00FLAT",
    "ＨＮＳＷ",
    "x" * 100_000,
    "a\nb",
)
METRICS = (
    *("L2", "ip", "cosine", "", "L2\x00", "L3", "x" * 10_000, "l2\n"),
    "L2'); DROP TABLE canary; --",
    "Ｌ２",
    "array_distance",
)
VALUES = (
    *("4", "0", "-1", "1e400", "-1e400", "NaN", "Infinity", "true", "null", '"8"'),
    *(
        "8.0",
        "8.5",
        "1e2",
        "9" * 400,
        "9" * 5000,
        "0x10",
        "[]",
        "[4]",
        "{}",
        "١",
        "4.0",
    ),
    '"\\ud800"',
    '"\\u0000"',
    '"4\'; DROP TABLE canary; --"',
    "[" * 50_000 + "]" * 50_000,
    '{"a":' * 5_000 + "1" + "}" * 5_000,
    "[" + ",".join("1" for _ in range(100_000)) + "]",
    '"' + "x" * 100_000 + '"',
)
KEYS = (
    *("nlist", "nprobe", "ef", "M", "efConstruction", "m", "n_trees", "recall", ""),
    *(
        "search_k",
        "overfetch",
        "__class__",
        "NLIST",
        "nlist\\u0000",
        "\\ud800",
        "пlist",
    ),
    "nlist'; DROP TABLE canary; --",
    "a\\nb",
    "k" * 10_000,
)
TEXTS = (
    *("", " ", "{", "}", "[]", "7", "null", '""', '"{}"', "nlist=4", "<>", "<", "\x00"),
    '<"nlist":4>',
    "{'nlist': 4}",
    '{"nlist": 4}; DROP TABLE canary',
    '{"nlist": 4, "nlist": 5}',
    '{"nlist": 4}\x00',
    "(SELECT 1)",
    '"' * 1001,
)
FILTERS = (
    *(
        "price < 50",
        "true",
        "NULL",
        "id",
        "''",
        "",
        " ",
        "*",
        "1, 2",
        "price <",
        "\x00",
    ),
    "price < 50; DROP TABLE canary",
    "price < 50) OR (1 = 1",
    "price < 50); DROP TABLE canary; --",
    "1 = 1) UNION SELECT * FROM canary --",
    "true -- comment",
    "true /* open",
    "true */ OR /* x",
    "true ORDER BY 1",
    "true LIMIT 1",
    "true UNION SELECT 1",
    "SELECT 1",
    "(SELECT count(*) FROM canary) > 0",
    "EXISTS (FROM '/etc/passwd')",
    "EXISTS (FROM 'canary.csv')",
    "EXISTS (FROM read_text('/etc/passwd'))",
    "EXISTS (FROM read_csv('canary.csv'))",
    "EXISTS (FROM glob('/*'))",
    "EXISTS (FROM query('DROP TABLE canary'))",
    "EXISTS (FROM query_table('canary'))",
    "EXISTS (FROM duckdb_settings())",
    "EXISTS (FROM pragma_version())",
    "EXISTS (SHOW TABLES)",
    "EXISTS (DESCRIBE canary)",
    "EXISTS (FROM sniff_csv('canary.csv'))",
    "EXISTS (FROM parquet_scan('x'))",
    "EXISTS (FROM json_execute_serialized_sql('{}'))",
    "EXISTS (FROM create_vector_index('empty', 'FLAT'))",
    "EXISTS (FROM drop_vector_index('items'))",
    "id IN (WITH x AS (INSERT INTO canary VALUES (9) RETURNING 1) FROM x)",
    "id IN (WITH x AS (DELETE FROM canary RETURNING 1) FROM x)",
    "id IN (WITH x AS (COPY canary TO 'stolen.csv') FROM x)",
    "id IN (INSERT INTO canary VALUES (9) RETURNING 1)",
    "nextval('counter') > 0",
    "'counter'.nextval() > 0",
    "main.nextval('counter') > 0",
    "list_transform([1], lambda x: nextval('counter')) = [1]",
    "CASE WHEN nextval('counter') > 0 THEN true END",
    "setseed(0.5) IS NULL",
    "random() < 0.5",
    "write_log('x') IS NULL",
    "sleep_ms(100000) IS NULL",
    "create_vector_index('empty', 'FLAT') IS NULL",
    "drop_vector_index('items') IS NULL",
    "DROP_VECTOR_INDEX('items') IS NULL",
    "vector_compact('items') IS NULL",
    "__duckvec_drop(1, 'items', NULL, 'hostile', 'main', '') IS NULL",
    "error('x')",
    "SET threads = 1",
    "ATTACH ':memory:' AS stolen",
    "COPY canary TO 'stolen.csv'",
    "PRAGMA database_list",
    "price < $1",
    "price < ?",
    "price = :price",
    "no_such_column < 3",
    "no_such_function(3)",
    "price < 'x'",
    "price < 1e400",
    "price = 1/0",
    "(" * 5_000 + "true" + ")" * 5_000,
    "NOT " * 20_000 + "true",
    "price IN (" + ",".join(map(str, range(5_000))) + ")",
    "price < 50 AND '" + "x" * 100_000 + "' <> ''",
    "price < 50 AND 'ｘ' <> \"embedding\"",
    "COLUMNS(*) IS NOT NULL",
    "#1 = 1",
    "grouping(price) = 1",
    "count(*) > 1",
    "row_number() OVER () < 5",
    "unnest([true, false])",
    "distance < 3",
    "vector IS NOT NULL",
    "rowid < 100",
    "__query.vector IS NOT NULL",
    "t.price < 10",
    "price < 50 \n",
    "price\x0b<\x0c50",
    "price < 50 -- \n",
    "price < 50 --",
    "price\u00a0< 50",
    "“price” < 50",
    "price < 50\u2028OR true",
    "E'\\x41' = 'A'",
    "$$; DROP TABLE canary$$ = ''",
)
NUMBERS = (
    *("1", "10", "0", "-1", "16384", "16385", "NULL", "'x'", "1e400", "'1e400'", "1.5"),
    *(
        "'NaN'::DOUBLE",
        "'inf'::DOUBLE",
        "true",
        "'8'",
        "9" * 30,
        "'" + "9" * 5000 + "'",
    ),
    *("'1_0'", "'٣'", "[1]", "{'a': 1}", "'1; DROP TABLE canary'", "DATE '2020-01-01'"),
)
QUERIES = (
    *("NULL", "[]", "[1]", "'x'", "7", "[NULL]", "{'a': 1}", "'[1,2]'", "true"),
    "[1, 2, 3, 4, 5, 6, 7, 8]",
    "[1, 2, 3, 4, 5, 6, 7, 'x']",
    "[1, 2, 3, 4, 5, 6, 7, NULL]",
    "[1, 2, 3, 4, 5, 6, 7, 1e400]",
    "[1, 2, 3, 4, 5, 6, 7, 'NaN'::FLOAT]",
    "[1, 2, 3, 4, 5, 6, 7, 3e38]",
    "'[1, 2, 3, 4, 5, 6, 7, 8]; DROP TABLE canary'",
    "[[1, 2, 3, 4, 5, 6, 7, 8]]",
    "range(100000)",
    "(SELECT embedding FROM items WHERE id = 3)",
    "(SELECT embedding FROM items WHERE id = -3)",
)


@dataclass(frozen=True)
class Call:
    """A call of a function: its arguments in order, by name or None for none."""

    function: str
    arguments: tuple[tuple[str, Any, bool], ...]

    @property
    def sql(self) -> str:
        """The statement, with parameters for those that are texts."""
        parts = []
        for name, value, is_sql in self.arguments:
            named = f"{name} := " if name in OPTIONAL else ""
            parts.append(f"{named}{value if is_sql else f'${name}'}")
        return f"FROM {self.function}({', '.join(parts)})"

    @property
    def values(self) -> dict[str, Any]:
        """The parameters."""
        return {name: value for name, value, is_sql in self.arguments if not is_sql}


OPTIONAL = frozenset(
    ("params", "filter", "column_name", "metric", "index_file_size", "k", "sample")
)
# Each function's arguments: those that are always given, and those that may be.
FUNCTIONS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "create_vector_index": (
        ("collection", "index_type"),
        ("params", "column_name", "metric", "index_file_size"),
    ),
    "drop_vector_index": (("collection",), ("column_name",)),
    "vector_search": (
        ("collection", "query"),
        ("k", "params", "filter", "column_name", "metric"),
    ),
    "vector_range_search": (
        ("collection", "query", "radius"),
        ("params", "filter", "column_name"),
    ),
    "vector_recall": (
        ("collection",),
        ("k", "sample", "params", "filter", "column_name"),
    ),
    "vector_explain": (
        ("collection", "query"),
        ("k", "params", "filter", "column_name"),
    ),
    "vector_index_estimate": (
        ("collection", "index_type"),
        ("params", "column_name", "metric"),
    ),
    "vector_compact": (("collection",), ("column_name",)),
}
CHOICES: dict[str, tuple[str, ...]] = {
    "collection": NAMES,
    "column_name": COLUMNS,
    "index_type": TYPES,
    "metric": METRICS,
    "filter": FILTERS,
}
EXPRESSIONS: dict[str, tuple[str, ...]] = {
    name: NUMBERS for name in ("k", "radius", "sample", "index_file_size")
} | {"query": QUERIES}
USUAL: dict[str, str] = {
    "collection": "items",
    "column_name": "embedding",
    "index_type": "IVF_FLAT",
    "metric": "L2",
    "filter": "price < 50",
    "query": "[1, 2, 3, 4, 5, 6, 7, 8]",
    "k": "3",
    "radius": "3.5",
    "sample": "2",
    "index_file_size": "8",
}


class Drawing:
    """Draws calls: most arguments are usual ones, so that the others are reached."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng

    def call(self) -> Call:
        """Return a call with one hostile argument, or several."""
        names = list(FUNCTIONS)
        function = names[int(self.rng.integers(0, len(names)))]
        always, perhaps = FUNCTIONS[function]
        given = [*always, *(n for n in perhaps if self.rng.random() < 0.5)]
        hostile = {given[int(self.rng.integers(0, len(given)))]}
        hostile |= {name for name in given if self.rng.random() < 0.15}
        return Call(function, tuple(self._argument(n, n in hostile) for n in given))

    def _argument(self, name: str, hostile: bool) -> tuple[str, Any, bool]:
        if name == "params":
            return name, self._params() if hostile else "{}", False
        if name in EXPRESSIONS:
            return name, self._one(EXPRESSIONS[name]) if hostile else USUAL[name], True
        return name, self._text(name) if hostile else USUAL[name], False

    def _text(self, name: str) -> str:
        text = self._one(CHOICES[name])
        if self.rng.random() < 0.7:
            return text
        # A piece of another text in the middle of this one.
        other = self._one(CHOICES[self._one(tuple(CHOICES))])[:200]
        at = int(self.rng.integers(0, len(text) + 1))
        return text[:at] + other + text[at:]

    def _params(self) -> str:
        if self.rng.random() < 0.3:
            return self._one(TEXTS)
        pairs = [
            f'"{self._one(KEYS)}": {self._one(VALUES)}'
            for _ in range(int(self.rng.integers(1, 4)))
        ]
        return "{" + ", ".join(pairs) + "}"

    def _one(self, choices: tuple[str, ...]) -> str:
        return choices[int(self.rng.integers(0, len(choices)))]


class Target:
    """A database that is called with hostile arguments, and its canaries."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "hostile.db"
        self.counts: Counter[str] = Counter()
        (folder / "canary.csv").write_text("id\n1\n")
        self.con = duckvec.connect(str(self.path), background=False)
        con = self.con
        create_table(con, VECTORS)
        con.execute("CREATE TABLE canary AS SELECT 7 AS id")
        con.execute("CREATE SEQUENCE counter")
        con.execute("CREATE TABLE words AS SELECT 'one' AS word")
        con.execute("CREATE TABLE empty (id BIGINT, price INTEGER, embedding FLOAT[8])")
        con.execute('CREATE TABLE "odd ""name"" ;--" AS FROM items LIMIT 50')
        con.execute("CALL create_vector_index('items', 'IVF_FLAT', ?)", [NLIST])
        self.before = self.observe()

    def observe(self) -> dict[str, Any]:
        """Return everything that no call may change."""
        con = self.con

        def rows(sql: str) -> list[tuple[Any, ...]]:
            return con.execute(sql).fetchall()

        return {
            "canary": rows("FROM canary"),
            "words": rows("FROM words"),
            "items": rows("SELECT count(*), sum(id), sum(price) FROM items"),
            "empty": rows("SELECT count(*) FROM empty"),
            "counter": rows(
                "SELECT last_value FROM duckdb_sequences() "
                "WHERE sequence_name = 'counter'"
            ),
            "tables": rows(
                "SELECT database_name, schema_name, table_name FROM duckdb_tables() "
                "WHERE NOT internal ORDER BY ALL"
            ),
            "views": rows("SELECT count(*) FROM duckdb_views() WHERE NOT internal"),
            "databases": rows(
                "SELECT database_name FROM duckdb_databases() ORDER BY ALL"
            ),
            "settings": rows("SELECT name, value FROM duckdb_settings() ORDER BY ALL"),
            "files": sorted(
                path.name
                for path in self.folder.iterdir()
                if path.name not in ("hostile.db.wal",)
            ),
        }

    def call(self, call: Call) -> str | None:
        """Make a call; return the text of its error, checked, or None."""
        self.counts["hostile inputs"] += 1
        self.counts[f"hostile inputs: {call.function}"] += 1
        try:
            self.con.execute(call.sql, call.values).fetchall()
        except duckdb.Error as error:
            text = str(error)
            check_error(text, call)
            self.counts["refused in a sentence"] += 1
            return text
        self.counts["answered"] += 1
        return None

    def check(self, last: list[Call]) -> None:
        """Check that nothing changed, and that searches are right."""
        now = self.observe()
        changed = {k: v for k, v in now.items() if v != self.before[k]}
        if changed:
            raise HostileError(f"after {shown(last)}: {str(changed)[:2000]}")
        strangers = [
            path.name
            for path in (self.folder / "hostile.db.duckvec").glob("*")
            if path.suffix not in (".index", ".map")
        ]
        if strangers:
            raise HostileError(f"after {shown(last)}: files {strangers}")
        query = VECTORS.query(0)
        found = search(self.con, query, params={"recall": 1})
        metric = self.con.execute(
            "SELECT metric FROM vector_indexes() "
            "WHERE collection = 'items' AND column_name = 'embedding'"
        ).fetchall()
        wanted = exact(self.con, query, metric=metric[0][0] if metric else "L2")
        assert_same(found, wanted)

    def close(self) -> None:
        self.con.close()


def check_error(text: str, call: Call) -> None:
    """Check that an error is a sentence: ours one line, DuckDB's in its own form."""
    own = text.startswith("Invalid Input Error")
    sentence = text.split("\n\nLINE")[0]
    if RAISED_BY_HITS in sentence:
        # DuckDB 1.5 says where, too; nothing that Python raises can keep it from that.
        sentence = sentence.split("\n\nAt:")[0].replace(RAISED_BY_HITS, "")
    words = ("Traceback", "\nAt:", "Python exception", "INTERNAL Error")
    wrong = any(word in sentence for word in words)
    if wrong or (own and (len(sentence) > LONGEST_ERROR or "\n" in sentence)):
        raise HostileError(f"{shown([call])}: {text[:2000]}")


def shown(calls: list[Call]) -> str:
    """Return calls for people: long texts are cut."""
    return "; ".join(
        f"{call.sql[:300]} {[f'{n}={v!r:.200}' for n, v in call.values.items()]}"
        for call in calls
    )


def run_target(folder: Path, seed: int, until: float, most: int) -> Counter[str]:
    """Make calls until a time, or so many, on one database; return what was done."""
    folder.mkdir(parents=True)
    before = Path.cwd()
    os.chdir(folder)  # where a relative name would read or write a file
    target = Target(folder)
    drawing = Drawing(np.random.default_rng(seed))
    last: list[Call] = []
    try:
        while time.monotonic() < until and target.counts["hostile inputs"] < most:
            last.append(drawing.call())
            target.call(last[-1])
            if len(last) == CHECKED_EVERY:
                target.check(last)
                last.clear()
        target.check(last)
    finally:
        target.close()
        os.chdir(before)
    return target.counts


def run_hostile(folder: Path, seed: int, seconds: float) -> Counter[str]:
    """Make hostile calls in child processes for a time; return what was done.

    Raises:
        HostileError: a call did what it must not do, or ended its process.
    """
    until = time.monotonic() + seconds
    counts: Counter[str] = Counter()
    while (left := until - time.monotonic()) > 0:
        words = [sys.executable, "-X", "faulthandler", "-m", "tests.hostility"]
        order = [str(folder / f"hostile-{seed}"), str(seed)]
        child = subprocess.run(
            [*words, *order, str(min(left, CHILD_SECONDS))],
            capture_output=True,
            text=True,
            timeout=10 * CHILD_SECONDS,
        )
        lines = child.stdout.splitlines()
        if child.returncode or not lines:
            raise HostileError(
                f"seed {seed}: process ended with {child.returncode}\n{child.stderr}"
            )
        counts.update(json.loads(lines[-1]))
        seed += 1
    return counts


def main() -> None:
    """Make calls for some seconds."""
    parser = argparse.ArgumentParser(prog="python -m tests.hostility")
    parser.add_argument("folder", type=Path)
    parser.add_argument("seed", type=int)
    parser.add_argument("seconds", type=float)
    order = parser.parse_args()
    logging.getLogger("duckvec").setLevel(logging.CRITICAL)
    until = time.monotonic() + order.seconds
    counts: Counter[str] = Counter()
    round_number = 0
    while not counts or time.monotonic() < until:
        seed = order.seed * 1_000 + round_number
        place = order.folder / str(round_number)
        counts += run_target(place, seed, until, RENEWED_EVERY)
        shutil.rmtree(place)
        round_number += 1
    print(json.dumps(counts), flush=True)


if __name__ == "__main__":
    main()
