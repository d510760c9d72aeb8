"""What random tests do to a world: one function per kind of operation.

Every operation draws all that it needs from the world's random numbers, and does
nothing where it has no place. So any part of a list of operations can be run again.
"""

from __future__ import annotations

from collections.abc import Callable

import duckdb
import numpy as np
import pyarrow.parquet as pq

from duckvec.sql_text import quote_identifier, quote_literal
from tests.comparison import Mismatch, compare, read_truth
from tests.world import World
from tests.world_parts import (
    DUCKDB_1,
    Prepared,
    Session,
    TableState,
    with_ef,
)

WEIGHTS: dict[str, int] = {}
OPERATIONS: dict[str, Callable[[World], None]] = {}
READ_ONLY = {"begin", "commit", "rollback", "prepare", "execute", "reopen"}

Operation = Callable[[World], None]


def operation(weight: int) -> Callable[[Operation], Operation]:
    """Declare an operation, and how often it comes."""

    def declare(function: Operation) -> Operation:
        name = function.__name__.strip("_")
        WEIGHTS[name] = weight
        OPERATIONS[name] = function
        return function

    return declare


def some_session(world: World, idle: bool = False) -> Session | None:
    """Return a session, most often the first; None where that one is not idle."""
    number = int(world.rng.choice(len(world.sessions), p=[0.6, 0.25, 0.15]))
    session = world.sessions[number]
    return None if idle and session.in_transaction else session


def some_table(world: World, session: Session | None = None) -> TableState | None:
    """Return a table as the session sees it, and mark it as touched."""
    tables = world.tables
    if session is not None and session.tables is not None:
        tables = session.tables
    if not tables:
        return None
    name = sorted(tables)[int(world.rng.integers(0, len(tables)))]
    world.touched = name
    return tables[name]


def some_target(world: World) -> tuple[Session, TableState, str] | None:
    """Return a session, a table that it sees, and the table's name."""
    session = some_session(world)
    table = some_table(world, session)
    if session is None or table is None:
        return None
    return session, table, world.full_name(table.name)


def some_ids(world: World) -> str:
    """Return a condition that a few, or some hundred, rows meet."""
    rng = world.rng
    modulus = int(rng.choice([7, 40, 300]))
    low = int(rng.integers(0, max(1, world.next_id)))
    return str(
        rng.choice(
            [
                f"id % {modulus} = {int(rng.integers(0, modulus))}",
                f"id BETWEEN {low} AND {low + int(rng.integers(1, 300))}",
            ]
        )
    )


def columns_of(table: TableState) -> str:
    """Return the list of the three columns that every table has."""
    return f"(id, {quote_identifier(table.price)}, {quote_identifier(table.column)})"


def values_of(table: TableState, extra: str = "") -> str:
    """Return a SELECT of the rows in `data` for a table."""
    return f"SELECT id, price, vector::{table.column_type} AS vector FROM data{extra}"


def insert_rows(world: World, session: Session, table: TableState, count: int) -> None:
    """Insert new rows."""
    data = world.rows(table, world.new_ids(count))
    name = world.full_name(table.name)
    sql = f"INSERT INTO {name} {columns_of(table)} {values_of(table)}"
    world.run_with(session, sql, data)


def existing(world: World, session: Session, table: TableState) -> list[int]:
    """Return up to 200 ids of rows that a session sees."""
    sql = f"SELECT id FROM {world.full_name(table.name)} WHERE {some_ids(world)}"
    return sorted(row[0] for row in session.con.execute(sql).fetchall())[:200]


# Rows


@operation(10)
def insert(world: World) -> None:
    if target := some_target(world):
        size = int(world.rng.choice([1, 50, 400, 4500], p=[0.3, 0.4, 0.25, 0.05]))
        insert_rows(world, target[0], target[1], size)


