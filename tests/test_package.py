"""The package: what it needs, what is optional, and that wheel and sdist hold all of it and run
where nothing else is.
"""

import ast
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import modules
import pytest
from conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
OWN = "ssm-poison-lib["  # an extra that contains others
EXTRAS = {
    name: [package for package in some if not package.startswith(OWN)]
    for name, some in PROJECT["optional-dependencies"].items()
    if name != "all"
}
IMPORTED_AS = {"scikit-learn": "sklearn", "adversarial-robustness-toolbox": "art"}
# Part of the library -> the extras that it may need at import; everything else imports with the
# dependencies alone.
PARTS = {
    "torch_reference": {"architectures"},
    "architectures": {"architectures"},
    "attacks": {"architectures"},
    "defences": {"architectures"},
    "audit": {"architectures"},
    "studies": {"sweeps", "architectures"},
}


def names(packages: list[str]) -> set[str]:
    return {IMPORTED_AS.get(name, name) for name in packages}


def foreign(nodes: list[ast.AST]) -> set[str]:
    """Return the packages, neither Python's own nor this one, that are imported there."""
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found - sys.stdlib_module_names - {"ssm_poison_lib"}


@pytest.mark.parametrize("name", modules.modules())
def test_a_module_imports_what_its_part_may_need(name):
    tree = ast.parse(modules.modules()[name].read_text("utf-8"))
    allowed = names(PROJECT["dependencies"])
    for extra in PARTS.get(name.split(".")[0], ()):
        allowed |= names(EXTRAS[extra])
    assert foreign(tree.body) - allowed == set()  # at import
    every = names(PROJECT["dependencies"] + [name for extra in EXTRAS.values() for name in extra])
    assert foreign(list(ast.walk(tree))) - every - {"IPython"} == set()  # when called


def test_the_extra_audit_is_all_that_the_audit_needs():
    inside = PROJECT["optional-dependencies"]["audit"]
    assert {f"{OWN}{name}]" for name in PARTS["audit"]} <= set(inside)


def test_the_list_of_versions_has_every_package_and_nothing_else():
    lines = (ROOT / "requirements.txt").read_text("utf-8").splitlines()
    pinned = {line.partition("==")[0] for line in lines if line and not line.startswith("#")}
    assert all(
        re.fullmatch(r"[\w.-]+==[\w.]+", line)
        for line in lines
        if line and not line.startswith("#")
    )
    assert pinned == {
        *PROJECT["dependencies"],
        *(name for extra in EXTRAS.values() for name in extra),
    }


def test_all_is_every_part_that_a_chapter_may_use():
    (named,) = PROJECT["optional-dependencies"]["all"]
    assert set(re.findall(r"\w+", named.partition("[")[2])) == EXTRAS.keys() - {"book", "checks"}


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """Build the sdist, and from it the wheel, with what is installed; return their folder."""
    folder = tmp_path_factory.mktemp("package")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(
        ROOT / "ssm_poison_lib",
        folder / "ssm_poison_lib",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    command = [
        sys.executable,
        "-m",
        "build",
        "--no-isolation",
        "--outdir",
        str(folder / "dist"),
        str(folder),
    ]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "dist"


def test_the_files_carry_the_version_and_the_wheel_everything_in_the_package(built):
    version = PROJECT["version"]
    wheel = f"ssm_poison_lib-{version}-py3-none-any.whl"
    assert sorted(path.name for path in built.iterdir()) == [
        wheel,
        f"ssm_poison_lib-{version}.tar.gz",
    ]
    held = {name for name in zipfile.ZipFile(built / wheel).namelist() if ".dist-info/" not in name}
    files = (path for path in (ROOT / "ssm_poison_lib").rglob("*") if path.is_file())
    assert held == {
        path.relative_to(ROOT).as_posix() for path in files if "__pycache__" not in path.parts
    }


def test_the_wheel_runs_in_an_environment_that_has_its_dependencies_alone(built, tmp_path):
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    python = environment / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    (wheel,) = built.glob("*.whl")
    install = ["install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    subprocess.run([sys.executable, "-m", "pip", "--python", str(python), *install], check=True)
    done = subprocess.run(
        [python, "-I", "-c", "import ssm_poison_lib as lib; print(lib.__file__)"],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert Path(done.stdout.strip()).is_relative_to(environment)
    # The dependencies are those of this environment, found by their names; the optional ones are
    # refused.
    site = Path(done.stdout.strip()).parent.parent
    refused = names([name for extra in EXTRAS.values() for name in extra])
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n", "utf-8")
    (site / "sitecustomize.py").write_text(
        "import sys\n"
        f"REFUSED = {sorted(refused)!r}\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name in REFUSED:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Refuse())\n",
        "utf-8",
    )
    plain = [
        name
        for name in modules.modules()
        if name.split(".")[0] not in PARTS and not name.endswith("__main__")
    ]
    code = (
        "import importlib\n"
        f"for name in {plain!r}: importlib.import_module('ssm_poison_lib.' + name)\n"
    )
    code += "from ssm_poison_lib import ssm\nprint(ssm.__file__)"
    done = subprocess.run(
        [python, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert str(environment) in done.stdout
    done = subprocess.run(
        [python, "-I", "-m", "ssm_poison_lib", "--version"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == f"ssm-poison-lib {PROJECT['version']}", done.stderr
