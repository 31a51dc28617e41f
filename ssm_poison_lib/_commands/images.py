"""Command `images`: gradient matching at the authors' sizes, on images in CIFAR-10's format."""

from __future__ import annotations

import argparse
import time
from typing import Any

from ssm_poison_lib._checks import as_path

EPILOG = (
    "example: python -m ssm_poison_lib images --train cifar-10-batches-bin/data_batch_*.bin"
    " --test cifar-10-batches-bin/test_batch.bin --kind s4d --device cuda --precision tf32"
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.description = (
        "Train an image classifier, make poisons for it, and train it again on duplicates, on noise"
        " of equal size and on the poisons. Every training keeps its state once an epoch and every"
        " group its poisons: the same command goes on where an interrupted one stopped."
    )
    parser.add_argument(
        "--train", nargs="+", required=True, metavar="FILE", help="CIFAR-10's binary format"
    )
    parser.add_argument("--test", nargs="+", required=True, metavar="FILE", help="the same")
    parser.add_argument(
        "--kind", default="s4d", help="s4d (default), lru, mamba2, transformer or cnn"
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of split, starts and brew (default 0)"
    )
    parser.add_argument(
        "--eps",
        type=float,
        default=0.25,
        help="in standard deviations of the pixels (default .25, the authors')",
    )
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--precision", default="float32", help="float32 (default), tf32 or float64")
    parser.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="in place of the authors' numbers for this kind, such as steps=2500 channels=64",
    )
    parser.add_argument(
        "--groups",
        nargs="+",
        metavar="GxTxB",
        help="G groups of T targets and B bases in place of the authors' 20x50x250 40x50x125",
    )
    parser.add_argument("--results", default="results", metavar="FOLDER", help="default: results")


def run(options: argparse.Namespace) -> int:
    """Run the attack, print and keep what came out."""
    import dataclasses

    from ssm_poison_lib.studies import gradient_matching as study
    from ssm_poison_lib.studies import store

    changed: dict[str, Any] = {}
    for text in options.set:
        name, _, value = text.partition("=")
        kind = {f.name: f.type for f in dataclasses.fields(study.Protocol)}.get(name)
        if kind not in ("int", "float"):
            raise ValueError(f"--set must name a number of the protocol; got {text!r}")
        try:
            changed[name] = int(value) if kind == "int" else float(value)
        except ValueError:
            raise ValueError(f"--set must give {name} a number; got {text!r}") from None
    if options.groups:
        parts = [text.split("x") for text in options.groups]
        if any(len(part) != 3 or not all(n.isdecimal() for n in part) for part in parts):
            raise ValueError(
                f"--groups must be three numbers each, such as 20x50x250; got {options.groups}"
            )
        changed["groups"] = tuple(tuple(int(n) for n in part) for part in parts)
    began = time.perf_counter()
    folder = as_path("--results", options.results) / "images" / f"{options.kind}-{options.seed}"
    found = study.images(
        options.train,
        options.test,
        kind=options.kind,
        seed=options.seed,
        eps=options.eps,
        protocol=dataclasses.replace(study.large(options.kind), **changed),
        device=options.device,
        precision=options.precision,
        folder=folder,
    )
    for row in found["runs"]:
        print(
            f"{row['condition']:12s} attacked {row['attacked']:.4f}, others {row['others']:.4f},"
            f" loss {row['loss']:.3g}"
        )
    seconds = round(time.perf_counter() - began, 1)
    store.write_json(
        folder.with_suffix(".json"),
        {"command": store.command_line(), "seconds": seconds, **store.stamp(), **found},
    )
    print(f"{seconds:.0f} s (this call); all of it is in {folder.with_suffix('.json')}")
    return 0