@operation(2)
def copy_from_file(world: World) -> None:
    if target := some_target(world):
        session, table, name = target
        data = world.rows(table, world.new_ids(int(world.rng.integers(1, 300))))
        file = world.folder / "rows.parquet"
        pq.write_table(data, file)
        world.run(
            session,
            f"COPY {name} {columns_of(table)} FROM {quote_literal(str(file))}",
        )


@operation(5)
def write_again(world: World) -> None:
    """Write rows that are there already, in one of five ways."""
    target = some_target(world)
    if target is None or world.is_stale(target[0], target[1]):
        return
    session, table, name = target
    ids = existing(world, session, table)
    fresh = world.new_ids(int(world.rng.integers(0, 20)))
    data = world.rows(table, np.array([*ids, *fresh], dtype=np.int64))
    if not data.num_rows:
        return
    price, column = quote_identifier(table.price), quote_identifier(table.column)
    insert = f"{name} {columns_of(table)} {values_of(table)}"
    both = f"{column} = excluded.{column}, {price} = excluded.{price}"
    ways = {
        "or replace": f"INSERT OR REPLACE INTO {insert}",
        "on conflict": f"INSERT INTO {insert} ON CONFLICT (id) DO UPDATE SET {both}",
        "price only": f"INSERT INTO {insert} ON CONFLICT (id) DO UPDATE SET "
        f"{price} = excluded.{price}",
        "do nothing": f"INSERT INTO {insert} ON CONFLICT DO NOTHING",
        "merge": f"MERGE INTO {name} AS t USING ({values_of(table)}) AS s "
        "ON t.id = s.id WHEN MATCHED AND s.price < 20 THEN DELETE "
        f"WHEN MATCHED THEN UPDATE SET {column} = s.vector, {price} = s.price "
        f"WHEN NOT MATCHED THEN INSERT {columns_of(table)} "
        "VALUES (s.id, s.price, s.vector)",
    }
    names = list(ways) if table.keyed else ["merge"]
    world.run_with(session, ways[str(world.rng.choice(names))], data)


@operation(6)
def update_vectors(world: World) -> None:
    if target := some_target(world):
        session, table, name = target
        column = quote_identifier(table.column)
        scaled = f"list_transform({column}::{table.element}[], lambda x: x * 0.9)"
        values = [
            f"{scaled}::{table.column_type}",
            "NULL",
            f"(SELECT any_value({column}) FROM {name} WHERE {some_ids(world)})",
        ]
        value = str(world.rng.choice(values, p=[0.6, 0.1, 0.3]))
        world.run(
            session, f"UPDATE {name} SET {column} = {value} WHERE {some_ids(world)}"
        )


@operation(3)
def update_prices(world: World) -> None:
    if target := some_target(world):
        session, table, name = target
        price = quote_identifier(table.price)
        world.run(
            session,
            f"UPDATE {name} SET {price} = ({price} + 7) % 100 WHERE {some_ids(world)}",
        )


@operation(8)
def delete(world: World) -> None:
    if target := some_target(world):
        world.run(target[0], f"DELETE FROM {target[2]} WHERE {some_ids(world)}")


