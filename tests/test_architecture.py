"""The walls of the house, read from its source: who may import whom, and what is defined where.

Nothing of the package is executed here but the last test, which compares signatures with Optuna's.
A new file fails the first test until it has its place in `FLOORS`; a new library until it has its
home in `LIBRARIES`.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import sys
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import casartifacts

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = Path(casartifacts.__file__).parent

# From the top; a module imports only from rows below its own. "" is the package itself.
FLOORS = [
    {""},
    {"__main__"},
    {"cli"},
    {"doctor", "studies"},
    {"doctor.machine", "doctor.place"},
    {"doctor.disks"},
    {"doctor.findings"},
    {"opening"},
    {"store"},
    {"publishing"},
    {"sharing"},
    {"backoff", "cache", "planning", "reading"},
    {"scanning"},
    # The rooms of the cache.
    {"cache.upkeep"},
    {"cache.room"},
    {"cache.database", "cache.slots", "cache.waiting"},
    {"cache.listing", "cache.rights"},
    {"cache.counters", "cache.table"},
    {"cache.folder"},
    {"cache.mounts", "cache.trust"},
    {"cache.failures"},
    {
        "backends.boto3",
        "backends.filesystem",
        "backends.foreign",
        "backends.gcs",
        "backends.memory",
    },
    {"backends.streaming"},
    {"bodies", "files", "knowledge", "latest", "matching", "parallel", "progress"},
    {"trail"},
    {"manifest", "names", "records"},
    {"backends", "buffers", "chunking", "cutpoints", "digest", "locks"},
    # The conformance kit stands beside the house: it knows the contracts and nothing else.
    {"testing"},
    {"testing.kit"},
    {"testing.abilities", "testing.stores"},
    {"testing.expect", "testing.places"},
    {"testing.bodies"},
    {"errors", "protocols"},
]

FLOOR_OF = {module: floor for floor, row in enumerate(FLOORS) for module in row}

# The only modules that know each library.
LIBRARIES = {
    # Exists for type checkers only.
    "_typeshed": {"backends.foreign", "cache.trust", "testing.bodies"},
    "blake3": {"digest"},
    "boto3": {"backends.boto3"},
    "botocore": {"backends.boto3"},
    "click": {"cli"},
    "diskcache": {"cache.table"},
    "google": {"backends.gcs"},
    "importlib": {"", "doctor.machine"},  # an import that cannot be read here; versions
    "optuna": {"", "errors", "studies"},
    "pyfastcdc": {"chunking"},
    "sqlalchemy": {"studies"},
    "sqlite3": {"cache.database", "cache.table"},
    "tqdm": {"progress"},
    "xxhash": {"digest"},
}

# Seconds to import, or perhaps not installed: loaded by the call that needs them.
LOADED_LATE = {"boto3", "botocore", "google", "optuna", "pyfastcdc", "sqlalchemy", "tqdm"}

# Bytes in, values out: a clock, a disk, a network, a log or chance is not for them. What they may
# import of the standard library is all that they need today.
PURE = {
    "buffers",
    "chunking",
    "cutpoints",
    "digest",
    "manifest",
    "matching",
    "names",
    "records",
    "trail",
}
HARMLESS = {
    "array",
    "bisect",
    "collections",
    "dataclasses",
    "functools",
    "itertools",
    "json",
    "re",
    "sys",
    "types",
    "typing",
}
EXCUSED = {
    "chunking": {"logging", "warnings"},  # says once that the compiled chunker is missing
    "cutpoints": {"struct"},
    "names": {"secrets"},  # a fresh id needs 128 random bits
}

# So that the rule about wrappers cannot go blind.
KNOWN_STORES = {"ContentStore"}
KNOWN_BACKENDS = {
    "Backoff",
    "Boto3ArtifactStore",
    "FileSystemArtifactStore",
    "ForeignBackend",
    "GCSArtifactStore",
    "MemoryArtifactStore",
    "NastyPlace",
}

SEED_NAMES = [
    "ArtifactMeta",
    "Backoff",
    "Boto3ArtifactStore",
    "FileSystemArtifactStore",
    "GCSArtifactStore",
    "download_artifact",
    "get_all_artifact_meta",
    "upload_artifact",
]


@dataclass(frozen=True)
class Import:
    """One imported module, where, and whether it is loaded together with the file."""

    module: str
    line: int
    at_once: bool

    @property
    def library(self) -> str:
        return self.module.partition(".")[0]


@cache
def sources() -> dict[str, ast.Module]:
    """Parse every module of the package, by its name below the package."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        module = ".".join(part for part in parts if part != "__init__")
        found[module] = ast.parse(path.read_text(encoding="utf-8"), str(path))
    return found


