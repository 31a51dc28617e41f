"""Compiled functions where no folder can be written, and where what was kept is damaged."""

import logging

import numba.core.caching
import pytest
import warm
from numba.core import config

from ssm_poison_lib import _jit
from ssm_poison_lib._engines import epochs, rkc, rosenbrock


def twice_plus(x):
    return 2.0 * x + 0.5


def kept(folder):
    """The files of machine code that Numba keeps in a folder, and their index."""
    return sorted(folder.rglob("*.nbc")), sorted(folder.rglob("*.nbi"))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(config, "CACHE_DIR", str(tmp_path))
    return tmp_path


def test_machine_code_is_kept_and_read_again(folder):
    first = _jit.compiled()(twice_plus)
    assert first(1.0) == 2.5
    code, index = kept(folder)
    assert (len(code), len(index)) == (1, 1)
    again = _jit.compiled()(twice_plus)
    assert again(1.0) == 2.5
    assert sum(again.stats.cache_hits.values()) == 1
    assert kept(folder)[0] == code


@pytest.mark.parametrize("part", ["code", "index"])
@pytest.mark.parametrize("damage", ["empty", "noise", "truncated", "flipped"])
def test_damaged_files_are_built_again(folder, caplog, part, damage):
    assert _jit.compiled()(twice_plus)(1.0) == 2.5
    code, index = kept(folder)
    path = (code if part == "code" else index)[0]
    whole = path.read_bytes()
    middle = len(whole) // 2
    path.write_bytes(
        {
            "empty": b"",
            "noise": b"no pickle at all",
            "truncated": whole[:middle],
            "flipped": whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :],
        }[damage]
    )
    with caplog.at_level(logging.INFO, logger="ssm_poison_lib"):
        assert _jit.compiled()(twice_plus)(1.0) == 2.5
    assert part == "index" or "cannot be read and is built again" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="ssm_poison_lib"):  # it has been mended
        assert _jit.compiled()(twice_plus)(1.0) == 2.5
    assert caplog.text == ""


def test_without_a_folder_functions_are_compiled_all_the_same(monkeypatch, caplog):
    def refuse(_self):
        raise PermissionError("read-only")

    monkeypatch.setattr(numba.core.caching._CacheLocator, "ensure_cache_path", refuse)
    with caplog.at_level(logging.INFO, logger="ssm_poison_lib"):
        assert _jit.compiled()(twice_plus)(1.0) == 2.5
    assert "compiled code is not kept" in caplog.text
    assert "NUMBA_CACHE_DIR" in caplog.text


def test_a_disk_that_is_full_later_stops_nothing(folder, monkeypatch, caplog):
    function = _jit.compiled()(twice_plus)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(numba.core.caching.IndexDataCacheFile, "_open_for_write", full)
    with caplog.at_level(logging.INFO, logger="ssm_poison_lib"):
        assert function(1.0) == 2.5
    assert "cannot be kept" in caplog.text
    assert kept(folder) == ([], [])


def test_a_change_in_any_engine_compiles_all_of_them_anew(monkeypatch, folder):
    """Numba alone looks at the file of the function, not at those of the functions it calls."""
    monkeypatch.setattr(_jit, "_CheckedFile", lambda *arguments: arguments)

    def stamp():
        return _jit._Cache(twice_plus)._cache_file[2]

    before = stamp()
    assert before == stamp()
    monkeypatch.setattr(_jit, "_STAMP", "another sign in another file")
    assert stamp() != before


def test_a_part_is_taken_into_the_code_that_calls_it(folder):
    """Nothing is kept of its own; the caller's file holds all that it needs."""
    part = _jit.compiled(part=True)(twice_plus)

    def caller():
        def around(x):
            return part(x) + part(2.0 * x)

        return _jit.compiled()(around)

    assert caller()(1.0) == 7.0
    code, index = kept(folder)
    assert [len(code), len(index)] == [1, 1]
    assert code[0].name.startswith("test_jit.test_a_part")


def test_make_book_compiles_what_python_calls(capsys):
    """Once for every precision, so that no chapter and no reader compiles it."""
    plain = (rosenbrock.factor_gram, rosenbrock._integrate, rkc.integrate)
    precise = (epochs.train, epochs.network_outputs)
    for engine in plain + precise:
        engine._reset_overloads()  # what other tests have called; it is read again from its file
        assert not engine.signatures
    warm.main()
    assert "Engines compiled and kept" in capsys.readouterr().out
    for engine in plain:
        assert engine.signatures
    for engine in precise:
        assert {str(signature[0].dtype) for signature in engine.signatures} >= {"float32"}
    assert {str(signature[0].dtype) for signature in epochs.train.signatures} >= {"float64"}
