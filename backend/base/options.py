"""Settings handed on in groups: a field of a dataclass says which setting fills it, so an option is declared once."""

from __future__ import annotations

from dataclasses import field, fields
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from backend.base.config import Settings

T = TypeVar("T")


def option(default: T, setting: str = "", **traits: Any) -> T:
    """A dataclass field that `filled` takes from `setting`, if any; `traits` are what else its class says of it."""
    return field(default=default, metadata={"setting": setting, **traits})


def filled(options: type[Any], settings: Settings) -> dict[str, Any]:
    """The arguments of the dataclass `options` that `settings` give, by field."""
    return {own.name: getattr(settings, setting) for own, setting in _declared(options).items()}


def settings_of(options: type[Any]) -> tuple[str, ...]:
    """The names of the settings that fill the dataclass `options`."""
    return tuple(_declared(options).values())


def _declared(options: type[Any]) -> dict[Any, str]:
    return {own: own.metadata["setting"] for own in fields(options) if own.metadata.get("setting")}
