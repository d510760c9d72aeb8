"""Imports go one way: a module may use only what stands before it in LAYERS."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ENGINE = ROOT / "extension" / "duckvec"
UDFS = ROOT / "udfs"

# From the bottom up. Names are modules and packages of duckvec, or modules of a package
# that has layers of its own; `__init__` is what `import duckvec` runs.
LAYERS = [
    "errors",
    "metrics",
    "parameters",
    "sql_text",
    "parsed",
    "platforms",
    "paths",
    "backoff",
    "leftovers",
    "artifacts",
    "hashing",
    "index_types",
    "ladders",
    "filters",
    "keeper",
    "locks",
    "keyboard",
    "calls",
    "sizes",
    "memory",
    "segments",
    "samples",
    "climbing",
    "calibration",
    "tables",
    "catalog",
    "migrations",
    "catalog_check",
    "tracking",
    "tickets",
    "traces",
    "selections",
    "policy",
    "priority",
    "reader",
    "states",
    "lookups",
    "selectivity",
    "plan_text",
    "instance",
    "progress",
    "bars",
    "forks",
    "sessions",
    "stored_plans",
    "chains",
    "guard_watch",
    "guards",
    "search",
    "writer",
    "footprints",
    "steps",
    "held_tails",
    "proving",
    "rewriting",
    "builder",
    "moves",
    "upkeep",
    "finding",
    "background",
    "manage",
    "estimating",
    "inspection",
    "requests",
    "planner",
    "explaining",
    "measuring",
    "drawing",
    "recall",
    "tuning",
    "projecting",
    "udfs",
    "install",
    "queries",
    "indexes",
    "dbt",
    "__init__",
    "plots",
    "milvus.types",
    "milvus.checks",
    "milvus.collection",
    "milvus.results",
    "milvus.futures",
    "milvus.ids",
    "milvus.staging",
    "milvus.transactions",
    "milvus.searching",
    "milvus.store",
    "milvus.client",
    "milvus",
    "shell.output",
    "shell.running",
    "shell.checking",
    "shell.prompt",
    "shell.demo",
    "shell.commands",
    "shell",
]

# Inside a package, modules may share these and the private ones, and know nothing
# else of each other.
SHARED = {
    "index_types": "duckvec.index_types.base",
    "udfs": "duckvec.udfs.registry",
}

# What only some installations have is imported where it is used.
OPTIONAL = {"annoy", "click", "hnswlib", "matplotlib", "prompt_toolkit", "rich", "tqdm"}


def _modules() -> dict[str, Path]:
    """Every module of the engine and of udfs/ by its full name."""
    found = {}
    for folder, package in ((ENGINE, "duckvec"), (UDFS, "duckvec.udfs")):
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            name = ".".join((package, *parts)).removesuffix(".__init__")
            found[name] = path
    return found


MODULES = _modules()
everywhere = pytest.mark.parametrize("module", MODULES)


def _layer(module: str) -> str:
    """The name in LAYERS that a module of duckvec belongs to."""
    parts = module.split(".")[1:]
    inner = ".".join(parts[:2])
    return inner if inner in LAYERS else parts[0] if parts else "__init__"


def _height(module: str) -> int:
    """Where in LAYERS a module stands."""
    assert _layer(module) in LAYERS, (
        f"{module} is in no layer: add {_layer(module)!r} to LAYERS in "
        "tests/test_imports.py, after all that it imports"
    )
    return LAYERS.index(_layer(module))


def _imports(tree: ast.AST) -> Iterator[str]:
    """The full name of each module that the code imports, wherever it does."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import: write the full name"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in MODULES else str(node.module)


def _imports_of(module: str) -> list[str]:
    return list(_imports(ast.parse(MODULES[module].read_text(encoding="utf-8"))))


def _may_import(module: str, target: str) -> bool:
    """Whether the one module of duckvec may use the other."""
    if _layer(module) != _layer(target):
        return _height(target) < _height(module)
    package = _layer(module)
    if module == f"duckvec.{package}":
        return True
    shared = target == SHARED.get(package) or target.split(".")[-1].startswith("_")
    return shared and target != module


@everywhere
def test_every_module_has_a_layer(module: str) -> None:
    assert _height(module) >= 0


@everywhere
def test_no_module_imports_a_later_layer(module: str) -> None:
    ours = [name for name in _imports_of(module) if name.split(".")[0] == "duckvec"]
    wrong = [name for name in ours if not _may_import(module, name)]
    assert not wrong, f"{module} imports {', '.join(wrong)}: that is the wrong way"


@everywhere
def test_udfs_and_sql_are_never_imported_from_the_root(module: str) -> None:
    wrong = {"udfs", "sql"} & {name.split(".")[0] for name in _imports_of(module)}
    assert not wrong, f"{module} imports {wrong}: write duckvec.udfs or duckvec.sql"


@pytest.mark.parametrize("module", [m for m in MODULES if _layer(m) == "index_types"])
def test_index_types_know_nothing_of_duckdb(module: str) -> None:
    assert "duckdb" not in {name.split(".")[0] for name in _imports_of(module)}


@pytest.mark.parametrize(  # the shell is imported by its command only
    "module", [m for m in MODULES if not _layer(m).startswith("shell.")]
)
def test_optional_libraries_are_imported_late(module: str) -> None:
    body = ast.parse(MODULES[module].read_text(encoding="utf-8")).body
    early = [stmt for stmt in body if isinstance(stmt, ast.Import | ast.ImportFrom)]
    names = {name.split(".")[0] for stmt in early for name in _imports(stmt)}
    assert not names & OPTIONAL, f"{module} imports {names & OPTIONAL} when it loads"


@pytest.mark.parametrize(
    ("module", "target", "allowed"),
    [
        ("duckvec.planner", "duckvec.catalog", True),
        ("duckvec.catalog", "duckvec.planner", False),
        ("duckvec.errors", "duckvec", False),
        ("duckvec", "duckvec.indexes", True),
        ("duckvec.udfs.search", "duckvec.udfs.registry", True),
        ("duckvec.udfs.search", "duckvec.udfs.manage", False),
        ("duckvec.install", "duckvec.udfs.search", True),
        ("duckvec.index_types", "duckvec.index_types.hnsw", True),
        ("duckvec.index_types.hnsw", "duckvec.index_types.base", True),
        ("duckvec.index_types.hnsw", "duckvec.index_types.ivf", False),
        ("duckvec.index_types.hnsw", "duckvec.index_types", False),
        ("duckvec.index_types.base", "duckvec.index_types", False),
    ],
)
def test_the_rule_itself(module: str, target: str, allowed: bool) -> None:
    assert _may_import(module, target) is allowed
