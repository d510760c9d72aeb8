"""What other systems do differently, tried on this one."""

from __future__ import annotations

import ast
import contextlib
import fcntl
import os
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from duckvec import paths, platforms, priority

ENGINE = Path(__file__).parents[1] / "extension" / "duckvec"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(b"some")
    return path


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, file: Path) -> list[str]:
    """The names of the calls that flush a file and its folder, as they are made."""
    made: list[str] = []
    real_open, real_fsync = os.open, os.fsync

    def note_open(path: Any, flags: int, *rest: Any) -> int:
        if Path(path) in (file, file.parent):
            made.append("open to write" if flags & os.O_RDWR else "open")
        return real_open(path, flags, *rest)

    def note_fsync(descriptor: int) -> None:
        made.append("fsync")
        real_fsync(descriptor)

    def note_fcntl(descriptor: int, command: int, *rest: Any) -> int:
        made.append(f"fcntl {command}")
        return 0

    monkeypatch.setattr(os, "open", note_open)
    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(fcntl, "fcntl", note_fcntl)
    return made


@pytest.mark.parametrize(
    ("system", "of_a_file", "of_its_folder"),
    [
        ("linux", ["open", "fsync"], ["open", "fsync"]),
        ("darwin", ["open", "fcntl 51"], ["open", "fsync"]),
        ("win32", ["open to write", "fsync"], []),
    ],
)
def test_each_system_flushes_in_its_way(
    monkeypatch: pytest.MonkeyPatch,
    calls: list[str],
    file: Path,
    system: str,
    of_a_file: list[str],
    of_its_folder: list[str],
) -> None:
    monkeypatch.setattr(sys, "platform", system)
    paths.fsync(file)
    assert calls == of_a_file
    calls.clear()
    paths.fsync(file.parent)
    assert calls == of_its_folder


def test_a_drive_that_cannot_be_flushed_on_macos_gets_an_fsync(
    monkeypatch: pytest.MonkeyPatch, calls: list[str], file: Path
) -> None:
    def refuse(*arguments: Any) -> int:
        raise OSError(45, "Operation not supported")

    monkeypatch.setattr(fcntl, "fcntl", refuse)
    monkeypatch.setattr(sys, "platform", "darwin")
    paths.fsync(file)
    assert calls == ["open", "fsync"]


def test_a_published_file_is_flushed_before_and_its_name_after(
    monkeypatch: pytest.MonkeyPatch, calls: list[str], file: Path
) -> None:
    target = file.with_name("0" * 32 + ".index")
    file.rename(paths.temporary_path(target))
    replace = os.replace

    def note(*arguments: Any) -> None:
        calls.append("rename")
        replace(*arguments)

    monkeypatch.setattr(os, "replace", note)
    paths.publish([target])
    assert calls == ["fsync", "rename", "open", "fsync"]
    assert target.read_bytes() == b"some"


@pytest.mark.parametrize("system", ["linux", "darwin", "win32"])
def test_a_thread_of_low_priority_is_one_of_its_own(
    monkeypatch: pytest.MonkeyPatch, system: str
) -> None:
    monkeypatch.setattr(sys, "platform", system)
    usual = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    def work() -> tuple[int, int]:
        thread = threading.get_native_id()
        return thread, os.getpriority(os.PRIO_PROCESS, thread)

    with contextlib.ExitStack() as held:
        thread, nice = priority.call_apart(work, lambda: None, held, gently=True)
    assert thread != threading.get_native_id()
    assert nice == (min(19, usual + platforms.NICE) if system == "linux" else usual)
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == usual


def test_a_system_without_fork_needs_nothing_after_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(os, "register_at_fork")
    platforms.call_after_fork(lambda: None)


def test_only_one_module_asks_which_system_it_runs_on() -> None:
    asking = set()
    for path in ENGINE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                name = f"{node.value.id}.{node.attr}"
                if name in ("sys.platform", "os.name", "os.uname", "platform.system"):
                    asking.add(path.name)
    assert asking == {"platforms.py"}
