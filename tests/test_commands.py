"""The command line: help, versions, exit codes, and what is imported for which command."""

import subprocess
import sys

import pytest

from ssm_poison_lib import __main__ as command
from ssm_poison_lib._commands import COMMANDS
from ssm_poison_lib._commands.study import STUDIES


@pytest.mark.parametrize("arguments", [[], ["reproduce"], ["study"], ["sweep"]])
def test_help_has_an_example_and_ends_with_status_0(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        command.main([*arguments, "--help"])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert "example: python -m ssm_poison_lib " + " ".join(arguments) in out
    if not arguments:
        assert all(text.split()[0] in out and name in out for name, text in COMMANDS.items())
        assert "exit status: 0 done; 1 something failed" in out


def test_every_command_has_help_with_an_example():
    for name in COMMANDS:
        module = __import__(f"ssm_poison_lib._commands.{name}", fromlist=["EPILOG"])
        assert f"example: python -m ssm_poison_lib {name}" in module.EPILOG


def test_every_study_is_defined():
    for name in STUDIES:
        study = __import__(f"ssm_poison_lib.studies.{name}", fromlist=["STUDY"]).STUDY
        assert study.name == name
        assert len({job.name for job in study.jobs}) == len(study.jobs) > 0


def test_the_version_is_that_of_the_package(capsys):
    with pytest.raises(SystemExit) as ended:
        command.main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("ssm-poison-lib 0.")


@pytest.mark.parametrize("arguments", [[], ["nothing"], ["reproduce", "--depth", "3"]])
def test_wrong_use_ends_with_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        command.main(arguments)
    assert ended.value.code == 2
    assert capsys.readouterr().err


def test_an_unknown_study_is_named(capsys):
    assert command.main(["study", "nothing"]) == 2
    assert "NAME must be one of" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "absent"),
    [
        (["reproduce", "--help"], {"dask", "distributed", "xarray", "zarr", "torch", "numba"}),
        (["sweep", "--help"], {"dask", "distributed", "xarray", "zarr", "torch", "numba", "scipy"}),
        (["study", "--help"], {"dask", "distributed", "xarray", "zarr", "torch", "numba", "scipy"}),
    ],
)
def test_a_command_loads_only_what_it_needs(arguments, absent):
    script = (
        "import sys, contextlib, io\n"
        "from ssm_poison_lib.__main__ import main\n"
        "with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):\n"
        f"    main({arguments!r})\n"
        f"print({absent!r} & set(sys.modules))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"


def test_a_whole_reproduction_needs_neither_dask_nor_xarray(tmp_path):
    script = (
        "import sys\n"
        "from ssm_poison_lib.__main__ import main\n"
        "assert main(['reproduce', 'standalone_ssm_dim=2_dynamics__s1',"
        f" '--results', {str(tmp_path)!r}]) == 0\n"
        "print({'dask', 'distributed', 'xarray', 'zarr', 'torch'} & set(sys.modules))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip().splitlines()[-1] == "set()"
