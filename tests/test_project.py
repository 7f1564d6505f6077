"""Structure of the project: direction of imports, public names, length of files, forbidden calls."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

import rolesafe
import rolesafe.patching

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "rolesafe"
KERNELS = ROOT / "kernels" / "rolesafe_kernels"

LAYERS = (
    {
        "arguments",
        "config",
        "extras",
        "files",
        "presets",
        "roles",
        "stored_record",
        "terminal",
        "typed_json",
        "workers",
    },
    {"attention"},
    {"mechanisms"},
    {"patching"},
    {
        "attacks",
        "depth",
        "tasks",
        "training",
    },
    {"court"},
    {"evaluation"},
    {"report"},
    {"integrations", "retrain"},
    {
        "audit",
        "chat",
        "demo",
        "serve",
        "depth_report",
    },
    {"cli", "__main__"},
)
"""A part may import its own layer and those before it."""

LAZY = {"rolesafe": rolesafe._HOME, "rolesafe.patching": rolesafe.patching._HOME}
"""Modules of the names that packages import on first use."""

LONGEST = dict.fromkeys(("rolesafe", "kernels", "tests", "benchmarks"), 400)
"""Largest number of lines of a file, by folder."""

PUBLIC = [
    "FrozenPrompt",
    "Role",
    "RoleConfig",
    "__version__",
    "encode",
    "freeze",
    "from_pretrained",
    "named_role_parameters",
    "patch",
    "role_attention",
    "save_role_layer",
    "unpatch",
]

FORBIDDEN = (
    r"^\s*(import|from)\s+(pickle|cPickle|dill|cloudpickle|joblib|shelve|marshal)\b",
    r"\bpickle\.loads?\(",
    r"\btorch\.load\(",
    r"trust_remote_code\s*=\s*True",
    r"(?<![\w.])(eval|exec)\(",
)
"""Calls that run code from a file or a repository."""


def module_name(path: Path, base: Path) -> str:
    parts = path.relative_to(base).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def runtime_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Iterate over all nodes outside of ``if TYPE_CHECKING``."""
    yield tree
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        yield from runtime_nodes(node)


def imported_modules(tree: ast.AST, module: str, is_package: bool, *, runtime: bool = False) -> Iterator[str]:
    """Iterate over the dotted names of all imports of `tree`, also inside functions; lazy names are resolved."""
    for node in runtime_nodes(tree) if runtime else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")
                parents = parents[: len(parents) - node.level + is_package]
                base = ".".join([*parents, *([node.module] if node.module else [])])
            for alias in node.names:
                own = base if alias.name.startswith("__") else f"{base}.{alias.name}"
                yield LAZY.get(base, {}).get(alias.name, own)


def imports_of(path: Path, base: Path, *, runtime: bool = False) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    return set(imported_modules(tree, module_name(path, base), path.name == "__init__.py", runtime=runtime))


def find_circle(edges: Mapping[str, set[str]]) -> list[str]:
    """Return a circle of the graph as a path whose ends are equal; empty without any."""
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        found = next((circle for to in sorted(edges[name]) if (circle := visit(to, [*path, name]))), [])
        done.add(name)
        return found

    return next((circle for name in sorted(edges) if (circle := visit(name, []))), [])


def sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def part_of(module: str) -> str | None:
    """Return the part of rolesafe that holds a dotted name, such as "attention"; None for others."""
    pieces = module.split(".")
    return pieces[1] if pieces[0] == "rolesafe" and len(pieces) > 1 else None


def rank(part: str) -> int:
    for index, layer in enumerate(LAYERS):
        if part in layer:
            return index
    raise AssertionError(f"`rolesafe.{part}` has no place in LAYERS of {Path(__file__).name}: give it one")


# ------------------------------------------------------------------------------------------------------------- imports


def test_imported_modules_finds_every_form() -> None:
    code = (
        "import a.b\ndef f():\n  from .x import y\n  from ..z import w\nfrom . import v\nfrom rolesafe import patch\n"
    )
    found = set(imported_modules(ast.parse(code), "rolesafe.p.q", is_package=False))
    assert found == {"a.b", "rolesafe.p.x.y", "rolesafe.z.w", "rolesafe.p.v", "rolesafe.patching.apply"}
    assert set(imported_modules(ast.parse("from .x import y"), "rolesafe.p", is_package=True)) == {"rolesafe.p.x.y"}


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    own = part_of(module_name(path, ROOT))
    if own is None or own == "__init__":
        return  # rolesafe/__init__.py names everything, lazily
    wrong = {name for name in imports_of(path, ROOT) if (part := part_of(name)) and rank(part) > rank(own)}
    assert not wrong, f"{path.relative_to(ROOT)} imports {sorted(wrong)}, which come after {own!r}: {LAYERS}"


def test_find_circle_returns_its_path() -> None:
    assert find_circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert find_circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_runtime_nodes_skip_type_checking() -> None:
    code = "if TYPE_CHECKING:\n  import a\nif x:\n  import b\ndef f():\n  import c\n"
    assert set(imported_modules(ast.parse(code), "m", is_package=False, runtime=True)) == {"b", "c"}


