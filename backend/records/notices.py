"""Notices as JSON, and back: what a record and a certificate keep of what was said."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from backend.base.errors import InspectionError, error_of
from backend.base.messages import Message, Notice, Phrase
from backend.records.record import plain


def as_json(notice: Notice) -> dict[str, Any]:
    """Its code and its values; a phrase or an error among these is kept alike, as `{"phrase": code, "values": …}`."""
    return {"code": notice.code, "values": {name: _written(value) for name, value in notice.values.items()}}


def notice_of(kept: Mapping[str, Any]) -> Notice:
    """The notice that `as_json` gave. A code may be of another version, which has words for it and this one none."""
    code = kept["code"]
    return Notice(code, {name: _read(value) for name, value in kept.get("values", {}).items()})


def _written(value: Any) -> Any:
    if isinstance(value, list):
        return [_written(one) for one in value]
    if not isinstance(value, InspectionError | Message):
        return plain(value)
    kind = "error" if isinstance(value, InspectionError) else "phrase"
    return {kind: value.code, "values": {name: _written(one) for name, one in value.values.items()}}


def _read(value: Any) -> Any:
    if isinstance(value, list):
        return [_read(one) for one in value]
    if not isinstance(value, Mapping):
        return value
    own = {name: _read(one) for name, one in value.get("values", {}).items()}
    if "error" in value:
        return error_of(value["error"], own)
    phrase = value.get("phrase", "")
    return Phrase(phrase, own)
