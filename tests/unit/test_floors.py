"""The floors of DESIGN section 1: who may import whom. Read from the sources, nothing is imported."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "fl_utils"
#: Room -> floor. A room is a folder or a single module of the package.
FLOORS = {
    "children": 0, "config": 0, "files": 0, "paths": 0, "platform_check": 0, "records": 0, "seeding": 0, "statistics": 0,
    "data": 1, "models": 1,
    "explain": 2, "learning": 2, "trust": 2,
    "deployment": 3, "experiments": 3, "plotting": 3,
    "cli": 4, "consortia": 4, "consortium_cli": 4, "consortium_studies": 4, "doctor": 4, "federation_agreement": 4, "federation_cli": 4, "federation_studies": 4, "federations": 4, "interactive": 4, "map_viewer": 4, "readme": 4, "report": 4, "slice_viewer": 4,
}  # fmt: skip
TENSORFLOW = {"tensorflow", "keras", "tensorflow_federated", "tf_keras"}
WITHOUT_TENSORFLOW = ("children", "config", "files", "paths", "platform_check", "records", "seeding", "statistics", "data", "plotting")
#: The only modules that may know of TFF's execution contexts, and how those are reached.
ENGINE = ("fl_utils.learning.engine", "fl_utils.learning.worker")
CONTEXTS = ("tensorflow_federated.framework", "tensorflow_federated.backends", "tensorflow_federated.program")


def modules(package=PACKAGE):
    """Module name -> syntax tree, for every file of the package."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = ast.parse(path.read_text(encoding="utf-8"))
    return found


def packages(package=PACKAGE):
    return {".".join(path.parent.relative_to(package.parent).parts) for path in package.rglob("__init__.py")}


def imports(name, trees, folders):
    """What a module imports anywhere in it, also inside functions: set of (module, name taken from it or "")."""
    found = set()
    for node in ast.walk(trees[name]):
        if isinstance(node, ast.Import):
            found |= {(alias.name, "") for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                here = name.split(".") if name in folders else name.split(".")[:-1]
                base = ".".join([*here[: len(here) - node.level + 1], *filter(None, [base])])
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                found.add((whole, "") if whole in trees else (base, alias.name))
    return found


def room(name):
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else ""


def violations(trees, folders):
    """One sentence a broken rule."""
    found = []
    for name in trees:
        if not room(name):
            continue
        if room(name) not in FLOORS:
            found.append(f"{name} belongs to no floor")
            continue
        for target, taken in sorted(imports(name, trees, folders)):
            if target.split(".")[0] != "fl_utils" or not room(target):
                continue
            floor, below = FLOORS[room(name)], FLOORS.get(room(target), 99)
            # Single modules of one floor may use each other (records uses config); folders stay apart.
            both_single = floor == below and not {f"fl_utils.{room(name)}", f"fl_utils.{room(target)}"} & folders
            if room(target) != room(name) and below >= floor and not both_single:
                found.append(f"{name} (floor {floor}) imports {target} (floor {below})")
            # A folder inside a room is entered by its door.
            inside = next((f for f in folders if f.count(".") > 1 and target.startswith(f + ".")), None)
            if inside and not (name + ".").startswith(inside + "."):
                found.append(f"{name} imports the insides of {inside}: {target}")
            if taken.startswith("_") or target.rsplit(".", 1)[-1].startswith("_"):
                found.append(f"{name} imports what is private to {target}: {taken}")
    return found


def reachable(name, trees, folders):
    """Every module, of whatever package, that importing `name` or calling into it may load."""
    seen, waiting = set(), [name]
    while waiting:
        module = waiting.pop()
        if module in seen:
            continue
        seen.add(module)
        if module in trees:
            waiting += [target for target, _ in imports(module, trees, folders)]
            parts = module.split(".")
            waiting += [".".join(parts[:n]) for n in range(1, len(parts))]  # the packages around it run first
    return seen


def with_tensorflow(trees, folders):
    return [
        f"{name} reaches {target}"
        for name in trees
        if room(name) in ("", *WITHOUT_TENSORFLOW)
        for target in sorted(reachable(name, trees, folders))
        if target.split(".")[0] in TENSORFLOW
    ]


def circles(trees, folders):
    graph = {name: {t for t, _ in imports(name, trees, folders) if t in trees and t != "fl_utils"} for name in trees}
    found, done = [], set()

    def visit(name, path):
        if name in path:
            found.append(" -> ".join([*path[path.index(name) :], name]))
        elif name not in done:
            for target in sorted(graph[name]):
                visit(target, [*path, name])
            done.add(name)

    for name in graph:
        visit(name, [])
    return found


def contexts(trees, folders):
    """Modules that touch TFF's execution contexts, by import or by attribute of the imported module."""
    found = []
    for name, tree in trees.items():
        aliases = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                aliases |= {a.asname: a.name for a in node.names if a.asname}
        used = {t if not taken else f"{t}.{taken}" for t, taken in imports(name, trees, folders)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute):
                head, _, rest = ast.unparse(node).partition(".")
                used.add(f"{aliases.get(head, head)}.{rest}")
        if any(text.startswith(CONTEXTS) or "execution_context" in text.lower() for text in used):
            found.append(name)
    return found


TREES, FOLDERS = modules(), packages()


def test_every_module_keeps_to_its_floor():
    assert len(TREES) > 30
    assert violations(TREES, FOLDERS) == []


def test_every_room_of_the_plan_is_there():
    assert {room(name) for name in TREES} - {""} == set(FLOORS)


def test_nothing_imports_in_a_circle():
    assert circles(TREES, FOLDERS) == []


def test_floor_0_data_and_plotting_never_reach_tensorflow():
    assert with_tensorflow(TREES, FOLDERS) == []


def test_figures_are_redrawn_without_tensorflow():
    assert not {t.split(".")[0] for t in reachable("fl_utils.experiments.analysis", TREES, FOLDERS)} & TENSORFLOW


def test_maps_are_scored_without_tensorflow():
    for name in ("fl_utils.explain.baselines", "fl_utils.explain.scores", "fl_utils.explain.similarity"):
        assert not {t.split(".")[0] for t in reachable(name, TREES, FOLDERS)} & TENSORFLOW, name


def test_tensorflow_is_loaded_lazily_above_learning():
    for name, tree in TREES.items():
        if FLOORS.get(room(name), 0) == 4 or name in ("fl_utils.experiments.run", "fl_utils.experiments.plans"):
            top = ast.Module([node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))], [])
            direct = imports("top", {**TREES, "top": top}, FOLDERS)
            assert not {t.split(".")[0] for t, _ in direct} & TENSORFLOW
            assert not {t for t, _ in direct if t.startswith(("fl_utils.learning.engine", "fl_utils.models"))}, name