@cache
def imports(module: str) -> list[Import]:
    """List what a module imports anywhere: at once, inside functions, for type checkers."""
    return list(_imports(sources()[module], at_once=True))


def _imports(node: ast.AST, *, at_once: bool) -> Iterator[Import]:
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield Import(alias.name, node.lineno, at_once)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"line {node.lineno}: imports are absolute in this house"
        assert node.module is not None
        for alias in node.names:
            # `from casartifacts import errors` imports a module, not a name of the package.
            inner = f"{node.module}.{alias.name}"
            is_module = inner.removeprefix("casartifacts.") in sources()
            yield Import(inner if is_module else node.module, node.lineno, at_once)
    for child in ast.iter_child_nodes(node):
        late = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        typing = isinstance(node, ast.If) and child in node.body and _is_type_checking(node.test)
        yield from _imports(child, at_once=at_once and not late and not typing)


def _is_type_checking(test: ast.expr) -> bool:
    return isinstance(test, ast.Name) and test.id == "TYPE_CHECKING"


def test_every_module_has_its_place_on_a_floor() -> None:
    assert sources().keys() == FLOOR_OF.keys(), "put new modules into FLOORS, take old ones out"
    assert sum(map(len, FLOORS)) == len(FLOOR_OF), "a module stands on two floors"


@pytest.mark.parametrize("module", sorted(FLOOR_OF))
def test_a_module_imports_only_from_lower_floors(module: str) -> None:
    """No import leads up or sideways, late and typed ones included: so there is no cycle either."""
    for found in imports(module):
        if found.library != "casartifacts":
            continue
        imported = found.module.partition(".")[2]
        assert FLOOR_OF[imported] > FLOOR_OF[module], (
            f"casartifacts.{module}, line {found.line}: {found.module} is not below it"
        )
        if imported.startswith("testing"):
            assert module.startswith("testing"), "the house does not stand on its tests"


@pytest.mark.parametrize("module", sorted(FLOOR_OF))
def test_a_library_is_known_only_where_it_is_at_home(module: str) -> None:
    for found in imports(module):
        is_ordinary = found.library in {"casartifacts", *sys.stdlib_module_names}
        if is_ordinary and found.library not in LIBRARIES:
            continue
        assert module in LIBRARIES.get(found.library, set()), (
            f"casartifacts.{module}, line {found.line}: {found.library} is not at home here"
        )
        assert not (found.at_once and found.library in LOADED_LATE), (
            f"casartifacts.{module}, line {found.line}: {found.library} is loaded with the module; "
            "import it in the function that needs it"
        )
    for node in ast.walk(sources()[module]):
        # What is handed to importlib.import_module.
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            library = node.value.partition(".")[0]
            is_path = all(part.isidentifier() for part in node.value.split("."))
            assert not is_path or library not in LIBRARIES or module in LIBRARIES[library], (
                f"casartifacts.{module}, line {node.lineno}: names {node.value}"
            )


def test_every_room_is_on_the_map_of_the_house() -> None:
    words = set(re.findall(r"[a-z0-9_]+", casartifacts.__doc__ or ""))
    missing = {module.partition(".")[0] for module in sources()} - words
    assert not missing - {"", "__main__"}


