"""The package's rooms: imports point one way, and few names are public."""

import ast
import pathlib
import re

import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / "hubert_jax"
ROOMS = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))
JOBS = {
    *("prepare", "check", "label", "train", "evaluate", "analyse", "finetune", "lm", "train_lm"),
    *("decode", "pseudo_label", "export", "pipeline", "plan", "transcribe"),
}
# Rooms with more public names, and how many. asr goes from emissions by searches to error rates and
# captions; convert, corpus and data have the files and formats of other people and of ours; a model
# and its training are many small functions of one kind; each of the tasks has a configuration, data
# and a few more; units have features, k-means and label sets.
MANY_NAMES = {
    "convert": 54,
    "corpus": 55,
    "data": 57,
    "model": 49,
    "tasks": 25,
    "training": 39,
    "units": 43,
    "asr": 25,
}
MOST_NAMES = 20


def _modules() -> dict[str, ast.Module]:
    """Every module's syntax tree by its dotted name below the package."""
    return {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts): ast.parse(path.read_text())
        for path in sorted(PACKAGE.rglob("*.py"))
    }


def _imports(module: str, tree: ast.Module) -> set[str]:
    """Dotted names of what a module imports, also inside functions and by relative names."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = f"hubert_jax.{module}".split(".")[: -node.level] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            found |= {f"{base}.{alias.name}" for alias in node.names}
    return found


MODULES = _modules()
IMPORTS = {name: _imports(name, tree) for name, tree in MODULES.items()}


def _room(name: str) -> str:
    return name.partition(".")[0]


def _ours(imports: set[str]) -> set[str]:
    """Rooms, or top-level modules, that imports go to."""
    return {
        name.removeprefix("hubert_jax.").partition(".")[0]
        for name in imports
        if name.startswith("hubert_jax.")
    }


def test_no_two_rooms_import_each_other_in_a_circle():
    arrows: dict[str, set[str]] = {}
    for name, imports in IMPORTS.items():
        arrows.setdefault(_room(name), set()).update(_ours(imports) - {_room(name)})
    reached = {room: set(targets) for room, targets in arrows.items()}
    for _ in arrows:
        for room, targets in reached.items():
            reached[room] = targets.union(*(reached.get(target, set()) for target in targets))
    circles = {room for room, targets in reached.items() if room in targets}
    assert not circles, {room: sorted(arrows[room] & circles) for room in circles}


def _jobs(imports: set[str]) -> set[str]:
    """Jobs among imports; `convert` and `units` are some beside the rooms of their names."""
    beside = {name for name in imports if re.match(r"hubert_jax\.\w+\.__main__", name)}
    return (_ours(imports) & JOBS) | beside


def test_no_library_imports_a_job():
    for name, imports in IMPORTS.items():
        # Jobs import libraries, never one another; the stages of a pipeline are jobs.
        if name != "pipeline" and _room(name) != "stages":
            assert not _jobs(imports), f"{name} imports {sorted(_jobs(imports))}"


@pytest.mark.parametrize(
    ("module", "text", "rooms", "jobs"),
    [
        ("data.index", "from ..units import labels", {"units"}, set()),
        ("data.index", "from .. import units", {"units"}, set()),
        ("data.__init__", "from .units import labels", {"data"}, set()),
        ("units.labels", "from .. import train", {"train"}, {"train"}),
        ("units.labels", "def f():\n    import hubert_jax.label", {"label"}, {"label"}),
        (
            "tasks.ctc",
            "from hubert_jax.convert import __main__",
            {"convert"},
            {"hubert_jax.convert.__main__"},
        ),
        (
            "tasks.ctc",
            "from hubert_jax.units.__main__ import run",
            {"units"},
            {"hubert_jax.units.__main__.run"},
        ),
    ],
)
def test_imports_of_every_form_are_seen(module, text, rooms, jobs):
    imports = _imports(module, ast.parse(text))
    assert (_ours(imports), _jobs(imports)) == (rooms, jobs)


def test_each_library_of_others_has_one_home():
    homes = {
        "tensorflow": {"data", "corpus"},
        "orbax": {"training.checkpoint"},
        "torch": {"convert"},
        "transformers": {"convert"},
        "sklearn": {"units"},
        "matplotlib": {"report"},
        "flashlight": {"asr", "language"},
        "optuna": {"asr"},
        "sentencepiece": {"vocabulary", "asr"},
        "fsspec": {"storage"},
    }
    for library, allowed in homes.items():
        for name, imports in IMPORTS.items():
            if any(found == library or found.startswith(f"{library}.") for found in imports):
                assert name in allowed or _room(name) in allowed, f"{name} imports {library}"


def test_paths_are_made_in_one_room():
    """Else a URL would be a local folder."""
    own = {"command_line", "report.figures"}  # of files beside the code
    for name, tree in MODULES.items():
        calls = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        if _room(name) != "storage" and name not in own:
            assert not calls & {"pathlib.Path", "Path", "os.listdir", "os.makedirs"}, name


def test_the_model_knows_no_mesh_no_files_and_no_platform():
    """But for the one place that chooses kernels, and the one kernel that XLA cannot divide."""
    for name, tree in MODULES.items():
        if _room(name) != "model":
            continue
        assert not _ours(IMPORTS[name]) - {"model", "frames", "errors", "vocabulary"}, name
        texts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
        assert not {"data", "fsdp", "tensor"} & texts, name
        source = ast.unparse(tree)
        if name != "model.kernels.choice":
            assert "default_backend" not in source and "platform ==" not in source, name


def test_training_knows_no_task():
    for name, imports in IMPORTS.items():
        if _room(name) == "training":
            rooms = _ours(imports)
            assert not rooms & {"tasks", "networks", "convert", "units", "asr", "corpus"}, name
    source = "".join(
        (PACKAGE / "training" / name).read_text().lower()
        for name in ("fit.py", "task.py", "prefetch.py", "sharding.py")
    )
    for word in ("hubert", "ctc", "pretraining", "mask", "waveform", "labels"):
        assert word not in source.replace("hubert_jax", ""), word


def test_train_and_fit_can_be_read_in_one_sitting():
    lines = [(PACKAGE / name).read_text().count("\n") for name in ("train.py", "training/fit.py")]
    assert sum(lines) <= 250, lines


def test_rooms_have_few_public_names():
    counts = {}
    for room in ROOMS:
        names = [
            node.name
            for name, tree in MODULES.items()
            if _room(name) == room
            for node in tree.body
            if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name[0] != "_"
        ]
        counts[room] = len(names)
    print(counts)
    for room, count in counts.items():
        if room in MANY_NAMES:
            assert count == MANY_NAMES[room], f"{room}: {count} public names"
        else:
            assert count <= MOST_NAMES, f"{room}: {count} public names"
