"""The settings of a hub as given on the command line, in the environment or in a TOML file."""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    Field,
    PlainSerializer,
    PrivateAttr,
    SecretStr,
    ValidationError,
    ValidationInfo,
    create_model,
    field_validator,
)
from pydantic.functional_validators import BeforeValidator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from .address import Address
from .errors import ConfigError
from .settings import (
    BROKERS,
    LEEWAY,
    Backpressure,
    ComebackEnd,
    Idempotency,
    Limits,
    LogRetention,
    Memory,
    RedisOptions,
    RequestLimits,
    Retention,
    RunLimits,
    Settings,
    StreamLimits,
    Streams,
    TcpOptions,
    settings_of,
)
from .urls import without_credentials

G = TypeVar("G", bound=Settings)
C = TypeVar("C", bound=BaseSettings)

PREFIX = "SSEHUB_"
CONFIG_VARIABLE = "SSEHUB_CONFIG"
CONTROL_URL_VARIABLE = "SSEHUB_CONTROL_URL"
TOKEN_VARIABLE = "SSEHUB_TOKEN"
COMMAND_VARIABLES = (CONFIG_VARIABLE, CONTROL_URL_VARIABLE, TOKEN_VARIABLE)
"""Variables of commands, which are not settings of a hub."""
OFF = "off"
DEFAULT = "default"
GROUPS: tuple[type[Settings], ...] = (
    Streams,
    StreamLimits,
    Retention,
    Backpressure,
    Memory,
    Limits,
    RequestLimits,
    Idempotency,
    LogRetention,
    RunLimits,
    RedisOptions,
    TcpOptions,
)
_HINTS = {f"{PREFIX}{name}": f"set {PREFIX}BIND=HOST:PORT" for name in ("PORT", "HOST")}
_SERVICE = re.compile(
    rf"{PREFIX}(?:[A-Z0-9_]+_)?(?:SERVICE_HOST|SERVICE_PORT(?:_[A-Z0-9_]+)?|"
    r"PORT_\d+_(?:TCP|UDP|SCTP)(?:_(?:PROTO|PORT|ADDR))?)"
)
_SERVICE_URL = re.compile(rf"{PREFIX}(?:[A-Z0-9_]+_)?PORT=(?:tcp|udp|sctp)://.*")
_GROUP_SETTINGS = {setting.name: setting for group in GROUPS for setting in settings_of(group)}
_PYDANTIC_WORDING = re.compile(r"^Value error, |^((?:Input|String) should)\b")
"""The beginnings of pydantic's messages: `Input should be greater than 0` becomes `must be greater than 0`."""


def _address(value: object) -> object:
    if isinstance(value, str):
        return Address.parse(value)
    if isinstance(value, Address):
        return value
    raise ValueError('must be a string, such as "127.0.0.1:8000"')


def _address_or_off(value: object) -> object:
    return None if value == OFF else _address(value)


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


def _list(value: object) -> object:
    return [item.strip() for item in value.split(",") if item.strip()] if isinstance(value, str) else value


ListeningAddress = Annotated[Address, NoDecode, BeforeValidator(_address), PlainSerializer(str)]
OptionalAddress = Annotated[Address | None, NoDecode, BeforeValidator(_address_or_off), PlainSerializer(str)]
Names = Annotated[list[str], NoDecode, BeforeValidator(_list)]
PositiveInt = Annotated[int, Field(gt=0)]
LogLevel = Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(_lower)]
LogFormat = Annotated[Literal["text", "json"], BeforeValidator(_lower)]
Seconds = Annotated[float, Field(gt=0, lt=2**31, allow_inf_nan=False)]


def _with_groups(own: type[C]) -> type[C]:
    """Add the settings of every group to the fields of `own`."""
    fields: dict[str, Any] = {
        setting.name: (setting.annotation, Field(setting.default, description=setting.description))
        for setting in _GROUP_SETTINGS.values()
    }
    return create_model(own.__name__, __base__=own, __module__=own.__module__, __doc__=own.__doc__, **fields)


