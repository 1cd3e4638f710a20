"""Which engine answers, by its own words: names, versions and settings that it tells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from precheck.errors import ServerError, UsageError
from precheck.served import shapes

if TYPE_CHECKING:
    from precheck.served.http_client import HttpClient

MOST_CHARACTERS = 120
"""Of anything that a server says of itself."""
LLAMA_CPP = "llama.cpp"
MOST_MODELS = 8
"""Names in a message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """What a server says of itself; nothing of it is checked."""

    model: str
    name: str | None = None
    version: str | None = None
    max_context: int | None = None
    own_words: dict[str, str]


def ask_engine(client: HttpClient, *, model: str, served_model: str | None) -> Engine:
    """Asks a server who it is.

    Args:
        client: of the server.
        model: the checkpoint, whose name is asked for if the server lists none.
        served_model: the name that the user says it has; None: the first that it lists.

    Raises:
        ServerError: it does not answer.
        UsageError: it does not serve a model of that name.
    """
    listed = _models(_object(client, "/v1/models"))
    if served_model is not None and listed and served_model not in {one.id for one in listed}:
        names = ", ".join(_cut(one.id) for one in listed[:MOST_MODELS])
        raise UsageError(
            f"no model {served_model!r} is served at {client.url} (expected {names})",
            hint="leave --served-model out to take the first",
        )
    first = next((one for one in listed if one.id == served_model), listed[0] if listed else None)
    name = served_model or (model if first is None else first.id)
    owner = None if first is None else first.owned_by
    words = {} if owner is None else {"owned_by": _cut(owner)}
    props = _object(client, "/props")
    if "default_generation_settings" in props:
        return Engine(
            model=name,
            name=LLAMA_CPP,
            version=_text(props.get("build_info")),
            max_context=_context(props),
            own_words=words | _plain(props, ("model_path", "model_alias", "total_slots")),
        )
    return Engine(
        model=name,
        name=_cut(owner) if owner else None,
        version=_text(_object(client, "/version").get("version")),
        max_context=None if first is None else first.max_model_len,
        own_words=words,
    )


def _models(body: dict[str, Any]) -> list[shapes.Model]:
    try:
        return msgspec.convert(body, shapes.Models).data
    except msgspec.ValidationError:
        return []


def _object(client: HttpClient, path: str) -> dict[str, Any]:
    """The JSON object at a path that an engine may have; empty without one.

    A path may also be broken: ``transformers serve`` 5.23 lists models with HTTP 500 where the
    Hub's cache has no folder, and answers all else.
    """
    try:
        reply = client.get(path)
    except ServerError as error:
        if error.status is None:
            raise
        return {}
    return reply.body if reply.is_good and isinstance(reply.body, dict) else {}


def _context(props: dict[str, Any]) -> int | None:
    settings = props.get("default_generation_settings")
    number = settings.get("n_ctx") if isinstance(settings, dict) else None
    return number if isinstance(number, int) and 0 < number < 1 << 40 else None


def _plain(body: dict[str, Any], keys: tuple[str, ...]) -> dict[str, str]:
    found = {key: _text(body.get(key)) for key in keys}
    return {key: value for key, value in found.items() if value is not None}


def _text(value: object) -> str | None:
    return _cut(str(value)) if isinstance(value, str | int | float) else None


def _cut(text: str) -> str:
    return text[:MOST_CHARACTERS]
