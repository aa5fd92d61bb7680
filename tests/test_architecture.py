"""The plan of the house, held by its imports: arrows run one way, and the optimizer needs nothing but torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import latephase

ROOT = Path(latephase.__file__).parent

# Each layer may import what stands below it, and its own kind. Modules that need nothing stand at the bottom.
LAYERS = [
    ["__main__"],
    ["cli"],
    ["study", "integrations"],
    ["__init__"],  # the public names
    ["finishing"],
    ["strategies"],
    ["tasks"],
    ["optimizer", "drawing", "kfac"],
    ["published", "damped_optimizer"],
    ["checkups"],
    ["objective"],
    ["micro_batches", "switching"],
    ["distributed"],
    ["parts"],
    ["curvature"],
    ["transaction"],
    ["snapshots", "trial_points"],
    ["parameters"],
    ["watching"],
    ["random_state", "wrapped"],
    ["failures", "stalling"],
    ["checks", "freed_memory", "outer_rows", "vectors"],
    ["records"],
]
# Likewise inside the study.
STUDY = [
    ["__init__"],
    ["command", "finish_command"],
    ["show"],
    ["analysis"],
    ["runs"],
    ["strategies"],
    ["problems"],
    ["data"],
    ["own"],
    ["numbers"],
    ["threads"],
    ["processes"],
]


def ranks(layers: list[list[str]]) -> dict[str, int]:
    return {name: rank for rank, layer in enumerate(reversed(layers)) for name in layer}


RANK, STUDY_RANK = ranks(LAYERS), ranks(STUDY)


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}


def imports(path: Path) -> Iterator[str]:
    """Full dotted names of all that a file imports, wherever in the file and in whatever form."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} has a relative import; the arrows are easier to see without"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def layer(module: str) -> str:
    """The layer of a module of the package, by its name inside the package."""
    return module.partition(".")[0] or "__init__"


def inner(name: str) -> str | None:
    """The module of this package that an import reaches; None for imports from elsewhere."""
    if name.partition(".")[0] != "latephase":
        return None
    rest = name.partition(".")[2]
    while rest and rest not in MODULES:
        rest = rest.rpartition(".")[0]
    return rest or "__init__"


def test_every_module_has_its_place() -> None:
    assert {layer(module) for module in MODULES} == set(RANK)
    assert {"optimizer", "objective", "parts.cg", "curvature.ggn", "records"} <= set(MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_arrows_run_one_way(module: str) -> None:
    for name in imports(MODULES[module]):
        target = inner(name)
        if target is not None and layer(target) != layer(module):
            assert RANK[layer(target)] < RANK[layer(module)], f"{module} imports {name}"


STUDY_MODULES = [module for module in MODULES if layer(module) == "study"]


def study_layer(module: str) -> str:
    """The layer of a module of the study, by its name inside the package."""
    return [*module.split("."), "__init__"][1]


def test_every_module_of_the_study_has_its_place() -> None:
    assert {study_layer(module) for module in STUDY_MODULES} == set(STUDY_RANK)
    assert {"study.runs.store", "study.strategies.catalogue", "study.show.report"} <= set(STUDY_MODULES)


@pytest.mark.parametrize("module", STUDY_MODULES)
def test_arrows_run_one_way_inside_the_study(module: str) -> None:
    """The command shows, what shows asks the analysis, that reads runs, which strategies make on problems and data."""
    for name in imports(MODULES[module]):
        target = inner(name)
        if target in STUDY_MODULES and study_layer(target) != study_layer(module):
            assert STUDY_RANK[study_layer(target)] < STUDY_RANK[study_layer(module)], f"{module} imports {name}"


def test_modules_do_not_import_each_other_in_a_circle() -> None:
    arrows = {m: {inner(name) for name in imports(path)} - {None, m} for m, path in MODULES.items()}
    done: set[str] = set()
    while len(done) < len(arrows):
        free = {m for m, targets in arrows.items() if m not in done and targets <= done}
        assert free, f"a circle among {sorted(arrows.keys() - done)}"
        done |= free


@pytest.mark.parametrize("module", [m for m in MODULES if layer(m) not in ("study", "cli", "__main__")])
def test_the_optimizer_never_imports_the_study(module: str) -> None:
    reached = {layer(target) for name in imports(MODULES[module]) if (target := inner(name)) is not None}
    assert not reached & {"study", "cli", "__main__"}


PARTS = [m for m in MODULES if layer(m) == "parts"]


@pytest.mark.parametrize("module", PARTS)
def test_parts_see_vectors_callables_and_numbers(module: str) -> None:
    """No modules, no autograd, no devices: and of this package only each other and what stands at the bottom."""
    for name in imports(MODULES[module]):
        target = inner(name)
        below = {"parts", "records", "checks", "outer_rows", "vectors"}
        assert target is None or layer(target) in below, f"{module} imports {name}"
        assert name in {"torch", "torch.Tensor"} or name.partition(".")[0] != "torch", f"{module} imports {name}"
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute):
            assert node.attr not in FORBIDDEN_IN_PARTS, f"{module}:{node.lineno} uses .{node.attr}"