@_with_groups
class Config(BaseSettings):
    """Every setting: those of the command itself, declared here, and those of all groups.

    A field's name is its TOML key; its environment variable is `SSEHUB_` and the name in capitals. The settings of a
    group are read through `group`, where type checkers know them.
    """

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True, hide_input_in_errors=True)

    bind: ListeningAddress = Field(
        Address("127.0.0.1", 8000),
        description="where browsers connect: HOST:PORT, :PORT (every interface), [IPv6]:PORT or unix:PATH",
    )
    control_bind: OptionalAddress = Field(
        Address("127.0.0.1", 8001),
        description="where backends publish and request tokens, or off; needs a control key unless only this machine "
        "can reach it",
    )
    secret: SecretStr | None = Field(
        None,
        description="signs and verifies tokens; if not set, a random one is generated at each start (visible in "
        "ps: prefer a file)",
    )
    secret_file: Path | None = Field(
        None, description="file of secrets, one on each line: the first signs, all verify; read again when it changes"
    )
    jwks: str | None = Field(
        None,
        description="public keys of an identity provider whose tokens are accepted, too: a JWKS file, read again when "
        "it changes, or an https:// URL",
    )
    issuer: str | None = Field(None, description="'iss' that tokens by jwks must have")
    audience: Names = Field([], description="values of 'aud' of which tokens by jwks must have one")
    user_claim: str = Field("sub", min_length=1, description="claim of tokens by jwks that contains the user")
    channel_claim: str | None = Field(
        None, min_length=1, description="claim of tokens by jwks that contains a channel or a list of channels"
    )
    grant_templates: Names = Field(
        [], description="channels that tokens by jwks grant, made from their claims, such as user.{sub}"
    )
    pattern_claim: str | None = Field(
        None, min_length=1, description="claim of tokens by jwks that contains a pattern or a list of patterns"
    )
    max_token_seconds: Seconds | None = Field(
        None,
        description="longest lifetime of a token, from 'iat' to 'exp', and not less than token_lifetime_seconds; if "
        "not set, unlimited",
    )
    control_key: SecretStr | None = Field(
        None,
        description="key of at least 16 bytes that the control app requires as 'Authorization: Bearer KEY' (visible in "
        "ps: prefer a file)",
    )
    control_key_file: Path | None = Field(None, description="file that contains the control key")
    control_keys_file: Path | None = Field(
        None,
        description="TOML file of named control keys, each with its hash, its rights and its channels; read again when "
        "it changes",
    )
    tls_cert_file: Path | None = Field(
        None,
        description="certificate in PEM with which the client app is served over TLS, followed by those of its "
        "issuers; read again when it changes",
    )
    tls_key_file: Path | None = Field(
        None, description="private key of tls_cert_file, in PEM and not encrypted; read again when it changes"
    )
    control_tls_cert_file: Path | None = Field(
        None, description="certificate with which the control app is served over TLS, as tls_cert_file"
    )
    control_tls_key_file: Path | None = Field(None, description="private key of control_tls_cert_file, as tls_key_file")
    broker: str = Field(
        "memory://",
        description="log that carries the events: memory://; sqlite:///PATH, which survives restarts; or, for several "
        "processes, redis://HOST:PORT, rediss://, redis+unix:///PATH, redis+sentinel://HOST:PORT,HOST:PORT/NAME",
    )
    workers: PositiveInt = Field(1, description="processes that serve the same addresses; more than one requires Redis")
    require_exp: bool = Field(True, description="reject tokens without 'exp', which would never expire")
    leeway_seconds: float = Field(
        5,
        description="how far the clocks of machines that sign tokens may differ from this one's: when a stream begins, "
        "'nbf' and 'iat' may be that far in the future, and 'exp' that far in the past",
    )
    token_lifetime_seconds: Seconds = Field(
        86_400, description="how long a token from /token/ is valid if the request does not set 'exp'"
    )
    token_cookie: str | None = Field(
        None, min_length=1, description="name of a cookie that may carry the token; if not set, cookies are ignored"
    )
    token_cookie_path: str | None = Field(
        None,
        description="path of the cookie that /events/login sets; if not set, that of the request without /login. Set "
        "it behind a proxy that changes the path, such as /api/sse/",
    )
    token_cookie_secure: bool = Field(
        True,
        description="let browsers send the cookie that /events/login sets over TLS only. Pages of http://localhost get "
        "one without this",
    )
    cors_origins: Names = Field([], description="other origins whose pages may open streams, or * for all")
    comeback_end: ComebackEnd = Field(
        "auto",
        description="how to end the response of a client that should reconnect: complete (clean), cut off (cut), or as "
        "the client needs it (auto)",
    )
    control_hosts: Names = Field([], description="further host names by which clients may address the control app")
    trusted_proxies: Names = Field(
        [],
        description="addresses and networks of proxies, or unix, that are believed when they say who their client is",
    )
    proxy_protocol: bool = Field(
        False, description="require the PROXY protocol (version 1 or 2) of connections from trusted_proxies"
    )
    drain_seconds: Seconds = Field(10, description="time to end all streams and close all connections after SIGTERM")
    log_level: LogLevel = Field(
        "info",
        description="least severe messages logged to stderr: debug, info, warning or error, in any case; read again "
        "from the config file when that changes",
    )
    log_format: LogFormat = Field(
        "text",
        description="form of the lines of the log: text, or json with one object on each line; read again as log_level",
    )
    _file: ConfigFile | None = PrivateAttr(None)

    @property
    def file(self) -> ConfigFile | None:
        """The file that the settings were read from, None if there is none."""
        return self._file

    def group(self, kind: type[G]) -> G:
        """Return the settings of one group, such as `Retention`."""
        return kind(**{setting.name: getattr(self, setting.name) for setting in settings_of(kind)})

    @property
    def has_log_of_one_process(self) -> bool:
        """True if processes can't share the broker's log, so that a second process would be a separate hub."""
        return self.broker.startswith(("memory:", "sqlite:"))

    @property
    def has_secret(self) -> bool:
        """True if there is a secret to sign tokens with."""
        return self.secret is not None or self.secret_file is not None

    @property
    def requires_control_key(self) -> bool:
        """True if there are control keys, of either kind."""
        return self.control_key is not None or self.control_keys_file is not None

    def with_secret(self, secret: str) -> Self:
        return self.model_copy(update={"secret": SecretStr(secret)})

    @field_validator("*")
    @classmethod
    def _check_limit(cls, value: object, info: ValidationInfo) -> object:
        if info.field_name in _GROUP_SETTINGS:
            _GROUP_SETTINGS[info.field_name].check(value)
        return value

    @field_validator("leeway_seconds")
    @classmethod
    def _check_leeway(cls, value: float) -> float:
        LEEWAY.check(value)
        return value

    @field_validator("broker")
    @classmethod
    def _check_broker(cls, value: str) -> str:
        if not re.fullmatch(r"memory://|sqlite:///.+|rediss?://.+|redis\+(unix|sentinel)://.+", value):
            raise ValueError(f"unknown broker: use {BROKERS}")
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


