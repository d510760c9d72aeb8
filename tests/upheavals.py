"""The operations of random tests on indexes, definitions, checkpoints and files."""

from __future__ import annotations

import gc
import json

import duckdb

import duckvec
from duckvec.sql_text import quote_identifier, quote_literal
from tests.comparison import Mismatch
from tests.operations import (
    insert_rows,
    operation,
    some_ids,
    some_session,
    some_table,
)
from tests.world import World
from tests.world_parts import (
    IndexInfo,
    Session,
    TableState,
)

WAIT_SECONDS = 120
# What create_vector_index refuses, and rightly.
NOT_NOW = (
    "a length other than",
    "NaN or infinite",
    "NaN or an infinite",
    "meanwhile; try again",
    "no table",
    "to compact",
    "dimensions now",
    "is gone",
)

# Indexes


@operation(6)
def create_index(world: World) -> None:
    session = some_session(world)
    table = some_table(world)
    if session is None or table is None:
        return
    rng = world.rng
    index_type = str(rng.choice(world.options.types))
    metric = str(rng.choice(["L2", "IP", "COSINE"]))
    params = build_params(world, index_type, table.dimension)
    size = ", index_file_size := 1" if rng.random() < 0.5 else ""
    call = (
        f"create_vector_index({quote_literal(world.full_name(table.name))}, "
        f"{quote_literal(index_type)}, {quote_literal(json.dumps(params))}, "
        f"column_name := {quote_literal(table.column)}, metric := '{metric}'{size})"
    )
    if manage(world, session, call):
        world.indexes[table.name, table.column] = IndexInfo(
            index_type, metric, params, table.dimension
        )


@operation(2)
def drop_index(world: World) -> None:
    session = some_session(world)
    if session is None or not world.indexes:
        return
    keys = sorted(world.indexes)
    name, column = keys[int(world.rng.integers(0, len(keys)))]
    world.touched = name
    call = (
        f"drop_vector_index({quote_literal(world.full_name(name))}, "
        f"column_name := {quote_literal(column)})"
    )
    if manage(world, session, call):
        table = world.tables.get(name)
        old = world.indexes.pop((name, column))
        if table is not None and table.column == column:
            world.indexes[name, column] = IndexInfo(
                "FLAT", old.metric, {}, old.dimension
            )


@operation(2)
def compact(world: World) -> None:
    session = some_session(world)
    table = some_table(world)
    if session is None or table is None:
        return
    if (table.name, table.column) in world.indexes and has_compact(session):
        path = quote_literal(world.full_name(table.name))
        column = quote_literal(table.column)
        before = world.rowids()
        manage(world, session, f"vector_compact({path}, column_name := {column})")
        world.count_moved(before)


@operation(4)
def wait(world: World) -> None:
    session = some_session(world)
    if session is not None:
        world.note(f"s{world.sessions.index(session)}: -- wait()")
        duckvec.load(session.con).wait(WAIT_SECONDS)


def has_compact(session: Session) -> bool:
    """Tell whether this version has vector_compact."""
    sql = "SELECT 1 FROM duckdb_functions() WHERE function_name = 'vector_compact'"
    return bool(session.con.execute(sql).fetchall())


def manage(world: World, session: Session, call: str) -> bool:
    """Create, drop or compact; return whether it was done."""
    sql = str(world.rng.choice(["CALL {}", "FROM {}", "SELECT {}"])).format(call)
    world.note(f"s{world.sessions.index(session)}: {sql}")
    try:
        session.con.execute(sql).fetchall()
    except duckdb.Error as error:
        if not any(text in str(error) for text in NOT_NOW):
            raise Mismatch(f"{sql}: {type(error).__name__}: {error}") from error
        world.note(f"-- refused: {error}")
        world.counts["refused by duckvec"] += 1
        if session.in_transaction:
            world.end_transaction(session, "ROLLBACK")
        return False
    return True


def build_params(world: World, index_type: str, dimension: int) -> dict[str, int]:
    """Return small build parameters."""
    if index_type.startswith("IVF"):
        params = {"nlist": int(world.rng.choice([1, 8, 32]))}
        if index_type == "IVF_PQ":
            params["m"] = dimension if dimension in (1, 2, 3, 4, 8) else 1
        return params
    settings = {
        "NSG": {
            "search_length": 40,
            "out_degree": 20,
            "candidate_pool_size": 60,
            "knng": 30,
        },
        "HNSW": {"M": 12, "efConstruction": 100},
        "ANNOY": {"n_trees": 8},
    }
    return settings.get(index_type, {})


# Definitions; in transactions of their own


def make_table(world: World, session: Session, name: str, rows: int) -> None:
    """Create a table with rows."""
    rng = world.rng
    table = TableState(
        name,
        str(rng.choice(["FLOAT", "DOUBLE"])),
        bool(rng.random() < 0.4),
        int(rng.choice(world.options.dimensions)),
        bool(rng.random() < 0.5),
    )
    key = " PRIMARY KEY" if table.keyed else ""
    made = world.run(
        session,
        f"CREATE TABLE {world.full_name(name)} "
        f"(id BIGINT{key}, price INTEGER, v {table.column_type})",
    )
    if made:
        world.tables[name] = table
        world.touched = name
        insert_rows(world, session, table, rows)


