"""The API's reference as a page: made from the same OpenAPI description that /v1/schema serves, on the server, so that
it needs no script and loads nothing from elsewhere."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from django.contrib import admin
from django.http import HttpRequest
from django.template.response import TemplateResponse
from django.views.decorators.http import require_safe
from drf_spectacular.generators import SchemaGenerator

Schema = dict[str, Any]
METHODS = ("get", "put", "post", "delete", "patch")
PREFIX = "#/components/schemas/"
LEVELS = 3  # of members, that are shown of one type
LIST = re.compile(r"\[\n([^\[\]{}]+)\n *\]")
TYPES = {"string": "text", "integer": "whole number", "number": "number", "boolean": "true or false", "null": "null"}
FORMATS = {"uuid": "UUID", "date-time": "time (RFC 3339)", "binary": "bytes", "uri": "URL"}


@dataclass(frozen=True, slots=True)
class Type:
    """What a value is, in words; `ref` names the type that is described elsewhere on the page, `many` says that it is
    a list of these."""

    words: str
    ref: str | None = None
    many: bool = False
    nullable: bool = False


@dataclass(frozen=True, slots=True)
class Member:
    """One member of an object or one parameter: its name (a path, where it is inside another), whether it must be
    there, its type, its bounds in words, and what it is."""

    name: str
    required: bool
    type: Type
    bounds: list[str]
    pattern: str
    words: str


@dataclass(frozen=True, slots=True)
class Example:
    """JSON to look at, and what it shows."""

    title: str
    text: str


@dataclass(frozen=True, slots=True)
class Body:
    """The body of a request or of an answer (`status` and `words` are of an answer)."""

    media: str
    type: Type
    members: list[Member]
    examples: list[Example]
    status: str = ""
    words: str = ""


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path."""

    id: str
    title: str
    method: str
    path: str
    words: str
    keys: list[str]
    parameters: list[tuple[str, Member]]
    body: Body | None
    answers: list[Body]
    problems: list[str]


@dataclass(frozen=True, slots=True)
class Section:
    """The operations about one thing."""

    name: str
    words: str
    operations: list[Operation]


@dataclass(frozen=True, slots=True)
class Reference:
    """All of the page."""

    words: str
    sections: list[Section]
    types: list[tuple[str, str, list[Member]]]
    keys: list[tuple[str, str, str]]


@require_safe
def reference(request: HttpRequest) -> TemplateResponse:
    """GET /reference, for everybody; members of staff see their navigation beside it."""
    context = {**admin.site.each_context(request), "title": "API reference", "reference": page()}
    return TemplateResponse(request, "reference.html", context)


@cache
def page() -> Reference:
    """The reference of this version, made once in the life of a process."""
    generator = SchemaGenerator()
    return read(generator.get_schema(request=None, public=True))


def read(document: Schema) -> Reference:
    """An OpenAPI 3.1 document as a page. Paths come in the order of their tags."""
    words = {tag["name"]: tag.get("description", "") for tag in document.get("tags", [])}
    found: dict[str, list[Operation]] = {name: [] for name in words}
    for path, operations in document["paths"].items():
        for method in METHODS:
            if method in operations:
                one = operations[method]
                tag = (one.get("tags") or ["other"])[0]
                found.setdefault(tag, []).append(_operation(document, path, method, one))
    schemas = document["components"]["schemas"]
    keys = document["components"].get("securitySchemes", {})
    return Reference(
        document["info"].get("description", ""),
        [Section(name, words.get(name, ""), operations) for name, operations in found.items() if operations],
        [(name, schema.get("description", ""), list(members(schema))) for name, schema in schemas.items()],
        [(name, one.get("description", ""), one.get("bearerFormat", "")) for name, one in keys.items()],
    )


def _operation(document: Schema, path: str, method: str, one: Schema) -> Operation:
    security = one.get("security", document.get("security", []))
    answers, problems = [], []
    for status, answer in one.get("responses", {}).items():
        bodies = answer.get("content") or {"": {"schema": {}}}
        for media, content in bodies.items():
            if media == "application/problem+json" and not content.get("examples"):
                problems.append(status)
            else:
                answers.append(_body(media, content, str(status), answer.get("description", "")))
    request = one.get("requestBody", {}).get("content", {})
    return Operation(
        one["operationId"], str(one.get("summary") or one["operationId"]), method.upper(), path,
        one.get("description", ""),
        [name for choice in security or [] for name in choice], [_parameter(p) for p in one.get("parameters", [])],
        next((_body(media, content) for media, content in request.items()), None), answers, problems,
    )  # fmt: skip