def option_of(name: str) -> str:
    """Return the command-line option of the setting `name`."""
    return f"--{name.replace('_', '-')}"


def variable_of(name: str) -> str:
    """Return the environment variable of the setting `name`."""
    return PREFIX + name.upper()


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """A file of settings, and the settings of the command line, which count before those of the file."""

    path: Path
    text: str
    """Its content when it was first read."""
    overrides: Mapping[str, object]

    def parse(self, text: str) -> Config:
        """Return the settings if the file contains `text`. What is in files that it names is not read.

        Raises ConfigError, which names the line of the file.
        """
        return _parse(self.overrides, text)


def load_config(overrides: Mapping[str, object], *, config_file: Path | None = None) -> Config:
    """Return the settings: each from `overrides` (the command line), the environment, `config_file` or its default.

    The first of these that sets it wins. Raises ConfigError with one line that names the setting as it was given,
    what is wrong with it and what is expected.
    """
    _reject_unknown_variables()
    path = config_file or _file_of_environment()
    if path is None:
        return _with_files(_parse(overrides))
    text = _read_file(path)
    config = _parse(overrides, text, f"{path}: ")
    config._file = ConfigFile(path, text, overrides)
    return _with_files(config)


def _parse(overrides: Mapping[str, object], text: str = "", prefix: str = "") -> Config:
    """Return the settings if the file contains `text`. Messages about the file begin with `prefix`."""
    from_file = _values(text, prefix)
    environment = {name.upper() for name in os.environ}
    used = {name: value for name, value in from_file.items() if variable_of(name) not in environment}
    try:
        return Config(**{**used, **overrides})
    except ValidationError as exc:
        raise ConfigError(_first_error(exc, overrides, from_file, text, prefix)) from None


def sources_of(overrides: Mapping[str, object], *, config_file: Path | None = None) -> dict[str, str]:
    """Return where each setting comes from that `load_config` returns: an option, a variable, the file or its default.

    Raises ConfigError if the file can't be read.
    """
    config_file = config_file or _file_of_environment()
    from_file = _values(_read_file(config_file), f"{config_file}: ") if config_file else {}
    variables = {name.upper(): name for name in os.environ}

    def source(name: str) -> str:
        if name in overrides:
            return option_of(name)
        if variable_of(name) in variables:
            return variables[variable_of(name)]
        return str(config_file) if name in from_file else DEFAULT

    return {name: source(name) for name in Config.model_fields}


def _file_of_environment() -> Path | None:
    return Path(os.environ[CONFIG_VARIABLE]) if CONFIG_VARIABLE in os.environ else None


def _reject_unknown_variables() -> None:
    known = [*map(variable_of, Config.model_fields), *COMMAND_VARIABLES]
    ignored = kubernetes_variables()
    for name in sorted(os.environ):
        if name.startswith(PREFIX) and name.upper() not in known and name not in ignored:
            raise ConfigError(f"unknown variable {name}: {_suggestion(name, known)}")


