"""Imports point one way: entry points, agents, envs, gns. A practitioner's training job needs gns alone."""

import ast
import os
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import gns

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("gns", "envs", "agents")
HEAVY = ("stable_baselines3", "gymnasium", "hydra", "wandb", "ray", "envs", "agents")
FRAMEWORKS = ("pytorch_lightning", "lightning", "accelerate")  # only gns.integrations may, once it is asked
REPORT = "envs.tasks.report"


def modules(room: str) -> dict[str, Path]:
    """Modules of a room by name."""
    paths = sorted((ROOT / room).rglob("*.py"))
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}


def imported(source: str, package: str = "") -> set[str]:
    """Dotted names that a module imports, anywhere in it; ``from a import b`` names ``a`` and ``a.b``."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parts, *([node.module] if node.module else [])])
            names.update([base, *(f"{base}.{alias.name}" for alias in node.names)])
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__", "import_or_skip"):
                names.add(str(node.args[0].value))
    return names


def imports_of(name: str, path: Path) -> set[str]:
    return imported(path.read_text(), name if path.name == "__init__.py" else name.rpartition(".")[0])


def reaches(names: set[str], target: str) -> bool:
    return any(name == target or name.startswith(f"{target}.") for name in names)


@pytest.mark.parametrize(
    ("source", "package", "name"),
    [
        ("import envs", "", "envs"),
        ("import envs.tasks.report as r", "", REPORT),
        ("from envs.tasks import report", "", REPORT),
        ("from envs.tasks.report import load_test_split", "", REPORT),
        ("def f():\n    from . import report", "envs.tasks", REPORT),
        ("from .tasks import report", "envs", REPORT),
        ("from ..tasks.report import x", "envs.other", REPORT),
        ("import importlib\nimportlib.import_module('envs.tasks.report')", "", REPORT),
        ("__import__('agents')", "", "agents"),
    ],
)
def test_every_way_to_import_is_seen(source, package, name):
    assert reaches(imported(source, package), name)


@pytest.mark.parametrize("source", ["x = 'envs'", "import environs", "from gns import envs_like", "# import envs"])
def test_what_is_no_import_is_not_seen(source):
    assert not reaches(imported(source), "envs")


@pytest.mark.parametrize(
    ("room", "forbidden"),
    [
        *(("gns", name) for name in HEAVY),
        ("envs", "agents"),
        *((room, entry) for room in ROOMS for entry in ("train_agent", "evaluate")),
        *((room, "tests") for room in ROOMS),
    ],
)
def test_imports_point_one_way(room, forbidden):
    found = modules(room)
    assert room in found and len(found) > 3
    assert [name for name, path in found.items() if reaches(imports_of(name, path), forbidden)] == []


class _WithoutAnnotations(ast.NodeTransformer):
    """Drops what is imported for the type checker alone, and never when the module runs."""

    def visit_If(self, node: ast.If) -> ast.AST:
        if ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            return ast.If(ast.Constant(False), [ast.Pass()], node.orelse)
        return self.generic_visit(node)


def running(name: str, path: Path) -> set[str]:
    """Dotted names that a module imports when it runs, within functions too."""
    tree = _WithoutAnnotations().visit(ast.parse(path.read_text()))
    return imported(ast.unparse(tree), name if path.name == "__init__.py" else name.rpartition(".")[0])


def circle(graph: dict[str, set[str]]) -> list[str] | None:
    """A circle among the names of a graph, None if there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return None


def test_no_modules_import_each_other():
    found = {name: path for room in ROOMS for name, path in modules(room).items()}
    graph = {name: (running(name, path) & set(found)) - {name} for name, path in found.items()}
    assert sum(map(len, graph.values())) > len(graph)
    assert circle(graph) is None


def test_a_circle_is_found_within_functions_too(tmp_path):
    first, second = tmp_path / "first.py", tmp_path / "second.py"
    first.write_text("import second")
    second.write_text("def later():\n    from first import x")
    assert circle({path.stem: running(path.stem, path) & {"first", "second"} for path in (first, second)})
    second.write_text("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import first")
    assert not circle({path.stem: running(path.stem, path) & {"first", "second"} for path in (first, second)})


def test_no_environment_imports_the_test_split():
    found = modules("envs")
    assert REPORT in found
    assert [name for name, path in found.items() if name != REPORT and reaches(imports_of(name, path), REPORT)] == []


def loaded_after(statement: str, tmp_path: Path) -> set[str]:
    """Top-level modules loaded by a fresh interpreter."""
    finished = subprocess.run(
        [sys.executable, "-c", f"{statement}\nimport sys\nprint(*sys.modules, sep='\\n')"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=120,
    )
    assert finished.returncode == 0, finished.stderr
    return {name.partition(".")[0] for name in finished.stdout.split()}


def test_importing_gns_loads_nothing_of_reinforcement_learning(tmp_path):
    loaded = loaded_after("import gns, gns.schedules.profiles, gns.deciding.guard\ngns.GNSPolicy()", tmp_path)
    assert "gns" in loaded and "torch_geometric" in loaded
    assert loaded.isdisjoint(HEAVY)
    assert loaded.isdisjoint(FRAMEWORKS)


WHEN_USED = (
    *("torch_geometric", "huggingface_hub", "safetensors", "matplotlib", "networkx", "rich", "pandas", "scipy"),
    *("transformers", "sympy", "tensorboard"),
)


def test_importing_the_scheduler_loads_what_is_heavy_only_when_it_is_used(tmp_path):
    loaded = loaded_after("import gns, sys\nassert 'torch' not in sys.modules\nfrom gns import GNSScheduler", tmp_path)
    assert {"gns", "torch"} <= loaded
    assert loaded.isdisjoint((*HEAVY, *FRAMEWORKS, *WHEN_USED))


def test_the_command_line_of_gns_says_its_options_without_torch(tmp_path):
    script = "import runpy, sys\nsys.argv = ['gns', 'inspect', '--help']\n"
    script += "try:\n    runpy.run_module('gns', run_name='__main__')\nexcept SystemExit:\n    print()"
    assert "torch" not in loaded_after(script, tmp_path)


def test_names_of_gns_are_those_that_type_checkers_are_told():
    told = ast.parse((ROOT / "gns" / "__init__.py").read_text())
    block = next(node for node in told.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    homes = {alias.name: node.module for node in block.body for alias in node.names}
    assert sorted(homes) == sorted(gns.__all__) and set(gns.__all__) <= set(dir(gns))
    for name, module in homes.items():
        assert getattr(gns, name) is getattr(sys.modules[module], name)
    with pytest.raises(AttributeError, match="module 'gns' has no attribute 'GNSSheduler'"):
        gns.GNSSheduler  # noqa: B018


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_only_an_integration_imports_a_framework(framework):
    found = [name for name, path in modules("gns").items() if reaches(imports_of(name, path), framework)]
    assert all(name.startswith("gns.integrations.") for name in found)


def test_a_room_gives_what_it_gave_when_it_is_asked(tmp_path):
    loaded = loaded_after("import sys\nimport gns.policy\nassert 'torch' not in sys.modules", tmp_path)
    assert "torch" not in loaded
    loaded_after("from gns.policy import GNSPolicy\nimport gns\nassert GNSPolicy is gns.GNSPolicy", tmp_path)