@pytest.mark.parametrize("folder, base", [("rolesafe", "."), ("rolesafe_kernels", "kernels"), ("benchmarks", ".")])
def test_modules_import_without_circle(folder: str, base: str) -> None:
    """Imports inside functions count, those for type checkers do not."""
    root = (ROOT / base).resolve()
    paths = {module_name(path, root): path for path in (root / folder).rglob("*.py")}
    edges: dict[str, set[str]] = {}
    for module, path in paths.items():
        names = imports_of(path, root, runtime=True)
        found = {name if name in paths else name.rpartition(".")[0] for name in names}
        edges[module] = (found & paths.keys()) - {module}
    circle = find_circle(edges)
    assert not circle, f"modules import each other in a circle: {' -> '.join(circle)}"


def test_kernels_never_import_rolesafe() -> None:
    for path in sorted(KERNELS.rglob("*.py")):
        wrong = {name for name in imports_of(path, ROOT / "kernels") if name.split(".")[0] == "rolesafe"}
        assert not wrong, f"{path.relative_to(ROOT)} imports {sorted(wrong)}"


def test_attention_never_imports_transformers() -> None:
    for path in sorted((PACKAGE / "attention").rglob("*.py")):
        wrong = {name for name in imports_of(path, ROOT) if name.split(".")[0] == "transformers"}
        assert not wrong, f"{path.relative_to(ROOT)} imports {sorted(wrong)}"


def test_backends_never_import_each_other() -> None:
    backends = {"reference", "sdpa", "triton"}
    for path in sorted((PACKAGE / "attention").rglob("*.py")):
        own = set(module_name(path, ROOT).split(".")) & backends
        if own:
            used = {piece for name in imports_of(path, ROOT) if part_of(name) for piece in name.split(".")} & backends
            assert used <= own, f"{path.relative_to(ROOT)} imports the backends {sorted(used - own)}"


def test_kernels_folder_is_no_package() -> None:
    assert not (ROOT / "kernels" / "__init__.py").exists(), "it would shadow Hugging Face's package `kernels`"


def run_fresh(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_transformers_imports_from_repository_root() -> None:
    assert "ok" in run_fresh("import rolesafe\nfrom transformers import LlamaForCausalLM\nprint('ok')")


# --------------------------------------------------------------------------------------------------------- public names


def test_exported_names_are_pinned() -> None:
    assert sorted(rolesafe.__all__) == PUBLIC
    assert sorted(dir(rolesafe)) == PUBLIC


def test_exported_names_exist() -> None:
    for name in PUBLIC:
        assert getattr(rolesafe, name) is not None


def test_unknown_name_raises_with_its_name() -> None:
    with pytest.raises(AttributeError, match="module 'rolesafe' has no attribute 'pacth'"):
        rolesafe.pacth  # noqa: B018


@pytest.mark.parametrize("names", ["RoleConfig, Role, __version__", "patch, encode, RoleConfig"])
def test_import_is_fast_and_light(names: str) -> None:
    """In a fresh process: under a second, and without heavy packages."""
    code = (
        f"import json, sys, time\nstart = time.process_time()\nfrom rolesafe import {names}\n"
        "took = time.process_time() - start\nRoleConfig()\n"
        "heavy = [n for n in ('torch', 'transformers', 'numpy', 'matplotlib', 'jinja2') if n in sys.modules]\n"
        "print(json.dumps([took, heavy]))"
    )
    took, heavy = json.loads(run_fresh(code))
    assert heavy == [], f"`from rolesafe import {names}` imports {heavy}: import them where they are first used"
    assert took < 1.0, f"`from rolesafe import {names}` took {took:.2f} s"


def test_version_is_written_once() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", rolesafe.__version__)
    assert rolesafe.__version__ in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert rolesafe.__version__ not in (ROOT / "setup.py").read_text(encoding="utf-8")
    assert not re.search(r"^version\s*=", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)


# ---------------------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("folder, most", LONGEST.items())
def test_files_are_short(folder: str, most: int) -> None:
    lengths = {
        path.relative_to(ROOT): len(path.read_text(encoding="utf-8").splitlines())
        for path in (ROOT / folder).rglob("*.py")
    }
    long = {str(path): lines for path, lines in lengths.items() if lines > most}
    assert not long, f"files of more than {most} lines: {long}; split them by purpose"


@pytest.mark.parametrize("pattern", FORBIDDEN)
def test_no_code_runs_from_files_or_repositories(pattern: str) -> None:
    hits = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in [*sources(), *KERNELS.rglob("*.py")]
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if re.search(pattern, line)
    ]
    assert not hits, "\n".join(hits)


def test_every_folder_is_a_package() -> None:
    """Every folder with Python files is a package, so none is left out of an installation."""
    for folder in {path.parent for path in sources()}:
        assert (folder / "__init__.py").exists(), f"{folder.relative_to(ROOT)} has no __init__.py"
    for marker in (PACKAGE / "py.typed", KERNELS / "py.typed"):
        assert marker.exists(), f"{marker.relative_to(ROOT)} is missing: type checkers would ignore the annotations"


def test_source_distribution_has_documentation(tmp_path: Path) -> None:
    command = ["setup.py", "-q", "egg_info", "--egg-base", str(tmp_path), "sdist", "--dist-dir", str(tmp_path)]
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as found:
        names = {name.partition("/")[2] for name in found.getnames()}
    wanted = {
        "CHANGELOG.md",
        "CITATION.cff",
        "CONTRIBUTING.md",
        "LICENSE",
        "README.md",
        "SECURITY.md",
        "kernels/README.md",
        "rolesafe/report/page.html",
    }
    wanted |= {str(path.relative_to(ROOT)) for path in (ROOT / "docs").iterdir()}
    assert wanted <= names
