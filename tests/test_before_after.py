"""The script that measures two revisions: what it runs is measured, and a program that fails says
where.
"""

from __future__ import annotations

import before_after
import pytest


def test_every_row_has_a_program_for_both_trees():
    assert len({row.name for row in before_after.ROWS}) == len(before_after.ROWS)
    for row in before_after.ROWS:
        for program in (row.before, row.after):
            compile(before_after.COMMON + program, row.name, "exec")
            assert "print(" in program


def test_a_program_is_run_in_its_tree(tmp_path):
    """Its folder for machine code is the one that is given, or an empty one."""
    (tmp_path / "where.py").write_text("number = 42.0\n")
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "kept").touch()
    shows = "import os, where; print(where.number + len(os.listdir(os.environ['NUMBA_CACHE_DIR'])))"
    for fresh in (True, False):
        found = before_after.measured(shows, tmp_path, cache, fresh=fresh, common="")
        assert found == 42.0 + (not fresh)
    with pytest.raises(RuntimeError, match="No module named 'lost'"):
        before_after.measured("import lost", tmp_path, cache, common="")


def test_a_row_of_the_table():
    assert before_after.line("name", 2.0, 0.5).split() == ["name", "2", "0.5", "4.00"]
