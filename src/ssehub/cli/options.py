"""Options that several commands share, and the settings they result in."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

import click

from ..config import CONFIG_VARIABLE, GROUPS, Config, load_config, option_of, variable_of
from ..settings import Pattern, Settings, settings_of
from .help import HUB, OWN, TOKEN, note, option

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
_TOKENS = re.compile(
    r"jwks|issuer|audience|(user|channel|pattern)_claim|grant_templates|leeway_seconds|require_exp|.*token_.*"
)
ALIASES = {"control_bind": ("--bindctl",), "user_id": ("--userId",)}
_METAVARS = {"bind": "ADDRESS", "file": "FILE", "seconds": "SECONDS", "bytes": "BYTES"}

config_option = option(
    "--config",
    "config_file",
    section=HUB,
    type=click.Path(path_type=Path),
    help=f"TOML file of settings{note(CONFIG_VARIABLE)}",
)
secret_option = option(
    "--secret",
    section=TOKEN,
    default=None,
    help=f"secret that signs tokens (visible in ps: prefer a file){note(variable_of('secret'))}",
)
secret_file_option = option(
    "--secret-file",
    section=TOKEN,
    default=None,
    help=f"file of secrets, of which the first signs{note(variable_of('secret_file'))}",
)


def user_option(help: str, **options: Any) -> Callable[..., Any]:
    """Return the option for a user, in both spellings."""
    return option("--user-id", *ALIASES["user_id"], help=help, **options)


def setting_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add an option for each setting, the everyday ones first."""
    rest = [name for name in Config.model_fields if name not in EVERYDAY]
    for name in reversed([*EVERYDAY, *rest]):
        command = _setting_option(name)(command)
    return command


def _setting_option(name: str) -> Callable[..., Any]:
    setting = Config.model_fields[name]
    flag = option_of(name)
    help = f"{setting.description}{note(variable_of(name), setting.default)}"
    section = section_of(name)
    if setting.annotation is bool:
        return option(f"{flag}/--no-{flag[2:]}", name, section=section, default=None, help=help)
    return option(flag, *ALIASES.get(name, ()), name, section=section, default=None, metavar=_metavar(name), help=help)


def _metavar(name: str) -> str:
    """Return the choices of a setting, or a word for its values."""
    annotation = Config.model_fields[name].annotation
    if get_origin(annotation) is Literal:
        return f"[{'|'.join(get_args(annotation))}]"
    group = _GROUPS.get(name)
    limit = None if group is None else next(each.limit for each in settings_of(group) if each.name == name)
    if isinstance(limit, Pattern) and re.fullmatch(r"[\w|]+", limit.regex):
        return f"[{limit.regex}]"
    last_word = name.rpartition("_")[2]
    return _METAVARS.get(last_word, last_word.upper())


_GROUPS: Mapping[str, type[Settings]] = {setting.name: group for group in GROUPS for setting in settings_of(group)}
_SECTIONS = {
    "Streams": "Streams",
    "StreamLimits": "Limits of streams",
    "Retention": "Resuming",
    "Backpressure": "Slow clients",
    "Memory": "Slow clients",
    "Limits": "Requests",
    "RequestLimits": "Requests",
    "Idempotency": "The log of events",
    "LogRetention": "The log of events",
    "RunLimits": "Runs",
    "RedisOptions": "Redis",
    "TcpOptions": "Connections",
}


def section_of(name: str) -> str:
    """Return the section of `--help` that a setting is in."""
    if name in EVERYDAY:
        return OWN
    if name in _GROUPS:
        return _SECTIONS[_GROUPS[name].__name__]
    if "tls" in name:
        return "TLS"
    return "Tokens" if _TOKENS.fullmatch(name) else "Browsers, proxies and the process"


def load(config_file: Path | None, options: Mapping[str, object]) -> Config:
    """Return the settings; of `options` those count that were given. Raises ConfigError."""
    return load_config(given(options), config_file=config_file)


def given(options: Mapping[str, object]) -> dict[str, object]:
    """Return the options that were given."""
    return {name: value for name, value in options.items() if value is not None}


def signing_tokens(config: Config) -> Tokens | None:
    """Return what signs tokens with the secret of `config`, None if there is none. Raises ConfigError."""
    if not config.has_secret:
        return None
    from ..tokens import Tokens

    secrets = (config.secret.get_secret_value(),) if config.secret is not None else ()
    return Tokens(secrets, secret_file=config.secret_file, max_token_seconds=config.max_token_seconds)