def test_every_library_that_is_asked_for_is_used() -> None:
    with (PACKAGE.parent / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    asked = [*project["dependencies"], *project["optional-dependencies"]["s3"]]
    wanted = {re.split("[<>=~]", each)[0] for each in asked}
    assert wanted <= LIBRARIES.keys()


@pytest.mark.parametrize("module", sorted(PURE))
def test_a_pure_room_knows_no_clock_no_disk_no_log_and_no_chance(module: str) -> None:
    used = {found.library for found in imports(module)} & sys.stdlib_module_names
    assert used <= {"__future__", *HARMLESS, *EXCUSED.get(module, ())}
    calls = {
        node.func.id
        for node in ast.walk(sources()[module])
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert not calls & {"open", "print", "input", "exec", "eval", "__import__"}


def test_backends_know_nothing_of_digests_nor_of_what_is_recorded() -> None:
    for module in sources():
        if module.startswith("backends."):
            used = {found.module.removeprefix("casartifacts.") for found in imports(module)}
            assert not used & {"digest", "manifest", "records", "chunking", "blake3"}, module


# Stores and wrappers


def _classes() -> Iterator[ast.ClassDef]:
    for tree in sources().values():
        yield from (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef))


def _protocol(name: str) -> dict[str, list[str] | None]:
    """Return the members of a protocol: the parameters of methods, None for attributes."""
    for node in sources()["protocols"].body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return _members(node)
    raise LookupError(name)


def _members(node: ast.ClassDef) -> dict[str, list[str] | None]:
    """Return what a class defines in its own body."""
    found: dict[str, list[str] | None] = {}
    for item in node.body:
        match item:
            case ast.FunctionDef(name=name, args=arguments, decorator_list=[]):
                found[name] = [argument.arg for argument in arguments.args[1:]]
            case ast.FunctionDef(name=name) | ast.AnnAssign(target=ast.Name(id=name)):
                found[name] = None
            case ast.Assign(targets=targets):
                found |= {target.id: None for target in targets if isinstance(target, ast.Name)}
    for inner in ast.walk(node):
        match inner:
            case ast.Attribute(value=ast.Name(id="self"), attr=name, ctx=ast.Store()):
                found.setdefault(name, None)
    return found


STORE = _protocol("ArtifactStore")
BACKEND = {**STORE, **_protocol("Backend")}
# `stat` and `remote` have other meanings elsewhere too.
ABILITIES = BACKEND.keys() - STORE.keys() - {"stat", "durable", "remote"}


def _stores() -> Iterator[tuple[ast.ClassDef, dict[str, list[str] | None]]]:
    """Yield every class that is a store in part, and the protocol that it must be as a whole."""
    of_a_store: dict[str, dict[str, list[str] | None]] = {}
    for node in _classes():
        bases = {base.id for base in node.bases if isinstance(base, ast.Name)}
        if "Protocol" in bases:
            continue
        members = _members(node).keys()
        if members & ABILITIES:
            of_a_store[node.name] = BACKEND
        elif members & STORE.keys() >= {"open_reader"}:
            of_a_store[node.name] = STORE
        else:
            inherited = [of_a_store[base] for base in bases & of_a_store.keys()]
            if inherited:
                of_a_store[node.name] = max(inherited, key=len)
        if node.name in of_a_store:
            yield node, of_a_store[node.name]


def test_a_wrapper_defines_every_method_of_its_protocol_itself() -> None:
    """What is inherited or forwarded by itself is forgotten when the protocol gains a method."""
    stores: set[str] = set()
    backends: set[str] = set()
    for node, protocol in _stores():
        (backends if protocol is BACKEND else stores).add(node.name)
        members = _members(node)
        missing = protocol.keys() - members.keys()
        assert not missing, f"{node.name} does not define {sorted(missing)} itself"
        assert not members.keys() & {"__getattr__", "__getattribute__"}, node.name
        for name, parameters in protocol.items():
            # People call `write(artifact_id=..., content_body=...)`.
            assert members[name] == parameters or parameters is None, f"{node.name}.{name}"
    assert stores >= KNOWN_STORES
    assert backends >= KNOWN_BACKENDS


# Public names


def test_every_public_name_has_a_home_and_is_shown_to_type_checkers() -> None:
    tree = sources()[""]
    shown = {
        alias.name
        for node in tree.body
        if isinstance(node, ast.If) and _is_type_checking(node.test)
        for statement in node.body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }
    homes: dict[str, str] = casartifacts._HOMES
    assert shown == homes.keys() == set(casartifacts.__all__)
    assert {home.removeprefix("casartifacts.") for home in homes.values()} <= {
        "optuna.artifacts",
        *sources(),
    }


@pytest.mark.parametrize("name", SEED_NAMES)
def test_the_names_of_optuna_keep_its_signatures(name: str) -> None:
    """Ours may add keyword-only options with defaults, nothing else."""
    ours: Any = getattr(casartifacts, name)
    theirs: Any = getattr(importlib.import_module("optuna.artifacts"), name)
    _check_signature(ours, theirs)
    assert inspect.isclass(ours) == inspect.isclass(theirs)
    if inspect.isclass(theirs):
        methods = [method for method in STORE if hasattr(theirs, method)]
        assert methods or ours is theirs
        for method in methods:
            _check_signature(getattr(ours, method), getattr(theirs, method))


def _check_signature(ours: Any, theirs: Any) -> None:
    own, seed = (inspect.signature(function).parameters for function in (ours, theirs))
    described = [(name, p.kind, p.default) for name, p in own.items() if name in seed]
    assert described == [(name, p.kind, p.default) for name, p in seed.items()], ours
    for name in own.keys() - seed.keys():
        added = own[name]
        assert added.kind is inspect.Parameter.KEYWORD_ONLY, f"{ours}: {name}"
        assert added.default is not inspect.Parameter.empty, f"{ours}: {name}"
