"""Every setting, once: type, default, unit, check, help; from the command line, the environment or a TOML file."""

from __future__ import annotations

import difflib
import itertools
import os
import re
import tomllib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeVar

from pydantic import AfterValidator, Field, PlainSerializer, SecretStr, ValidationError, create_model, field_validator
from pydantic.functional_validators import BeforeValidator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from .address import Address
from .errors import ConfigError
from .settings import (
    Backpressure,
    Idempotency,
    Limits,
    LogRetention,
    RedisOptions,
    Retention,
    Setting,
    Settings,
    Streams,
    TcpOptions,
    settings_of,
)

G = TypeVar("G", bound=Settings)

PREFIX = "SSEHUB_"
CONFIG_VARIABLE = "SSEHUB_CONFIG"
OFF = "off"
GROUPS: tuple[type[Settings], ...] = (
    Backpressure,
    Idempotency,
    Limits,
    LogRetention,
    RedisOptions,
    Retention,
    Streams,
    TcpOptions,
)
_PASSWORD = re.compile(r"//.*@")


def _address(value: object) -> object:
    if isinstance(value, str):
        return Address.parse(value)
    if isinstance(value, Address):
        return value
    raise ValueError('an address is text, such as "127.0.0.1:8000"')


def _address_or_off(value: object) -> object:
    return None if value == OFF else _address(value)


def _list(value: object) -> object:
    return [item.strip() for item in value.split(",") if item.strip()] if isinstance(value, str) else value


ListeningAddress = Annotated[Address, NoDecode, BeforeValidator(_address), PlainSerializer(str)]
OptionalAddress = Annotated[Address | None, NoDecode, BeforeValidator(_address_or_off), PlainSerializer(str)]
Names = Annotated[list[str], NoDecode, BeforeValidator(_list)]
PositiveInt = Annotated[int, Field(gt=0)]
Seconds = Annotated[float, Field(gt=0, lt=2**31, allow_inf_nan=False)]


def _declared() -> Any:
    """Return a model with every setting of all groups."""
    declared: dict[str, Any] = {}
    for setting in itertools.chain.from_iterable(map(settings_of, GROUPS)):
        checked = Annotated[setting.kind, AfterValidator(partial(_checked, setting))]  # type: ignore[name-defined]  # made at run time
        declared[setting.name] = (checked, Field(setting.default, description=setting.description))
    return create_model("_Declared", __base__=BaseSettings, **declared)


def _checked(setting: Setting, value: object) -> object:
    setting.check(value)
    return value


if TYPE_CHECKING:
    _Declared = BaseSettings
else:
    _Declared = _declared()