@operation(3)
def alter(world: World) -> None:
    session = some_session(world, idle=True)
    table = some_table(world)
    if session is None or table is None:
        return
    rng = world.rng
    name = world.full_name(table.name)
    number = int(rng.integers(0, 1000))
    way = str(rng.choice(["add", "add vector", "drop", "price", "vector", "table"]))
    changed = TableState(**vars(table))
    changed.extras = list(table.extras)
    if way == "add":
        changed.extras.append(f"note{number}")
        sql = f"ADD COLUMN note{number} VARCHAR DEFAULT 'x'"
    elif way == "add vector" and not table.other_vectors:
        changed.extras.append("more")
        changed.other_vectors = 1
        sql = "ADD COLUMN more FLOAT[2]"
    elif way == "drop" and table.extras:
        gone = changed.extras.pop(0)
        changed.other_vectors -= int(gone == "more")
        sql = f"DROP COLUMN {gone}"
    elif way == "price":
        changed.price = "price" if table.price != "price" else "cost of it"
        sql = f"RENAME COLUMN {quote_identifier(table.price)} TO "
        sql += quote_identifier(changed.price)
    elif way == "vector":
        changed.column = "v" if table.column != "v" else "Vector"
        sql = f"RENAME COLUMN {table.column} TO {changed.column}"
    elif way == "table":
        free = sorted({"alpha", "beta", "Odd name", "delta"} - set(world.tables))
        changed.name = str(rng.choice(free))
        sql = f"RENAME TO {quote_identifier(changed.name)}"
    else:
        return
    if world.run(session, f"ALTER TABLE {name} {sql}"):
        del world.tables[table.name]
        world.tables[changed.name] = changed
        world.touched = changed.name
        index = world.indexes.pop((table.name, table.column), None)
        if index is not None and (
            way != "vector" or is_listed(world, session, changed)
        ):
            world.indexes[changed.name, changed.column] = index
        look(world, session)


def is_listed(world: World, session: Session, table: TableState) -> bool:
    """Tell whether a column whose vectors are perhaps all new kept its index."""
    found = session.con.execute(
        "SELECT count(*) FROM vector_indexes() "
        "WHERE collection = ? AND column_name = ?",
        [table.name, table.column],
    ).fetchall()
    world.counts["indexes lost with a renamed column"] += int(found[0][0] == 0)
    return bool(found[0][0])


def look(world: World, session: Session) -> None:
    """Half of the time, see to it that the indexes follow before anything else."""
    if world.rng.random() < 0.5:
        world.run(session, "FROM vector_indexes()")


@operation(2)
def replace_table(world: World) -> None:
    session = some_session(world, idle=True)
    table = some_table(world)
    if session is None or table is None:
        return
    if world.run(session, f"DROP TABLE {world.full_name(table.name)}"):
        del world.tables[table.name]
        world.indexes.pop((table.name, table.column), None)
        if world.rng.random() < 0.5:
            world.verify(world.rng)
        look(world, session)
        make_table(world, session, table.name, world.options.rows)


# Checkpoints and reopening


@operation(5)
def checkpoint(world: World) -> None:
    run_checkpoint(world, "CHECKPOINT")


@operation(4)
def force_checkpoint(world: World) -> None:
    # It waits for what nobody would end here: a transaction that wrote, or one that is
    # older than an update. A guard ends by itself.
    if not any(session.in_transaction for session in world.sessions):
        run_checkpoint(world, "FORCE CHECKPOINT")


def run_checkpoint(world: World, sql: str) -> bool:
    """Checkpoint, and count the row ids that moved; return whether it was done."""
    session = world.sessions[0]
    before = world.rowids()
    done = world.run(session, sql + (" side" if world.attached else ""))
    world.counts["checkpoints"] += int(done)
    world.count_moved(before)
    return done


@operation(6)
def reopen(world: World) -> None:
    if world.options.place == "memory":
        return
    for session in world.sessions:
        if session.in_transaction:
            world.end_transaction(session, "ROLLBACK")
        del session  # a reference to its connection
    before = world.rowids()
    way = str(
        world.rng.choice(["connect", "load", "read-only", "plain", "drop", "crash"])
    )
    if way == "crash":
        world.crash()
    else:
        world.close(drop_references=way == "drop")
        gc.collect()
    if way == "plain":
        world.open("plain")
        change_without_duckvec(world)
        world.close()
    world.open("load" if way == "load" else "connect", way == "read-only")
    if way != "plain":
        world.count_moved(before)
    if world.rng.random() < 0.4:
        duckvec.load(world.sessions[0].con).wait(WAIT_SECONDS)


def change_without_duckvec(world: World) -> None:
    """Change rows, and checkpoint, by a program that knows nothing of indexes."""
    session = world.sessions[0]
    for name in sorted(world.tables):
        table = world.tables[name]
        path = world.full_name(name)
        world.run(session, f"DELETE FROM {path} WHERE {some_ids(world)}")
        insert_rows(world, session, table, int(world.rng.integers(1, 300)))
        if world.rng.random() < 0.5:
            world.run(session, "CHECKPOINT" + (" side" if world.attached else ""))
        before = world.rowids()
    world.run(session, "CHECKPOINT" + (" side" if world.attached else ""))
    world.count_moved(before)
