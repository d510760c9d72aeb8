"""Hostile text in every argument: refused in a sentence, and nothing else happens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.hostility import (
    CHOICES,
    EXPRESSIONS,
    FILTERS,
    FUNCTIONS,
    USUAL,
    Call,
    Drawing,
    HostileError,
    Target,
    check_error,
)

pytestmark = pytest.mark.core

# What hypothesis makes small variants of; the longest ones are drawn below.
SHORT = {
    name: tuple(text for text in texts if len(text) < 200)
    for name, texts in CHOICES.items()
}
TEXT = st.text(max_size=30)


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """A database with canaries, in the folder where relative names lead."""
    folder = tmp_path_factory.mktemp("hostile")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        target = Target(folder)
        yield target
        target.close()


@st.composite
def calls(draw: st.DrawFn) -> Call:
    """Calls of which one argument or more are not what they should be."""
    function = draw(st.sampled_from(sorted(FUNCTIONS)))
    always, perhaps = FUNCTIONS[function]
    names = [*always, *(name for name in perhaps if draw(st.booleans()))]
    hostile = draw(st.sets(st.sampled_from(names), min_size=1, max_size=2))
    arguments = []
    for name in names:
        if name == "params":
            json = st.recursive(
                st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
                lambda inner: (
                    st.lists(inner, max_size=3)
                    | st.dictionaries(
                        TEXT | st.sampled_from(["nlist", "nprobe"]), inner
                    )
                ),
                max_leaves=5,
            )
            value = str(draw(json)).replace("'", '"') if name in hostile else "{}"
        elif name in EXPRESSIONS:
            some = st.sampled_from(EXPRESSIONS[name])
            value = draw(some) if name in hostile else USUAL[name]
        elif name in hostile:
            begin, middle, end = draw(st.tuples(*[TEXT] * 3))
            known = draw(st.sampled_from(SHORT[name]))
            value = draw(st.sampled_from([known, begin + known + end, middle]))
        else:
            value = USUAL[name]
        arguments.append((name, value, name in EXPRESSIONS))
    return Call(function, tuple(arguments))


@settings(
    max_examples=120,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    derandomize=True,
    database=None,
)
@given(call=calls())
def test_hostile_text_made_up_by_hypothesis(target: Target, call: Call) -> None:
    target.call(call)
    if target.counts["hostile inputs"] % 20 == 0:
        target.check([call])


def test_hostile_text_drawn_at_random(target: Target) -> None:
    drawing = Drawing(np.random.default_rng(5))
    some = [drawing.call() for _ in range(300)]
    for call in some:
        target.call(call)
    target.check(some)


@pytest.mark.parametrize("text", FILTERS, ids=range(len(FILTERS)))
def test_a_hostile_filter_chooses_rows_or_is_refused(target: Target, text: str) -> None:
    items = ("collection", "items", False)
    searched = Call("vector_search", (items, ("query", USUAL["query"], True)))
    measured = Call("vector_recall", (items, ("sample", "2", True)))
    for call in (searched, measured):
        call = Call(call.function, (*call.arguments, ("filter", text, False)))
        target.call(call)
        target.check([call])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("nextval('counter') > 0", "calls nextval, which changes something"),
        ("DROP_VECTOR_INDEX('items') IS NULL", "calls drop_vector_index, which"),
        ("random() < 0.5", "calls random, which changes something or answers anew"),
        ("EXISTS (FROM read_text('canary.csv'))", "reads or writes by 'read_text'"),
        ("EXISTS (FROM 'canary.csv')", "reads or writes by 'canary.csv'"),
        ("EXISTS (FROM query('FROM canary'))", "reads or writes by 'query'"),
        ("EXISTS (SHOW TABLES)", "reads or writes by 'SHOW'"),
        ("(" * 900 + "true" + ")" * 900, "filter"),
    ],
)
def test_what_a_filter_may_not_do(target: Target, text: str, expected: str) -> None:
    call = Call(
        "vector_search",
        (
            ("collection", "items", False),
            ("query", USUAL["query"], True),
            ("filter", text, False),
        ),
    )
    error = target.call(call) or "filter"
    assert expected in error


def test_what_a_filter_may_ask(target: Target) -> None:
    found = target.con.execute(
        "SELECT id FROM vector_search('items', $q, 5, filter := $f)",
        {
            "q": [1, 2, 3, 4, 5, 6, 7, 8],
            "f": "id IN (SELECT 7 * r FROM range(20) AS t(r)) AND price + 1 > 7 "
            "AND EXISTS (FROM canary)",
        },
    ).fetchall()
    assert len(found) == 5
    assert all(number % 7 == 0 for (number,) in found)


@pytest.mark.parametrize(
    "params",
    [
        '{"\\ud800": 1}',
        '{"nlist": "\\ud800"}',
        '{"\\u0000": 1}',
        '{"nlist": "\\u0000\\u2028"}',
        '{"a\\nb\\rc": 1}',
        '{"nlist": ' + "9" * 5000 + "}",
        '{"nlist": ' + "[" * 100_000 + "}",
        '{"' + "k" * 100_000 + '": 1}',
    ],
    ids=range(8),
)
@pytest.mark.parametrize("function", ["vector_search", "create_vector_index"])
def test_params_that_no_text_of_sql_can_repeat(
    target: Target, function: str, params: str
) -> None:
    second = ("query", USUAL["query"], True)
    if function == "create_vector_index":
        second = ("index_type", "IVF_FLAT", False)
    given = (("collection", "items", False), second, ("params", params, False))
    error = target.call(Call(function, given))
    assert error is not None
    assert len(error) < 800


def test_names_of_paths_make_no_paths(target: Target) -> None:
    con = target.con
    for name in ("../../etc/passwd", "/tmp/x", "..", "a/b", "x" * 300, "nul\\"):
        con.execute(f'CREATE TABLE "{name}" AS FROM items LIMIT 60')
        quoted = f'"{name}"'
        con.execute("CALL create_vector_index($n, 'FLAT')", {"n": quoted})
        con.execute("CALL drop_vector_index($n)", {"n": quoted})
        con.execute(f'DROP TABLE "{name}"')
    target.check([])


def test_the_checks_can_fail(target: Target) -> None:
    call = Call("vector_search", (("collection", "items", False),))
    for text in ("Invalid Input Error: a\nb", "Traceback", "x" * 10 + "INTERNAL Error"):
        with pytest.raises(HostileError):
            check_error(text, call)
    target.con.execute("INSERT INTO canary VALUES (8)")
    with pytest.raises(HostileError, match="canary"):
        target.check([call])
    target.con.execute("DELETE FROM canary WHERE id = 8")
    Path("stolen.csv").touch()
    with pytest.raises(HostileError, match=r"stolen\.csv"):
        target.check([call])
    Path("stolen.csv").unlink()
    target.check([call])