@operation(2)
def delete_most(world: World) -> None:
    if target := some_target(world):
        kept = int(world.rng.integers(0, 10))
        if world.run(target[0], f"DELETE FROM {target[2]} WHERE id % 10 <> {kept}"):
            insert_rows(world, target[0], target[1], world.options.rows // 3)


@operation(1)
def truncate(world: World) -> None:
    target = some_target(world)
    if target and world.run(target[0], f"TRUNCATE {target[2]}"):
        insert_rows(world, target[0], target[1], world.options.rows // 2)


@operation(1)
def insert_odd_vectors(world: World) -> None:
    """Insert vectors that no search may return, or whose direction is missing."""
    if target := some_target(world):
        session, table, name = target
        odd = ["'NaN'", "'Infinity'"]
        vectors = [f"[{', '.join([x] * table.dimension)}]" for x in odd]
        if not DUCKDB_1:  # it gives zero vectors a cosine distance
            vectors.append(f"[{', '.join(['0'] * table.dimension)}]")
        if table.is_list:
            vectors += ["[1, 2]", "[]", f"[{', '.join(['NULL'] * table.dimension)}]"]
        value = str(world.rng.choice(vectors))
        number = int(world.new_ids(1)[0])
        inserted = world.run(
            session,
            f"INSERT INTO {name} {columns_of(table)} "
            f"VALUES ({number}, 1, {value}::{table.element}[])",
        )
        if inserted and world.rng.random() < 0.5:
            world.verify(world.rng)
            if table in world.tables.values() and session in world.sessions:
                world.run(session, f"DELETE FROM {name} WHERE id = {number}")


# Transactions


@operation(5)
def begin(world: World) -> None:
    session = some_session(world, idle=True)
    if session is None:
        return
    modes = ["BEGIN", "BEGIN TRANSACTION READ ONLY"]
    mode = modes[int(world.rng.random() < 0.2)] if not world.read_only else modes[0]
    world.begin(session, mode)
    if mode != "BEGIN" or world.rng.random() < 0.7:
        for name in sorted(world.tables):  # its snapshot is that of now
            path = world.full_name(name)
            session.con.execute(f"SELECT count(*) FROM {path}").fetchall()


@operation(4)
def commit(world: World) -> None:
    session = some_session(world)
    if session is not None and session.in_transaction:
        world.end_transaction(session, "COMMIT")


@operation(3)
def rollback(world: World) -> None:
    session = some_session(world)
    if session is not None and session.in_transaction:
        world.end_transaction(session, "ROLLBACK")


# Searches that were prepared


@operation(2)
def prepare(world: World) -> None:
    session = some_session(world)
    table = some_table(world, session)
    if session is None or table is None or world.is_stale(session, table):
        return
    index = world.indexes.get((table.name, table.column))
    k = int(world.rng.choice([3, 20, 100]))
    subject = with_ef(world.subject(table, index), k)
    name = f"prepared{len(session.prepared)}"
    call = subject.call(f"$1::{table.element}[]", k, None)
    sql = f"SELECT id, {quote_identifier(table.price)}, distance FROM {call}"
    world.note(f"s{world.sessions.index(session)}: PREPARE {name} AS {sql}")
    try:
        session.con.execute(f"PREPARE {name} AS {sql}").fetchall()
    except duckdb.Error as error:
        if not world.may_refuse(session, table):
            raise Mismatch(f"{sql}: {error}") from error
        return
    session.prepared.append(Prepared(name, table, subject, index, k))


@operation(4)
def execute(world: World) -> None:
    ready = [session for session in world.sessions if session.prepared]
    if not ready:
        return prepare(world)
    session = ready[int(world.rng.integers(0, len(ready)))]
    known = session.prepared[int(world.rng.integers(0, len(session.prepared)))]
    tables = world.tables if session.tables is None else session.tables
    table = tables.get(known.table.name)
    index = world.indexes.get((known.table.name, known.table.column))
    same_kind = index is not None and (
        known.index is not None
        and (index.index_type, index.metric, index.params)
        == (known.index.index_type, known.index.metric, known.index.params)
    )
    if table != known.table or world.is_stale(session, known.table):
        return
    if index != known.index and not same_kind:
        return  # its parameters may be those of another type
    query = world.query(table)
    # With an exponent they are numbers of DOUBLE; without one, of DECIMAL.
    array = f"[{', '.join(f'{x:.17e}' for x in query)}]::{table.element}[]"
    world.note(f"s{world.sessions.index(session)}: EXECUTE {known.name}")
    try:
        found = session.con.execute(f"EXECUTE {known.name}({array})").fetchall()
    except duckdb.Error as error:
        if world.may_refuse(session, table):
            return
        raise Mismatch(f"EXECUTE of {known}: {error}") from error
    truth = read_truth(session.con, known.subject, query)
    try:
        compare(found, truth, known.k, known.subject)
    except Mismatch as error:
        raise Mismatch(f"EXECUTE of {known} for {query}: {error}") from None
    world.counts["prepared searches compared"] += 1
