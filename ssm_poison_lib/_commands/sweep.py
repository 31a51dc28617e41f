"""Command `sweep`: a function on every point of a grid."""

from __future__ import annotations

import argparse

from ssm_poison_lib._commands import add_runner_options, runner_options

EPILOG = "example: python -m ssm_poison_lib sweep book/sweeps/tie_scale.toml --workers 8"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.description = (
        "CONFIG is a TOML file with the tables axes (name -> numbers, or {linspace | geomspace |"
        " arange = [arguments of NumPy's function of that name]}), fixed, chunks; function ="
        " 'module:name' (default: theorem_errors of ssm_poison_lib.studies.theorem); store = folder"
        " (default: the file's name with .zarr). The function's module is imported and the function"
        " called: only those of ssm_poison_lib are, unless --allow-any-function says otherwise."
    )
    parser.add_argument("config", metavar="CONFIG", help="TOML file that describes the grid")
    add_runner_options(parser)
    parser.add_argument(
        "--allow-any-function",
        action="store_true",
        help=(
            "import and call whatever function CONFIG names; only for a file whose author you trust"
        ),
    )


def run(options: argparse.Namespace) -> int:
    """Run one sweep and print what its store holds."""
    import numpy as np  # here, not above: help needs none of them

    from ssm_poison_lib.studies import sweep

    config = sweep.read_config(options.config, allow_any_function=options.allow_any_function)
    result = sweep.sweep(**config, **runner_options(options))
    print(f"{config['store']}: {result.chunks_run} chunks run now, {dict(result.sizes)}")
    for name, variable in result.data_vars.items():
        values = variable.values
        known = values[~np.isnan(values)]
        median = f"{np.median(known):.4g}" if known.size else "-"
        print(f"  {name}: median {median}, NaN in {values.size - known.size} of {values.size}")
    return 0