def _parameter(parameter: Schema) -> tuple[str, Member]:
    """Where a parameter stands (path, query, header), and the parameter."""
    schema = parameter.get("schema", {})
    member = _member(parameter["name"], schema, bool(parameter.get("required")))
    if words := parameter.get("description"):
        member = Member(member.name, member.required, member.type, member.bounds, member.pattern, words)
    return parameter["in"], member


def _body(media: str, content: Schema, status: str = "", words: str = "") -> Body:
    schema = content.get("schema", {})
    examples = [
        Example(one.get("summary", name), _laid_out(one["value"])) for name, one in content.get("examples", {}).items()
    ]
    return Body(media, type_of(schema), list(members(schema)), examples, status, words)


def _laid_out(value: Any) -> str:
    """JSON, indented; a list of plain values stays on its line."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    return LIST.sub(lambda found: "[" + ", ".join(part.strip() for part in found[1].split(",\n")) + "]", text)


def members(schema: Schema, prefix: str = "", level: int = 1) -> Iterator[Member]:
    """The members of an object, those of objects inside it after each, as paths. What is a type of its own is named,
    not repeated."""
    for part in schema.get("allOf", []):
        yield from members(part, prefix, level)
    required = set(schema.get("required", []))
    for name, found in schema.get("properties", {}).items():
        yield _member(f"{prefix}{name}", found, name in required)
        inner = found.get("items", found)
        if level < LEVELS and "properties" in inner:
            yield from members(inner, f"{prefix}{name}{'[]' if inner is not found else ''}.", level + 1)


def _member(name: str, schema: Schema, required: bool) -> Member:
    plain = _plain(schema)
    inner = plain.get("items", plain)
    pattern = str(plain.get("pattern") or inner.get("pattern") or "")
    return Member(name, required, type_of(schema), bounds(schema), pattern, schema.get("description", ""))


def _plain(schema: Schema) -> Schema:
    """A schema without its being nullable."""
    choices = [choice for choice in schema.get("anyOf", []) if choice.get("type") != "null"]
    return choices[0] if len(choices) == 1 else schema


def type_of(schema: Schema) -> Type:
    """The type of a value in words: a whole number, allow or deny, a list of a named type."""
    kinds = schema.get("type", [])
    kinds = kinds if isinstance(kinds, list) else [kinds]
    nullable = "null" in kinds or any(choice.get("type") == "null" for choice in schema.get("anyOf", []))
    plain = _plain(schema)
    if "$ref" in plain:
        return Type("", plain["$ref"].removeprefix(PREFIX), nullable=nullable)
    named = [part["$ref"].removeprefix(PREFIX) for part in plain.get("allOf", []) if "$ref" in part]
    if named:
        return Type("and more", named[0], nullable=nullable)
    if "oneOf" in plain:
        return Type(" or ".join(str(type_of(choice).ref or type_of(choice).words) for choice in plain["oneOf"]))
    if "enum" in plain:
        return Type(" or ".join(f"`{choice}`" for choice in plain["enum"]), nullable=nullable)
    if "items" in plain:
        inner = type_of(plain["items"])
        return Type(inner.words, inner.ref, many=True, nullable=nullable)
    kind = next((kind for kind in _kinds(plain) if kind != "null"), "any JSON")
    return Type(FORMATS.get(plain.get("format", ""), TYPES.get(kind, kind)), nullable=nullable)


def _kinds(schema: Schema) -> list[str]:
    kinds = schema.get("type", [])
    return list(kinds) if isinstance(kinds, list) else [kinds]


def bounds(schema: Schema) -> list[str]:
    """What a value is held to: at most 8; 1 to 128 characters; a default."""
    plain = _plain(schema)
    inner = plain.get("items", {})
    found = [
        _range(plain.get("minLength"), plain.get("maxLength"), "characters"),
        _range(plain.get("minItems"), plain.get("maxItems"), "of them"),
        _range(inner.get("minLength"), inner.get("maxLength"), "characters each"),
        _range(plain.get("minimum"), plain.get("maximum"), ""),
    ]
    default = schema.get("default", plain.get("default"))
    if default not in (None, "", []):
        found.append(f"`{default}` if left out")
    return [words for words in found if words]


def _range(least: int | None, most: int | None, unit: str) -> str:
    if least is None and most is None:
        return ""
    if not least and most is not None:
        words = f"at most {most:,}"
    elif most is None:
        words = f"at least {least:,}" if least is not None else ""
    else:
        words = f"{least:,} to {most:,}"
    return f"{words} {unit}".strip()