def test_only_the_engine_touches_execution_contexts():
    assert set(contexts(TREES, FOLDERS)) <= set(ENGINE)
    assert "fl_utils.learning.engine" in contexts(TREES, FOLDERS)


# --- the checker itself ---


def changed(**sources):
    """The package with some modules replaced; "__" in a name stands for "."."""
    return {**TREES, **{f"fl_utils.{name.replace('__', '.')}": ast.parse(text) for name, text in sources.items()}}


@pytest.mark.parametrize(
    ("sources", "said"),
    [
        ({"config": "from fl_utils.data import types"}, "fl_utils.config (floor 0) imports fl_utils.data.types (floor 1)"),
        ({"data__audit": "def f():\n    import fl_utils.learning.errors"}, "imports fl_utils.learning.errors (floor 2)"),
        ({"data__audit": "from fl_utils.models.classifiers import build_model"}, "imports fl_utils.models.classifiers"),
        ({"data__audit": "from ..models import classifiers"}, "imports fl_utils.models.classifiers"),
        ({"plotting__style": "import fl_utils.experiments.plans"}, "imports fl_utils.experiments.plans (floor 3)"),
        ({"data__splits": "from fl_utils.data.phantoms.shapes import blur"}, "the insides of fl_utils.data.phantoms"),
        ({"learning__local": "from fl_utils.records import _git_commit"}, "private to fl_utils.records: _git_commit"),
        ({"attic": "x = 1"}, "fl_utils.attic belongs to no floor"),
    ],
)
def test_a_broken_floor_is_caught(sources, said):
    assert any(said in sentence for sentence in violations(changed(**sources), FOLDERS))


def test_single_modules_of_a_floor_may_use_each_other():
    trees = changed(statistics="from fl_utils import seeding", cli="from fl_utils.report import sources")
    assert violations(trees, FOLDERS) == []


def test_a_circle_is_caught_also_through_a_function():
    trees = changed(paths="def f():\n    from fl_utils import records")
    assert any("fl_utils.paths" in path and "fl_utils.records" in path for path in circles(trees, FOLDERS))
    through_door = changed(data__types="from fl_utils.data import audit as whole, CARDS")
    assert circles(through_door, FOLDERS)


@pytest.mark.parametrize(
    "sources",
    [
        {"seeding": "def f():\n    import tensorflow as tf"},
        {"data__load": "from keras import layers"},
        {"plotting__style": "import fl_utils.models.classifiers"},
        {"plotting__save": "from fl_utils.learning.local import make_predictor"},
    ],
)
def test_tensorflow_is_caught_also_at_second_hand(sources):
    assert with_tensorflow(changed(**sources), FOLDERS)


@pytest.mark.parametrize(
    "text",
    [
        "import tensorflow_federated as tff\ntff.backends.native.set_sync_local_cpp_execution_context()",
        "from tensorflow_federated import framework",
        "import tensorflow_federated as fed\nfed.framework.get_context_stack()",
    ],
)
def test_a_second_place_with_execution_contexts_is_caught(text):
    assert "fl_utils.learning.federated" in contexts(changed(learning__federated=text), FOLDERS)
