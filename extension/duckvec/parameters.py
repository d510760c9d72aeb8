"""Parameters of index types: one declaration checks, documents and prints."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NoReturn, Protocol

from duckvec.errors import ParameterError, did_you_mean, shorten

Phase = Literal["build", "search"]
Bound = Callable[[int, Mapping[str, int]], int]
"""A bound of a search parameter: from k and the index's build parameters."""
MEASURED = "measured at the build"
"""The default of a search parameter that decides how much a search finds."""
RECALL = "recall"
"""What a search of every type takes instead of those: the recall@10 to reach."""


@dataclass(frozen=True)
class Parameter:
    """One parameter of an index type.

    Attributes:
        name: as users type it, in this case.
        phase: whether it is given to a build or to a search.
        minimum: the smallest value.
        maximum: the largest value; text where it depends on others ('nlist').
        allowed: the only values, where it is not a range.
        mandatory: whether it must be given.
        default: what holds without it; None for mandatory ones.
        description: what it is, what grows when it grows, a typical range.
        lower: the smallest value, where it depends on k or on build parameters.
        upper: the largest value, where it depends on them.
        exceptions: values that are right though they lie outside the range.
        divides_dimension: whether it must divide the length of the vectors.
    """

    name: str
    phase: Phase
    minimum: int | None
    maximum: int | str | None
    allowed: tuple[int, ...] | None
    mandatory: bool
    default: str | int | None
    description: str
    lower: Bound | None = None
    upper: Bound | None = None
    exceptions: tuple[int, ...] = ()
    divides_dimension: bool = False

    def expectation(self, dimension: int | None = None) -> str:
        """Say in words which values are right."""
        if self.allowed is not None:
            values = ", ".join(map(str, self.values_for(dimension)))
            if not self.divides_dimension:
                return f"one of {values}"
            known = "" if dimension is None else f" {dimension}"
            return f"one of {values}; it must divide the dimension{known}"
        exceptions = "".join(f"{value} or " for value in self.exceptions)
        if self.maximum is None:
            return f"{exceptions}an integer of at least {self.minimum}"
        return f"{exceptions}an integer in [{self.minimum}, {self.maximum}]"

    def values_for(self, dimension: int | None) -> tuple[int, ...]:
        """Return the allowed values that fit the dimension, all if it is unknown."""
        values = self.allowed or ()
        if dimension is None or not self.divides_dimension:
            return values
        return tuple(value for value in values if dimension % value == 0)

    def bounds(
        self, k: int, build_params: Mapping[str, int]
    ) -> tuple[int | None, int | None]:
        """Return the smallest and the largest value for this k and this index."""
        upper = self.maximum if isinstance(self.maximum, int) else None
        return (
            self.lower(k, build_params) if self.lower else self.minimum,
            self.upper(k, build_params) if self.upper else upper,
        )


@dataclass(frozen=True)
class SearchSettings:
    """What the caller of a search gave: parameters of the type, or a recall target."""

    params: Mapping[str, int]
    recall: float | None = None


class Declared(Protocol):
    """Anything with a name that declares parameters: an index type."""

    name: ClassVar[str]
    parameters: ClassVar[tuple[Parameter, ...]]


def parse_params(text: str | None) -> dict[str, object]:
    """Return the params of a JSON object, or of the spelling <"nlist":16384>.

    None, '' and JSON's null are no params. A JSON string that holds such a text is
    read too: to_json makes that of a VARCHAR.
    """
    if text is None or not text.strip():
        return {}
    value = _read_json(text)
    if isinstance(value, str):
        inner = value
        if not inner.strip():
            return {}
        value = _read_json(inner)
        text = inner
    if value is None:
        return {}
    if not isinstance(value, dict):
        _refuse(text, "no JSON object")
    return value


def check_build_params(
    index_type: Declared, params: Mapping[str, object], dimension: int | None
) -> dict[str, int]:
    """Return the build parameters as integers, or raise ParameterError.

    All are mandatory; the dimension is None where it is not known yet.
    """
    declared = _of_phase(index_type, "build")
    for name in params:
        if name not in declared:
            _refuse_name(index_type, name, "build")
    checked = {}
    for name, parameter in declared.items():
        if name not in params:
            if parameter.mandatory:
                raise ParameterError(
                    f'{index_type.name} needs "{name}": '
                    f"{parameter.expectation(dimension)}"
                )
            continue
        value = _integer(index_type, parameter, params[name])
        minimum, maximum = parameter.bounds(0, {})
        _check_range(index_type, parameter, value, minimum, maximum)
        _check_dimension(index_type, parameter, value, dimension)
        checked[name] = value
    return checked


def check_search_params(
    index_type: Declared,
    params: Mapping[str, object],
    k: int,
    build_params: Mapping[str, int],
) -> SearchSettings:
    """Return the given search parameters, or raise ParameterError.

    All are optional; those that are not given are left out. build_params are those
    of the index: some bounds depend on them, and on k. Whether a recall was measured
    is not known here.
    """
    declared = _of_phase(index_type, "search")
    checked = {}
    for name, given in params.items():
        if name == RECALL:
            continue
        if name not in declared:
            _refuse_name(index_type, name, "search")
        parameter = declared[name]
        value = _integer(index_type, parameter, given)
        minimum, maximum = parameter.bounds(k, build_params)
        _check_range(index_type, parameter, value, minimum, maximum)
        checked[name] = value
    if RECALL not in params:
        return SearchSettings(checked)
    recall = _recall(index_type, params[RECALL])
    for name in measured_names(index_type):
        if name in checked:
            raise ParameterError(f"give recall or {name}, not both")
    return SearchSettings(checked, recall)