def kubernetes_variables() -> list[str]:
    """Return the variables that Kubernetes sets in every pod because a Service is named `ssehub`, or `ssehub-…`."""
    settings = set(map(variable_of, Config.model_fields))
    return [
        name
        for name, value in sorted(os.environ.items())
        if name not in settings and (_SERVICE.fullmatch(name) or _SERVICE_URL.fullmatch(f"{name}={value}"))
    ]


def _suggestion(name: str, known: Iterable[str]) -> str:
    if name in _HINTS:
        return _HINTS[name]
    close = difflib.get_close_matches(name, known, 1)
    return f"did you mean {close[0]}?" if close else "there is no such setting"


def _read_file(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as exc:
        raise ConfigError(f"can't read {path}: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        raise ConfigError(f"{path}: not valid TOML: {exc}") from exc


def _values(text: str, prefix: str) -> dict[str, Any]:
    """Return the settings that a file has that contains `text`."""
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        raise ConfigError(f"{prefix}not valid TOML: {exc}") from None
    for name in values:
        if name not in Config.model_fields:
            raise ConfigError(
                f"{prefix}{_line_of(name, text)}unknown key {name}: {_suggestion(name, Config.model_fields)}"
            )
    return values


def _line_of(name: str, text: str) -> str:
    """Return where a file that contains `text` sets `name`, as the beginning of a message; tomllib does not say."""
    found = re.search(rf"^[ \t]*\[*[\"']?{re.escape(name)}[\"']?[ \t]*[=.\]]", text, re.MULTILINE)
    return "" if found is None else f"line {text.count(chr(10), 0, found.start()) + 1}: "


def _first_error(
    exc: ValidationError, overrides: Mapping[str, object], from_file: Mapping[str, Any], text: str, prefix: str
) -> str:
    """Return one line for the first error: the setting as it was given, its value unless it is a secret, the reason."""
    error = exc.errors(include_url=False, include_context=False)[0]
    name = str(error["loc"][0])
    variable = next((given for given in os.environ if given.upper() == variable_of(name)), None)
    if name in overrides:
        source, value = option_of(name), overrides[name]
    elif variable is not None:
        source, value = variable, os.environ[variable]
    else:
        source, value = f"{prefix}{_line_of(name, text)}{name}", from_file[name]
    shown = "" if name in ("secret", "control_key") else f" {_shown(name, value)}"
    reason = _PYDANTIC_WORDING.sub(lambda found: "must" if found[1] else "", error["msg"])
    return f"{source}{shown}: {reason}"


def _shown(name: str, value: object) -> str:
    return repr(without_credentials(str(value)) if name == "broker" else value)


def _with_files(config: Config) -> Config:
    """Return `config` with the control key that is in a file. The secrets in a file may change: `Tokens` reads them."""
    for name in ("secret", "control_key"):
        if getattr(config, name) is not None and getattr(config, f"{name}_file") is not None:
            raise ConfigError(f"{name} and {name}_file are both given: remove one")
    for prefix in ("", "control_"):
        _check_pair(config, f"{prefix}tls_cert_file", f"{prefix}tls_key_file")
    path = config.control_key_file
    if path is not None:
        try:
            key = SecretStr(path.read_text(encoding="utf-8").rstrip("\r\n"))
        except (OSError, UnicodeDecodeError) as exc:
            reason = exc.strerror if isinstance(exc, OSError) else "it is not UTF-8"
            raise ConfigError(f"control_key_file {path} can't be read: {reason}") from exc
        config = config.model_copy(update={"control_key": key})
    if config.control_key is not None and not config.control_key.get_secret_value().strip():
        raise ConfigError("control_key is empty: give a random string, or remove the setting")
    longest, lifetime = config.max_token_seconds, config.token_lifetime_seconds
    issues_tokens = config.has_secret or config.jwks is None
    if longest is not None and issues_tokens and lifetime > longest:
        raise ConfigError(
            f"token_lifetime_seconds {lifetime:g} is more than max_token_seconds {longest:g}: set it to {longest:g} or "
            "less, or /token/ could issue no token by default"
        )
    if config.proxy_protocol and not config.trusted_proxies:
        raise ConfigError("proxy_protocol needs trusted_proxies: list the proxies that send a PROXY preamble")
    return config


def _check_pair(config: Config, first: str, second: str) -> None:
    """Raise ConfigError if one of two settings is given without the other."""
    has_first, has_second = getattr(config, first) is not None, getattr(config, second) is not None
    if has_first != has_second:
        given, missing = (first, second) if has_first else (second, first)
        raise ConfigError(f"{given} is given without {missing}: TLS needs a certificate and its key")