class Config(_Declared):
    """The settings of a hub. Field names are the TOML keys; `SSEHUB_` and the name in capitals, the variables."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True, hide_input_in_errors=True)

    bind: ListeningAddress = Field(
        Address("127.0.0.1", 8000),
        description="where browsers listen: HOST:PORT, :PORT (every interface), [IPv6]:PORT or unix:PATH",
    )
    control_bind: OptionalAddress = Field(
        Address("127.0.0.1", 8001),
        description="where backends publish and ask for tokens, or off; off loopback a control key is required",
    )
    secret: SecretStr | None = Field(
        None,
        description="signs and verifies tokens; made anew at each start if none is given (shown by ps: prefer a file)",
    )
    secret_file: Path | None = Field(None, description="the file that holds the secret")
    control_key: SecretStr | None = Field(
        None, description="what the control app requires as 'Authorization: Bearer' (shown by ps: prefer a file)"
    )
    control_key_file: Path | None = Field(None, description="the file that holds the control key")
    broker: str = Field(
        "memory://",
        description="the log that carries the events: memory://; sqlite:///PATH, which survives restarts; or for many "
        "processes redis://HOST:PORT, rediss://, redis+unix:///PATH, redis+sentinel://HOST:PORT,HOST:PORT/NAME",
    )
    workers: PositiveInt = Field(1, description="processes that serve the same addresses; more than one need Redis")
    require_exp: bool = Field(True, description="refuse tokens without 'exp'; without it they are valid for ever")
    token_lifetime_seconds: Seconds = Field(
        86_400, description="how long a token is valid if 'exp' is left out of /token/"
    )
    token_cookie: str | None = Field(
        None, min_length=1, description="the cookie that may carry the token; none if not set"
    )
    cors_origins: Names = Field([], description="origins whose pages may listen from elsewhere, or * for every one")
    control_hosts: Names = Field([], description="more names by which the control app may be called (Host)")
    drain_seconds: Seconds = Field(10, description="time in which streams are ended and connections closed at SIGTERM")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="which log lines go to stderr")

    def group(self, kind: type[G]) -> G:
        """Return the settings of one group, such as `Retention`, as the hub, its broker and its apps take them."""
        return kind(**{setting.name: getattr(self, setting.name) for setting in settings_of(kind)})

    @property
    def has_log_of_one_process(self) -> bool:
        """Whether the broker's log can't be shared: a second process would be a hub of its own."""
        return self.broker.startswith(("memory:", "sqlite:"))

    def with_secret(self, secret: str) -> Self:
        return self.model_copy(update={"secret": SecretStr(secret)})

    @field_validator("broker")
    @classmethod
    def _known_broker(cls, value: str) -> str:
        if not re.fullmatch(r"memory://|sqlite:///.+|rediss?://.+|redis\+(unix|sentinel)://.+", value):
            raise ValueError("there is no such broker: use memory://, sqlite:///PATH or redis://HOST:PORT")
        return value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings, env_settings)


def load_config(overrides: Mapping[str, object], *, config_file: Path | None = None) -> Config:
    """The settings: `overrides` (the command line), else the environment, else `config_file`, else the defaults.

    Raises ConfigError: one line that names the setting as it was given, what was wrong and what would do.
    """
    _refuse_unknown("variable", PREFIX, {name for name in os.environ if name.startswith(PREFIX)} - {CONFIG_VARIABLE})
    if config_file is None and CONFIG_VARIABLE in os.environ:
        config_file = Path(os.environ[CONFIG_VARIABLE])
    from_file = _read_file(config_file) if config_file else {}
    given = dict(overrides)
    for name, value in from_file.items():
        if name not in given and PREFIX + name.upper() not in _environment():
            given[name] = value
    try:
        config = Config(**given)  # type: ignore[arg-type]  # pydantic checks what comes from outside
    except ValidationError as exc:
        raise ConfigError(_first_error(exc, overrides, from_file, config_file)) from None
    return _with_files(config)


def _environment() -> set[str]:
    return {name.upper() for name in os.environ}


def _refuse_unknown(kind: str, prefix: str, names: set[str]) -> None:
    known = [prefix + (name.upper() if prefix else name) for name in Config.model_fields]
    for name in sorted(names):
        if (name.upper() if prefix else name) not in known:
            close = difflib.get_close_matches(name, known, 1)
            raise ConfigError(f"{kind} {name} is no setting{f': did you mean {close[0]}?' if close else ''}")


def _read_file(path: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise ConfigError(f"can't read {path}: {exc.strerror}") from exc
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        raise ConfigError(f"{path} is no TOML: {exc}") from exc
    _refuse_unknown(f"{path}: key", "", set(values))
    return values


def _first_error(
    exc: ValidationError, overrides: Mapping[str, object], from_file: Mapping[str, Any], path: Path | None
) -> str:
    """One line for the first thing that was wrong, with its source and, unless it is a secret, its value."""
    error = exc.errors(include_url=False, include_context=False)[0]
    name = str(error["loc"][0])
    if name in overrides:
        source, value = f"--{name.replace('_', '-')}", overrides[name]
    elif PREFIX + name.upper() in _environment():
        source, value = PREFIX + name.upper(), os.environ.get(PREFIX + name.upper())
    else:
        source, value = f"{path}: {name}", from_file.get(name)
    shown = "" if name in ("secret", "control_key") else f" {_PASSWORD.sub('//...@', repr(value))}"
    reason = str(error["msg"]).removeprefix("Value error, ")
    return f"{source}{shown}: {reason[:1].lower()}{reason[1:]}"


def _with_files(config: Config) -> Config:
    """`config` with the secrets that stand in files."""
    found = {}
    for name in ("secret", "control_key"):
        path: Path | None = getattr(config, f"{name}_file")
        if path is None:
            continue
        if getattr(config, name) is not None:
            raise ConfigError(f"{name} and {name}_file are both given: leave one out")
        try:
            found[name] = SecretStr(path.read_text(encoding="utf-8").rstrip("\r\n"))
        except (OSError, UnicodeDecodeError) as exc:
            reason = exc.strerror if isinstance(exc, OSError) else "it is no UTF-8"
            raise ConfigError(f"{name}_file {path} can't be read: {reason}") from exc
    config = config.model_copy(update=found)
    if config.control_key is not None and not config.control_key.get_secret_value().strip():
        raise ConfigError("control_key is empty: give a random string, or leave it out")
    return config
