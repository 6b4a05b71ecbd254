"""The rules of the house, each one a test that reads the source."""

import ast
import os
import re
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from specs import architectures
from specs.backend import BACKENDS, available_backends

ROOT = Path(__file__).parent.parent
PANELS = {"mlx_models": "mlx", "torch_models": "torch"}
FOLDERS = ["specs", *PANELS, "parity", "train", "generate", "bench", "tests"]
SOURCES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
TEXTS = [*SOURCES, *ROOT.glob("*.md"), *ROOT.glob("*.toml"), *ROOT.glob("*.sh"),
         *ROOT.rglob("docs/*.md"), ROOT / "Makefile", ROOT / ".ci/run"]
MODEL_CODE = [*architectures(), "cache"]  # twins to the last argument
TWINS = sorted({path.name for panel in PANELS for path in (ROOT / panel).glob("[a-z]*.py")})


def relative(path):
    return str(path.relative_to(ROOT))


def each_source(tests):
    chosen = [path for path in SOURCES if tests or ROOT / "tests" not in path.parents]
    return pytest.mark.parametrize("path", chosen, ids=relative)


def tree(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path):
    """Top-level names of all modules that a file imports, wherever it does."""
    names = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return names


def outline(path, whole):
    """Classes, and if `whole` also functions, arguments and attributes, in the order of the file.

    Class names are those of the file, with `forward` called by MLX's name for it.
    """
    found = []
    for node in tree(path).body:
        if isinstance(node, ast.ClassDef):
            found.append(f"class {node.name}")
        functions = node.body if isinstance(node, ast.ClassDef) else [node]
        for function in functions if whole else []:
            if isinstance(function, ast.FunctionDef):
                name = "__call__" if function.name == "forward" else function.name
                found.append(f"{name}({', '.join(arg.arg for arg in function.args.args)})")
                found += [f"self.{target.attr}" for target in ast.walk(function)
                          if isinstance(target, ast.Attribute)
                          and isinstance(target.ctx, ast.Store)
                          and isinstance(target.value, ast.Name) and target.value.id == "self"]
    return found


@each_source(tests=False)
def test_each_framework_is_imported_by_its_panel_alone(path):
    forbidden = {framework for panel, framework in PANELS.items()
                 if ROOT / panel not in path.parents}
    assert not imports(path) & forbidden


@each_source(tests=True)
def test_no_file_holds_two_ideas(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 300


def test_no_file_beside_a_command_hides_a_library():
    """A script's own folder comes first in sys.path."""
    commands = [path for path in SOURCES
                if 'if __name__ == "__main__"' in path.read_text(encoding="utf-8")]
    libraries = {name for name, owners in packages_distributions().items()
                 if set(owners) != {"diptych"}}
    taken = {*sys.stdlib_module_names, *libraries} - {"__init__"}
    beside = {path for command in commands for path in command.parent.glob("*.py")}
    assert not [relative(path) for path in beside if path.stem in taken]


@pytest.mark.parametrize("arch", architectures())
def test_an_architecture_is_three_files(arch):
    for panel in PANELS:
        path = ROOT / panel / f"{arch}.py"
        assert path.is_file()
        assert "class Model" in outline(path, whole=False)


def test_no_model_without_a_spec():
    models = {path.stem for panel in PANELS for path in (ROOT / panel).glob("*.py")
              if "class Model" in outline(path, whole=False)}
    assert models == set(architectures())


@pytest.mark.parametrize("name", TWINS)
def test_twins_are_twins(name):
    whole = name.removesuffix(".py") in MODEL_CODE
    one, two = (outline(ROOT / panel / name, whole) for panel in PANELS)
    assert one == two


@each_source(tests=True)
def test_nothing_is_pickled(path):
    assert not imports(path) & {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve"}
    calls = [node.func for node in ast.walk(tree(path)) if isinstance(node, ast.Call)]
    assert not {"torch.load", "torch.save", "torch.jit.load"} & set(map(ast.unparse, calls))
    options = [ast.unparse(node) for node in ast.walk(tree(path)) if isinstance(node, ast.keyword)]
    assert "allow_pickle=True" not in options


@pytest.mark.parametrize("path", [path for path in TEXTS if path != Path(__file__)], ids=relative)
def test_the_text_speaks_of_the_project_alone(path):
    """No path of somebody's machine, no page that is not here, no ticket, no package mirror."""
    text = path.read_text(encoding="utf-8")
    elsewhere = r"(?<![\w.~])/(work|home|root|opt|Users)/|\.\./shared|\bshared/"
    tickets = r"\b(issues?|PR) #?\d|\b(sub)?agents?\b|\bworkplace\b"
    mirrors = r"\b(pypi|debian|npmjs)\.org\b|pythonhosted"
    assert not re.search(f"{elsewhere}|{tickets}|{mirrors}", text, re.IGNORECASE)
    if ROOT / "tests" not in path.parents:
        pages = re.findall(r"[\w./-]+\.md\b", text)
        assert all((ROOT / page).is_file() or (path.parent / page).is_file() for page in pages)


@pytest.mark.parametrize("name", os.environ.get("DIPTYCH_BACKENDS", "").split())
def test_every_backend_asked_for_is_here(name):
    """`make test` names the backends whose tests must not be skipped."""
    assert name in BACKENDS and name in available_backends()
