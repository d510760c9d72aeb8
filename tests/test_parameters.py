"""Parameters: how params are read, what is checked, and what the errors say."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from duckvec.errors import ParameterError, UnknownMetricError, VectorIndexError
from duckvec.index_types import INDEX_TYPES, get_index_type
from duckvec.metrics import (
    METRICS,
    normalize_rows,
    normalize_rows_inplace,
    parse_metric,
)
from duckvec.parameters import (
    SearchSettings,
    check_build_params,
    check_search_params,
    parse_params,
)

GIVEN: dict[str, dict[str, int]] = {
    "FLAT": {},
    "IVF_FLAT": {"nlist": 16384},
    "IVF_SQ8": {"nlist": 16384},
    "IVF_SQ8H": {"nlist": 16384},
    "IVF_PQ": {"nlist": 16384, "m": 16},
    "NSG": {
        "search_length": 45,
        "out_degree": 50,
        "candidate_pool_size": 300,
        "knng": 100,
    },
    "HNSW": {"M": 16, "efConstruction": 500},
    "ANNOY": {"n_trees": 8},
}
# name, parameter, smallest, largest
RANGES = [
    ("IVF_FLAT", "nlist", 1, 999_999),
    ("IVF_SQ8", "nlist", 1, 999_999),
    ("IVF_SQ8H", "nlist", 1, 999_999),
    ("IVF_PQ", "nlist", 1, 999_999),
    ("NSG", "search_length", 10, 300),
    ("NSG", "out_degree", 5, 300),
    ("NSG", "candidate_pool_size", 50, 1000),
    ("NSG", "knng", 5, 300),
    ("HNSW", "M", 5, 48),
    ("HNSW", "efConstruction", 100, 500),
    ("ANNOY", "n_trees", 1, 1024),
]


def build_error(
    name: str, params: Mapping[str, object], dimension: int | None = 96
) -> str:
    with pytest.raises(ParameterError) as caught:
        check_build_params(get_index_type(name), params, dimension)
    return sentence(caught.value)


def search_error(
    name: str, params: Mapping[str, object], k: int = 10, nlist: int = 64
) -> str:
    with pytest.raises(ParameterError) as caught:
        check_search_params(get_index_type(name), params, k, {"nlist": nlist})
    return sentence(caught.value)


def parse_error(text: str) -> str:
    with pytest.raises(ParameterError) as caught:
        parse_params(text)
    return sentence(caught.value)


def sentence(error: VectorIndexError) -> str:
    text = str(error)
    assert not text.endswith(".")
    assert "\n" not in text
    assert len(text) < 300
    return text


@pytest.mark.parametrize(
    ("text", "params"),
    [
        (None, {}),
        ("", {}),
        ("  ", {}),
        ("null", {}),
        ("{}", {}),
        ("<>", {}),
        ('{"nlist": 16384}', {"nlist": 16384}),
        ('<"nlist":16384>', {"nlist": 16384}),
        (' <"nlist":16384, "m": 8> ', {"nlist": 16384, "m": 8}),
        ('"{\\"nlist\\": 16384}"', {"nlist": 16384}),
        ('"<\\"nlist\\":16384>"', {"nlist": 16384}),
        ('""', {}),
        ('{"search_k": -1}', {"search_k": -1}),
        ('{"nlist": 8.0}', {"nlist": 8.0}),
    ],
)
def test_params_are_read_as_json_or_between_angle_brackets(
    text: str | None, params: dict[str, object]
) -> None:
    assert parse_params(text) == params


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("abc", "params 'abc' is not JSON; write it like {\"nlist\": 1024}"),
        # to_json of the text abc, as it comes from SQL: what the user typed is shown.
        ('"abc"', "params 'abc' is not JSON; write it like {\"nlist\": 1024}"),
        ("[1]", "params '[1]' is no JSON object; write it like {\"nlist\": 1024}"),
        ("7", "params '7' is no JSON object; write it like {\"nlist\": 1024}"),
        ("true", "params 'true' is no JSON object; write it like {\"nlist\": 1024}"),
        (
            '"\\"{}\\""',
            'params \'"{}"\' is no JSON object; write it like {"nlist": 1024}',
        ),
        (
            '{"nlist": 1, "nlist": 2}',
            'params \'{"nlist": 1, "nlist": 2}\' give "nlist" twice; give it once',
        ),
        (
            '{"nlist": NaN}',
            "params '{\"nlist\": NaN}' is no JSON (NaN is no number of JSON's); "
            'write it like {"nlist": 1024}',
        ),
        (
            '{"nlist": -Infinity}',
            "params '{\"nlist\": -Infinity}' is no JSON (-Infinity is no number of "
            'JSON\'s); write it like {"nlist": 1024}',
        ),
        (
            '{"nlist": 1e400}',
            "params '{\"nlist\": 1e400}' is no JSON (1e400 is too large a number); "
            'write it like {"nlist": 1024}',
        ),
    ],
)
def test_what_is_no_json_object_is_refused(text: str, message: str) -> None:
    assert parse_error(text) == message


def test_absurd_params_are_refused_in_one_short_sentence() -> None:
    assert "is nested too deep" in parse_error('{"nlist": ' + "[" * 100_000)
    assert "is not JSON" in parse_error('{"nlist": ' + "9" * 10_000 + "}")
    assert "…" in parse_error("x" * 1000)
    twice = ", ".join(f'"k{number % 20000}": 1' for number in range(20_001))
    assert 'give "k0" twice' in parse_error("{" + twice + "}")


@pytest.mark.parametrize("name", list(GIVEN))
def test_the_documented_examples_are_right(name: str) -> None:
    assert check_build_params(get_index_type(name), GIVEN[name], 96) == GIVEN[name]


@pytest.mark.parametrize("name", list(GIVEN))
def test_every_build_parameter_is_mandatory(name: str) -> None:
    for left_out in GIVEN[name]:
        rest = {key: value for key, value in GIVEN[name].items() if key != left_out}
        assert build_error(name, rest).startswith(f'{name} needs "{left_out}": ')


@pytest.mark.parametrize(("name", "parameter", "smallest", "largest"), RANGES)
def test_build_parameters_have_the_ranges_of_the_table(
    name: str, parameter: str, smallest: int, largest: int
) -> None:
    kind = get_index_type(name)
    for value in (smallest, largest):
        params = {**GIVEN[name], parameter: value}
        assert check_build_params(kind, params, 96) == params
    for value in (smallest - 1, largest + 1):
        assert build_error(name, {**GIVEN[name], parameter: value}) == (
            f"{parameter} = {value} is outside [{smallest}, {largest}] for {name}"
        )


def test_errors_of_builds_name_the_value_and_the_way_out() -> None:
    assert build_error("IVF_FLAT", {}) == (
        'IVF_FLAT needs "nlist": an integer in [1, 999999]'
    )
    assert build_error("IVF_FLAT", {"nlsit": 8}) == (
        '"nlsit" is no parameter of IVF_FLAT; did you mean "nlist"?'
    )
    assert build_error("HNSW", {"m": 8, "efConstruction": 200}) == (
        '"m" is no parameter of HNSW; did you mean "M"?'
    )
    assert build_error("IVF_FLAT", {"colour": 8}) == (
        '"colour" is no parameter of IVF_FLAT; it takes "nlist"'
    )
    assert build_error("FLAT", {"nlist": 8}) == 'FLAT takes no parameters, not "nlist"'
    assert build_error("IVF_FLAT", {"nlist": 8, "nprobe": 4}) == (
        '"nprobe" is a search parameter of IVF_FLAT, not one of a build; '
        'it takes "nlist"'
    )


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("8", '"8"'),
        (True, "true"),
        (8.0, "8.0"),
        (8.5, "8.5"),
        (None, "null"),
        ([8], "[8]"),
        ({"a": 1}, '{"a": 1}'),
    ],
)
def test_only_integers_are_integers(value: object, shown: str) -> None:
    assert build_error("IVF_FLAT", {"nlist": value}) == (
        f"nlist = {shown} is no integer for IVF_FLAT; give an integer in [1, 999999]"
    )


def test_m_divides_the_dimension() -> None:
    assert build_error("IVF_PQ", {"nlist": 8}, 100) == (
        'IVF_PQ needs "m": one of 20, 4, 2, 1; it must divide the dimension 100'
    )
    assert build_error("IVF_PQ", {"nlist": 8}, None).startswith(
        'IVF_PQ needs "m": one of 96, 64, 56, 48, 40, '
    )
    assert build_error("IVF_PQ", {"nlist": 8, "m": 96}, 100) == (
        "m = 96 does not divide the dimension 100 for IVF_PQ; take one of 20, 4, 2, 1"
    )
    assert build_error("IVF_PQ", {"nlist": 8, "m": 7}, 100).startswith(
        "m = 7 is not one of 96, 64, "
    )
    kind = get_index_type("IVF_PQ")
    for m in (96, 64, 56, 48, 40, 32, 28, 24, 20, 16, 12, 8, 4, 3, 2, 1):
        params = {"nlist": 8, "m": m}
        assert check_build_params(kind, params, m * 2) == params
        assert check_build_params(kind, params, None) == params


@pytest.mark.parametrize(
    ("name", "params", "k"),
    [
        ("FLAT", {}, 10),
        ("IVF_FLAT", {}, 10),
        ("IVF_FLAT", {"nprobe": 64}, 10),
        ("IVF_SQ8H", {"nprobe": 1, "gpu_search_threshold": 0}, 10),
        ("HNSW", {"ef": 10}, 10),
        ("HNSW", {"ef": 4096}, 10),
        ("HNSW", {"ef": 16384}, 16384),
        ("ANNOY", {"search_k": -1}, 10),
        ("ANNOY", {"search_k": 10}, 10),
        ("NSG", {"search_length": 300}, 10),
    ],
)
def test_search_parameters_are_optional(
    name: str, params: dict[str, int], k: int
) -> None:
    checked = check_search_params(get_index_type(name), params, k, {"nlist": 64})
    assert checked == SearchSettings(params)


@pytest.mark.parametrize("name", sorted(INDEX_TYPES))
@pytest.mark.parametrize("recall", [1, 1.0, 0.5, 1e-9])
def test_every_type_takes_a_recall_instead(name: str, recall: float) -> None:
    checked = check_search_params(get_index_type(name), {"recall": recall}, 10, {})
    assert checked == SearchSettings({}, recall)


def test_a_recall_goes_with_parameters_that_do_not_decide_it() -> None:
    params = {"gpu_search_threshold": 5, "recall": 0.9}
    checked = check_search_params(get_index_type("IVF_SQ8H"), params, 10, {"nlist": 64})
    assert checked == SearchSettings({"gpu_search_threshold": 5}, 0.9)


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("IVF_FLAT", {"nprobe": 65}, "nprobe = 65 is outside [1, 64] for IVF_FLAT"),
        ("IVF_FLAT", {"nprobe": 0}, "nprobe = 0 is outside [1, 64] for IVF_FLAT"),
        ("HNSW", {"ef": 9}, "ef = 9 is outside [10, 4096] for HNSW"),
        ("HNSW", {"ef": 4097}, "ef = 4097 is outside [10, 4096] for HNSW"),
        (
            "ANNOY",
            {"search_k": 9},
            "search_k = 9 is less than 10 and not -1 for ANNOY",
        ),
        (
            "ANNOY",
            {"search_k": -2},
            "search_k = -2 is less than 10 and not -1 for ANNOY",
        ),
        (
            "NSG",
            {"search_length": 9},
            "search_length = 9 is outside [10, 300] for NSG",
        ),
        (
            "IVF_SQ8H",
            {"gpu_search_threshold": -1},
            "gpu_search_threshold = -1 is less than 0 for IVF_SQ8H",
        ),
        (
            "IVF_FLAT",
            {"nlist": 8},
            '"nlist" is a build parameter of IVF_FLAT, not one of a search; '
            'it takes "nprobe"',
        ),
        (
            "IVF_FLAT",
            {"Nprobe": 8},
            '"Nprobe" is no search parameter of IVF_FLAT; did you mean "nprobe"?',
        ),
        (
            "FLAT",
            {"nprobe": 8},
            'FLAT takes no search parameters, not "nprobe"',
        ),
        ("HNSW", {"recall": 0}, "recall = 0 is outside (0, 1] for HNSW"),
        ("FLAT", {"recall": 1.5}, "recall = 1.5 is outside (0, 1] for FLAT"),
        (
            "NSG",
            {"recall": "0.9"},
            'recall = "0.9" is no number for NSG; give one in (0, 1]',
        ),
        (
            "ANNOY",
            {"recall": True},
            "recall = true is no number for ANNOY; give one in (0, 1]",
        ),
        (
            "HNSW",
            {"recall": None},
            "recall = null is no number for HNSW; give one in (0, 1]",
        ),
        (
            "HNSW",
            {"Recall": 0.9},
            '"Recall" is no search parameter of HNSW; did you mean "recall"?',
        ),
        ("HNSW", {"recall": 0.9, "ef": 64}, "give recall or ef, not both"),
        ("IVF_PQ", {"nprobe": 8, "recall": 1}, "give recall or nprobe, not both"),
        (
            "HNSW",
            {"ef": "64"},
            'ef = "64" is no integer for HNSW; give an integer in [1, max(k, 4096)]',
        ),
    ],
)
def test_errors_of_searches_name_the_value_and_the_way_out(
    name: str, params: dict[str, object], message: str
) -> None:
    assert search_error(name, params) == message


def test_every_declaration_can_be_printed() -> None:
    for kind in INDEX_TYPES.values():
        for parameter in kind.parameters:
            assert parameter.phase in ("build", "search")
            assert parameter.mandatory == (parameter.phase == "build")
            assert (parameter.default is None) == parameter.mandatory
            assert parameter.description.endswith(".")
            assert parameter.expectation().startswith(("an integer", "one of", "-1 or"))


def test_metrics_are_found_in_any_case() -> None:
    assert [parse_metric(name).name for name in ("l2", " Ip ", "COSINE")] == [*METRICS]
    with pytest.raises(UnknownMetricError) as caught:
        parse_metric("cosin")
    assert sentence(caught.value) == (
        'no metric "cosin"; did you mean "COSINE"? (known: L2, IP, COSINE)'
    )


def test_rows_are_normalised_without_a_second_copy() -> None:
    vectors = np.random.default_rng(0).standard_normal((20_000, 3)).astype(np.float32)
    vectors[5] = 0
    vectors[6] = 1e30
    vectors[7] = 1e-30
    normalized = normalize_rows(vectors)
    assert vectors[6, 0] == np.float32(1e30)
    lengths = np.linalg.norm(normalized, axis=1)
    assert np.allclose(np.delete(lengths, 5), 1)
    assert not normalized[5].any()
    normalize_rows_inplace(vectors)
    assert np.array_equal(vectors, normalized)