def measured_names(index_type: Declared) -> tuple[str, ...]:
    """Return the search parameters that a recall target chooses."""
    declared = _of_phase(index_type, "search").values()
    return tuple(p.name for p in declared if p.default == MEASURED)


def _of_phase(index_type: Declared, phase: Phase) -> dict[str, Parameter]:
    return {p.name: p for p in index_type.parameters if p.phase == phase}


def _refuse_name(index_type: Declared, name: str, phase: Phase) -> NoReturn:
    shown = f'"{shorten(name)}"'
    names = tuple(_of_phase(index_type, phase))
    other: Phase = "search" if phase == "build" else "build"
    if name in _of_phase(index_type, other) or name == RECALL:
        way_out = f"; it takes {_listed(names)}" if names else ""
        raise ParameterError(
            f"{shown} is a {other} parameter of {index_type.name}, "
            f"not one of a {phase}{way_out}"
        )
    if not names:
        whole = "parameters" if phase == "build" else "search parameters"
        raise ParameterError(f"{index_type.name} takes no {whole}, not {shown}")
    kind = "parameter" if phase == "build" else "search parameter"
    known = names if phase == "build" else (*names, RECALL)
    way_out = did_you_mean(name, known) or f"; it takes {_listed(names)}"
    raise ParameterError(f"{shown} is no {kind} of {index_type.name}{way_out}")


def _integer(index_type: Declared, parameter: Parameter, value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise ParameterError(
        f"{parameter.name} = {shorten(_as_json(value))} is no integer for "
        f"{index_type.name}; give {parameter.expectation()}"
    )


def _recall(index_type: Declared, value: object) -> float:
    shown = f"{RECALL} = {shorten(_as_json(value))}"
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise ParameterError(
            f"{shown} is no number for {index_type.name}; give one in (0, 1]"
        )
    if not 0 < value <= 1:
        raise ParameterError(f"{shown} is outside (0, 1] for {index_type.name}")
    return float(value)


def _check_range(
    index_type: Declared,
    parameter: Parameter,
    value: int,
    minimum: int | None,
    maximum: int | None,
) -> None:
    if value in parameter.exceptions:
        return
    shown = f"{parameter.name} = {shorten(_as_json(value))}"
    if parameter.allowed is not None:
        if value not in parameter.allowed:
            raise ParameterError(
                f"{shown} is not {parameter.expectation()} for {index_type.name}"
            )
        return
    too_small = minimum is not None and value < minimum
    too_large = maximum is not None and value > maximum
    if not (too_small or too_large):
        return
    exceptions = "".join(f" and not {other}" for other in parameter.exceptions)
    if maximum is None:
        raise ParameterError(
            f"{shown} is less than {minimum}{exceptions} for {index_type.name}"
        )
    raise ParameterError(
        f"{shown} is outside [{minimum}, {maximum}]{exceptions} for {index_type.name}"
    )


def _check_dimension(
    index_type: Declared, parameter: Parameter, value: int, dimension: int | None
) -> None:
    if not parameter.divides_dimension or not dimension or dimension % value == 0:
        return
    fitting = ", ".join(map(str, parameter.values_for(dimension)))
    raise ParameterError(
        f"{parameter.name} = {value} does not divide the dimension {dimension} for "
        f"{index_type.name}; take one of {fitting}"
    )


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(f'"{name}"' for name in names)


def _as_json(value: object) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, default=str)
    except ValueError:  # an integer of thousands of digits
        return "a number that is too long"


def _read_json(text: str) -> Any:
    stripped = text.strip()
    if stripped.startswith("<") and stripped.endswith(">"):
        stripped = "{" + stripped[1:-1] + "}"

    def pairs(items: list[tuple[str, object]]) -> dict[str, object]:
        read: dict[str, object] = {}
        for key, value in items:
            if key in read:
                raise ParameterError(
                    f'params {_quoted(text)} give "{shorten(key)}" twice; give it once'
                )
            read[key] = value
        return read

    def number(literal: str) -> float:
        value = float(literal)
        if value in (float("inf"), float("-inf")):
            _refuse(text, f"no JSON ({shorten(literal)} is too large a number)")
        return value

    def constant(literal: str) -> NoReturn:
        _refuse(text, f"no JSON ({literal} is no number of JSON's)")

    try:
        return json.loads(
            stripped,
            object_pairs_hook=pairs,
            parse_float=number,
            parse_constant=constant,
        )
    except ParameterError:
        raise
    except RecursionError:
        _refuse(text, "nested too deep")
    except ValueError:
        _refuse(text, "not JSON")


def _refuse(text: str, verdict: str) -> NoReturn:
    raise ParameterError(
        f'params {_quoted(text)} is {verdict}; write it like {{"nlist": 1024}}'
    ) from None


def _quoted(text: str) -> str:
    return f"'{shorten(text)}'"
