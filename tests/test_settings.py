"""The reader's own settings change nothing: Matplotlib, IPython, Jupyter, Python's switches, a HOME
that cannot be used.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from notebooks import HEADER

CHAPTER = f"""{HEADER.rstrip()}

(ch-trial)=
# A chapter for the tests

```{{code-cell}} ipython3
import matplotlib.pyplot as plt
from IPython.display import display

print(plt.rcParams["lines.linewidth"], plt.rcParams["figure.figsize"],
      plt.get_backend().endswith("inline"))
print([name for name in ("configured", "started", "greeted") if name in globals()])
print("assertions count" if __debug__ else "assertions are left out")
```

```{{code-cell}} ipython3
figure, axes = plt.subplots()
axes.plot([1, 2], label="x")
axes.legend()
figure.canvas.draw()
text = str(len(figure.canvas.buffer_rgba().tobytes()))
display({{"image/png": "", "text/plain": text}}, raw=True)
plt.close(figure)
```
"""
SETTINGS = {
    ".config/matplotlib/matplotlibrc": "lines.linewidth: 9\nfigure.figsize: 2, 2\n",
    ".ipython/profile_default/ipython_config.py": (
        "c.InteractiveShellApp.exec_lines = ['configured = 1']\n"
    ),
    ".ipython/profile_default/startup/00.py": "started = 1\n",
    "greeting.py": "greeted = 1\n",
    ".local/share/jupyter/kernels/python3/kernel.json": json.dumps(
        {"argv": ["false", "{connection_file}"], "display_name": "Mine", "language": "python"}
    ),
}


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("settings")
    (folder / "book").mkdir()
    (folder / "tools").mkdir()
    (folder / "ssm_poison_lib").mkdir()
    for name in (
        "tools/notebooks.py",
        "tools/kernels.py",
        "tools/digests.py",
        "tools/outputs.py",
        "book/conftest.py",
    ):
        shutil.copy(ROOT / name, folder / name)
    (folder / "book" / "trial.md").write_text(CHAPTER, "utf-8")
    (folder / "pytest.ini").write_text("[pytest]\n", "utf-8")
    return folder


@pytest.fixture(scope="module")
def strange(tmp_path_factory) -> dict[str, str]:
    """Return the environment of a reader with settings of every kind, in a folder that nobody can
    write.
    """
    home = tmp_path_factory.mktemp("home")
    for name, content in SETTINGS.items():
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(content, "utf-8")
    for folder in (home, *(path for path in home.rglob("*") if path.is_dir())):
        folder.chmod(0o555)
    return plain() | {
        "HOME": str(home),
        "MATPLOTLIBRC": str(home / ".config" / "matplotlib" / "matplotlibrc"),
        "MPLBACKEND": "pdf",
        "PYTHONSTARTUP": str(home / "greeting.py"),
        "PYTHONOPTIMIZE": "2",
        "LC_ALL": "tr_TR.UTF-8",
        "TZ": "Pacific/Kiritimati",
    }


@pytest.fixture(scope="module")
def homeless(tmp_path_factory) -> dict[str, str]:
    """Return the environment of a reader whose HOME can never be made."""
    file = tmp_path_factory.mktemp("no-home") / "file"
    file.touch()
    return plain() | {
        "HOME": str(file / "home"),
        "XDG_CACHE_HOME": str(file / "c"),
        "XDG_CONFIG_HOME": str(file / "d"),
    }


def plain() -> dict[str, str]:
    own = ("PYTEST_", "COV_", "JUPYTER_", "IPYTHON", "MPL", "MATPLOTLIB", "XDG_", "NUMBA_")
    return {key: value for key, value in os.environ.items() if not key.startswith(own)}


def run(folder: Path, environment: dict[str, str], *command: str) -> str:
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def written(project, strange) -> str:
    """Execute the chapter with strange settings; return the notebook."""
    run(project, strange, "tools/notebooks.py", "execute")
    return (project / "book" / "trial.ipynb").read_text("utf-8")


def test_no_setting_reaches_a_chapter(written):
    outputs = [
        output
        for cell in json.loads(written)["cells"]
        for output in cell.get("outputs", [])
        if "text" in output
    ]
    assert ["".join(output["text"]).splitlines() for output in outputs] == [
        ["1.5 [6.4, 4.8] True", "[]", "assertions count"]
    ]


def test_without_a_home_a_chapter_gives_the_same(project, homeless, written):
    run(project, homeless, "tools/notebooks.py", "execute", "--all")
    assert (project / "book" / "trial.ipynb").read_text("utf-8") == written


def test_nbval_compares_without_them_too(project, strange, written):
    options = ("--nbval", "--nbval-current-env", "-p", "no:cacheprovider", "-q")
    assert "2 passed" in run(project, strange, "-m", "pytest", "book", *options)


# What a reader's own script sees: the library imports, integrates, draws, and says nothing.
SCRIPT = """
import hashlib, io, warnings
warnings.simplefilter("error")
from ssm_poison_lib import checklist, figures, flow, flows, sequences, ssm
from ssm_poison_lib.studies import reproduce, sweep
figures.use_style()
figure, (axes,) = figures.new()
axes.plot([1, 2, 4], label="x")
axes.legend()
data = sequences.TrainingSet([[1, 0, 0]], ssm.theorem_teacher(2))
run = flow.gradient_flow(ssm.DiagonalSSM([.1, .05], [1, 1], [1, 1]), data, t_end=1.0)
print(hashlib.sha256(figures.to_svg(figure).encode()).hexdigest(), run.A[-1])
"""


def test_a_script_gives_the_same_with_any_settings(strange, homeless, tmp_path):
    expected = run(tmp_path, plain(), "-c", SCRIPT)
    assert run(tmp_path, strange, "-OO", "-c", SCRIPT) == expected
    assert run(tmp_path, homeless, "-c", SCRIPT) == expected