FORBIDDEN_IN_PARTS = {"nn", "autograd", "func", "cuda", "device", "to", "backward", "grad", "requires_grad", "no_grad"}


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith("curvature.rewrite.")])
def test_passes_see_graphs_and_nothing_else(module: str) -> None:
    reached = {inner(name) for name in imports(MODULES[module])} - {None}
    assert all(target.startswith("curvature.rewrite.") for target in reached if target is not None)


def test_records_import_nothing_of_the_package() -> None:
    assert not [name for name in imports(MODULES["records"]) if inner(name) is not None]
    assert not [name for name in imports(MODULES["records"]) if name.partition(".")[0] == "torch"]


# What is imported only where it is asked for, and done without where it is missing.
OPTIONAL = {
    "integrations.deepxde": ["deepxde"],
    "integrations.lightning": ["lightning"],
    "integrations.transformers": ["accelerate", "transformers"],
    "finishing.picture": ["matplotlib"],
    "finishing.progress": ["rich"],
    "finishing.report": ["matplotlib"],
}


@pytest.mark.parametrize("module", [m for m in MODULES if layer(m) not in ("study", "cli")])
def test_the_optimizer_needs_torch_alone(module: str) -> None:
    allowed = {*sys.stdlib_module_names, "torch", "latephase", *OPTIONAL.get(module, ())}
    assert {name.partition(".")[0] for name in imports(MODULES[module])} <= allowed


def test_importing_the_package_loads_nothing_of_the_study() -> None:
    """In a process of its own; what torch itself brings along for any optimizer is not ours."""
    script = """
import sys
import torch
torch.optim.SGD(torch.nn.Linear(2, 1).parameters())
before = set(sys.modules)
import latephase
latephase.HessianFree(torch.nn.Linear(2, 1).parameters())
print(*sorted(set(sys.modules) - before))
"""
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", f"import sys; sys.path[:] = {[str(ROOT.parent), *sys.path]!r}\n{script}"],
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = set(run.stdout.split())
    assert "latephase.optimizer" in loaded
    assert not [name for name in loaded if name.startswith(("latephase.study", "latephase.cli"))]
    of_the_study = {"matplotlib", "rich", "sklearn", "typer", "scipy", "pandas", "pyarrow", "datasets", "jinja2", "PIL"}
    assert not of_the_study & {name.partition(".")[0] for name in loaded}


def test_public_names() -> None:
    assert len(set(latephase.__all__)) == len(latephase.__all__)
    assert all(hasattr(latephase, name) for name in latephase.__all__)
    assert {"HessianFree", "StepRecord"} <= set(latephase.__all__)


TESTS = Path(__file__).parent

# What holds for several modules at once has a name that says what it is about.
SPANNING = {
    "test_against_reference", "test_architecture", "test_bad_input", "test_closures", "test_cuda", "test_documentation",
    "test_examples", "test_release",
    "test_invariance", "test_least_squares", "test_options", "test_pages", "test_readme", "test_solvers", "test_state",
    "test_training_mode", "curvature/test_closures", "curvature/test_kinds", "curvature/test_known_closures",
    "curvature/test_products", "integrations/test_ray_train", "finishing/test_processes",
    "curvature/test_random_programs", "integrations/test_accelerate", "integrations/test_docs",
    "integrations/test_skorch", "integrations/test_mace", "integrations/test_neuromancer", "integrations/test_pina",
    "curvature/engines/test_factors", "study/problems/test_fits",
    "study/problems/test_networks", "study/problems/test_on_images", "study/problems/test_pinns",
    "study/problems/test_problems", "study/runs/test_interruption", "study/strategies/test_contract",
    "study/strategies/test_peers", "study/strategies/test_strategies",
}  # fmt: skip


def test_tests_mirror_the_source() -> None:
    """The tests of `a/b.py` are in `a/test_b.py`, or in a file that spans modules and is listed as such."""
    files = [path.relative_to(TESTS).with_suffix("") for path in TESTS.rglob("test_*.py")]
    own = [path for path in files if path.parts[0] != "benchmarks" and path.as_posix() not in SPANNING]
    missing = [path for path in own if not (ROOT / path.with_name(path.name.removeprefix("test_") + ".py")).exists()]
    assert missing == []
    assert {path.as_posix() for path in files} >= SPANNING
