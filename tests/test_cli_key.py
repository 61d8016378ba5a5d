"""`ssehub key new`: a key and the entry for it, which never get mixed up."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from click.testing import CliRunner

from commands import run
from ssehub import ControlKeys
from ssehub.cli import ssehub
from ssehub.errors import ConfigError
from ssehub.grant import Grant
from ssehub.rights import ControlKey, Right


def test_new_key_is_printed_once_apart_from_its_entry_which_can_be_appended(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    orders = run("key", "new", "orders", "--rights", "publish, token", "--channels", "orders.*,news")
    ops = CliRunner().invoke(ssehub, ["key", "new", "ops", "--rights", "admin"])

    path.write_text(orders.stdout + ops.stdout)

    keys = ControlKeys(file=path)
    found = []
    for printed, shown in ((orders.stdout, orders.stderr), (ops.stdout, ops.stderr)):
        key = shown.strip().rpartition(" ")[2]
        assert len(key) == 43 and key not in printed
        found.append(keys.find(key.encode()))
    grant = Grant(frozenset(["news"]), ("orders.",))
    assert found == [
        ControlKey("orders", frozenset([Right.PUBLISH, Right.TOKEN]), grant),
        ControlKey("ops", frozenset([Right.ADMIN])),
    ]


def test_key_is_written_to_a_new_file_that_only_its_owner_can_read(tmp_path: Path) -> None:
    path = tmp_path / "orders.key"
    arguments = ["key", "new", "orders", "--rights", "publish", "--key-file", str(path)]

    made, again = (CliRunner().invoke(ssehub, arguments, standalone_mode=False) for _ in range(2))

    assert (made.exit_code, made.stderr) == (0, "")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    key = path.read_text()
    assert len(key) == 44 and key.strip() not in made.output
    assert str(again.exception) == f"--key-file {path} can't be written: File exists"
    assert path.read_text() == key


REFUSED = {
    "name": (["a.b", "--rights", "publish"], "the name must have 1 to 32 letters, digits, - and _"),
    "taken": (["control_key", "--rights", "publish"], "the name is control_key, which is the name of the key in"),
    "right": (["a", "--rights", "emit"], "keys.a: unknown right 'emit': expected publish, token, disconnect"),
    "no-rights": (["a", "--rights", ","], "keys.a has no rights"),
    "no-channels": (["a", "--rights", "publish", "--channels", ""], "keys.a: channels is empty"),
    "all": (["a", "--rights", "publish", "--channels", "*"], "leave channels out for all channels"),
    "middle": (["a", "--rights", "publish", "--channels", "a*b"], "channels 'a*b' is not a pattern"),
}


@pytest.mark.parametrize(("arguments", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_entry_that_the_file_could_not_have_is_refused_and_nothing_is_printed(
    arguments: list[str], message: str
) -> None:
    result = CliRunner().invoke(ssehub, ["key", "new", *arguments], standalone_mode=False)

    assert isinstance(result.exception, ConfigError) and message in str(result.exception)
    assert result.output == ""
