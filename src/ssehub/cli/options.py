"""Options that several commands share, and the settings they result in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..config import CONFIG_VARIABLE, Config, load_config, option_of, variable_of

if TYPE_CHECKING:
    from ..tokens import Tokens

EVERYDAY = (
    "bind",
    "control_bind",
    "secret",
    "secret_file",
    "control_key",
    "control_key_file",
    "control_keys_file",
    "broker",
)
ALIASES = {"control_bind": ("--bindctl",), "user_id": ("--userId",)}
_METAVARS = {"bind": "ADDRESS", "file": "FILE", "seconds": "SECONDS", "bytes": "BYTES"}

config_option = click.option(
    "--config", "config_file", type=click.Path(path_type=Path), help=f"TOML file of settings  [{CONFIG_VARIABLE}]"
)
secret_option = click.option(
    "--secret",
    default=None,
    help=f"secret that signs tokens (visible in ps: prefer a file)  [{variable_of('secret')}]",
)
secret_file_option = click.option(
    "--secret-file", default=None, help=f"file of secrets, of which the first signs  [{variable_of('secret_file')}]"
)
control_key_option = click.option(
    "--control-key",
    default=None,
    help=f"control key of the hub (visible in ps: prefer a file)  [{variable_of('control_key')}]",
)
control_key_file_option = click.option(
    "--control-key-file", default=None, help=f"file that contains the control key  [{variable_of('control_key_file')}]"
)


def setting_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add an option for each setting, the everyday ones first."""
    rest = [name for name in Config.model_fields if name not in EVERYDAY]
    for name in reversed([*EVERYDAY, *rest]):
        command = _setting_option(name)(command)
    return command


def _setting_option(name: str) -> Callable[..., Any]:
    setting = Config.model_fields[name]
    flag = option_of(name)
    help = f"{setting.description}  [{variable_of(name)}{_default(setting.default)}]"
    if setting.annotation is bool:
        return click.option(f"{flag}/--no-{flag[2:]}", name, default=None, help=help)
    last_word = name.rpartition("_")[2]
    metavar = _METAVARS.get(last_word, last_word.upper())
    return click.option(flag, *ALIASES.get(name, ()), name, default=None, metavar=metavar, help=help)


def _default(value: object) -> str:
    if value is None or value == []:
        return ""
    return f"; default {str(value).lower() if isinstance(value, bool) else value}"


def load(config_file: Path | None, options: Mapping[str, object]) -> Config:
    """Return the settings; of `options` those count that were given. Raises ConfigError."""
    given = {name: value for name, value in options.items() if value is not None}
    return load_config(given, config_file=config_file)


def signing_tokens(config: Config) -> Tokens | None:
    """Return what signs tokens with the secret of `config`, None if there is none. Raises ConfigError."""
    if not config.has_secret:
        return None
    from ..tokens import Tokens

    secrets = (config.secret.get_secret_value(),) if config.secret is not None else ()
    return Tokens(secrets, secret_file=config.secret_file, max_token_seconds=config.max_token_seconds)
