"""Study: how often the audit finds something in harmless training sets of many kinds.

Thirteen kinds, 16 consecutive seeds of each, none of which was used to choose a threshold; every
finding is false. For each set: the verdict.
"""

from __future__ import annotations

from typing import Any

from ssm_poison_lib.audit.harmless import KINDS, false_finding
from ssm_poison_lib.studies.store import Job, Study

__all__ = ["STUDY", "table"]

_SEEDS = range(1000, 1016)


def _compute(*, kind: str, seed: int) -> dict[str, Any]:
    found = false_finding(kind, seed)
    return {"verdict": found["verdict"], "false": found["false"]}


def table(content: dict[str, Any]) -> str:
    """Return false findings and sets by kind, a line each, and in all.

    Args:
        content: of the study's file.
    """
    runs = content["runs"]
    lines = []
    for kind in [*KINDS, "all"]:
        mine = [run["false"] for run in runs if kind in ("all", run["kind"])]
        lines.append(f"{kind:34} {sum(mine):3d} of {len(mine):3d}")
    return "\n".join(lines)


#: The study.
STUDY = Study(
    name="false_findings",
    function=_compute,
    jobs=tuple(
        Job(f"{list(KINDS).index(kind)}-{seed}", {"kind": kind, "seed": seed})
        for kind in KINDS
        for seed in _SEEDS
    ),
    table=table,
)
