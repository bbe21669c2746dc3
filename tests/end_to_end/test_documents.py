"""The OpenAPI document: every route with its schemas, and no reference that leads nowhere."""

from collections.abc import Iterator
from typing import Any

import pytest

from support.gateway import Gateway
from support.talk import CHAT, COMPLETIONS, EMBEDDINGS

REQUIRED = {CHAT: "messages", COMPLETIONS: "prompt", EMBEDDINGS: "input"}
ERRORS = {"400", "401", "403", "404", "413", "415", "429", "502", "503", "504"}


@pytest.fixture
def document(gateway: Gateway) -> dict[str, Any]:
    reply = gateway.get("/openapi.json")
    assert reply.status_code == 200
    told: dict[str, Any] = reply.json()
    return told


def resolve(document: dict[str, Any], node: Any) -> Any:
    """The node itself, or what it refers to."""
    while isinstance(node, dict) and "$ref" in node:
        node = follow(document, node["$ref"])
    return node


def follow(document: dict[str, Any], reference: str) -> Any:
    assert reference.startswith("#/"), reference
    node: Any = document
    for step in reference.removeprefix("#/").split("/"):
        assert step in node, reference
        node = node[step]
    return node


def walk(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        yield node
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from walk(child)


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    references = [node["$ref"] for node in walk(document) if isinstance(node.get("$ref"), str)]
    mappings = [node["mapping"] for node in walk(document) if isinstance(node.get("mapping"), dict)]
    assert references
    for reference in [*references, *(target for mapping in mappings for target in mapping.values())]:
        follow(document, reference)
    assert not [node for node in walk(document) if "$defs" in node]


def test_the_document_is_an_openapi_document(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.")
    assert {"title", "version"} <= set(document["info"])
    operations = [operation for path in document["paths"].values() for operation in path.values()]
    assert len({operation["operationId"] for operation in operations}) == len(operations)
    assert all(operation["summary"] and operation["responses"] for operation in operations)


def test_all_routes_are_documented(document: dict[str, Any]) -> None:
    others = {"/health", "/health/live", "/metrics", "/v1/models"}
    models = {path for path in document["paths"] if path.startswith("/v1/models/")}
    operators = {path for path in document["paths"] if path.startswith("/admin/")}
    assert set(document["paths"]) == {*REQUIRED, *others, *models, *operators}
    assert len(models) == 1


@pytest.mark.parametrize("path", REQUIRED)
def test_an_inference_route_tells_what_it_takes_and_gives(document: dict[str, Any], path: str) -> None:
    operation = document["paths"][path]["post"]
    body = operation["requestBody"]
    assert body["required"]
    request = resolve(document, body["content"]["application/json"]["schema"])
    assert REQUIRED[path] in request["required"]
    assert {"model", REQUIRED[path]} <= set(request["properties"])
    assert all(field.get("description") or "$ref" in field for field in request["properties"].values())
    success = operation["responses"]["200"]["content"]
    reply = resolve(document, success["application/json"]["schema"])
    assert {"object", "model", "usage"} <= set(reply["properties"])
    assert ("text/event-stream" in success) is (path != EMBEDDINGS)
    assert set(operation["responses"]) >= ERRORS
    for status in ERRORS:
        error = resolve(document, operation["responses"][status]["content"]["application/json"]["schema"])
        fields = resolve(document, error["properties"]["error"])
        assert set(fields["properties"]) == {"message", "type", "param", "code"}
    assert operation["security"] == [{"bearer": []}]
    assert document["components"]["securitySchemes"]["bearer"]["scheme"] == "bearer"


def test_the_pages_for_people_are_there(gateway: Gateway) -> None:
    reply = gateway.get("/docs")
    assert reply.status_code == 200
    assert "/openapi.json" in reply.text
