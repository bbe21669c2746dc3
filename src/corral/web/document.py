"""The OpenAPI document: what FastAPI knows of the routes, and what the inference routes take and give."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from corral.core.call import Endpoint
from corral.openai.replies import ChatCompletion, Completion, EmbeddingList, ErrorReply
from corral.openai.requests import ChatRequest, CompletionRequest, EmbeddingRequest

SHAPES: dict[Endpoint, tuple[type[BaseModel], type[BaseModel]]] = {
    Endpoint.CHAT: (ChatRequest, ChatCompletion),
    Endpoint.COMPLETIONS: (CompletionRequest, Completion),
    Endpoint.EMBEDDINGS: (EmbeddingRequest, EmbeddingList),
}

ERRORS = {
    400: "The request is not valid; `param` names the parameter.",
    401: "No key, or one that is not known here.",
    403: "The key is not for this, or not for this model.",
    404: "There is no such model.",
    408: "The request did not arrive in time.",
    413: "The body is too large.",
    415: "The body is not JSON.",
    429: "The client's limit is reached; `Retry-After` says when to come back.",
    502: "The model server failed.",
    503: "The queue is full, or no model server is ready.",
    504: "A time limit was exceeded; the message names the phase.",
}


def document(app: FastAPI) -> dict[str, Any]:
    """The document of the app's routes; to make it takes a tenth of a second, which a start can do without."""
    schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    schemes = {"bearer": {"type": "http", "scheme": "bearer", "description": "An API key of this gateway."}}
    schema.setdefault("components", {})["securitySchemes"] = schemes
    for endpoint, (request, reply) in SHAPES.items():
        schema["paths"][endpoint.path]["post"] |= _operation(endpoint, request, reply)
    return _hoisted(schema)


def _operation(endpoint: Endpoint, request: type[BaseModel], reply: type[BaseModel]) -> dict[str, Any]:
    errors = {str(status): _response(text, ErrorReply) for status, text in ERRORS.items()}
    success = _response("The reply; a stream of server-sent events with `stream: true`.", reply)
    if endpoint is not Endpoint.EMBEDDINGS:
        success["content"]["text/event-stream"] = {"schema": {"type": "string"}}
    return {
        "requestBody": {"required": True, "content": {"application/json": {"schema": request.model_json_schema()}}},
        "security": [{"bearer": []}],
        "responses": {"200": success, **errors},
    }


def _response(description: str, shape: type[BaseModel]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": shape.model_json_schema()}}}


def _hoisted(schema: dict[str, Any]) -> dict[str, Any]:
    """Move the ``$defs`` of the requests and replies to the components, where OpenAPI's references look."""
    components = schema["components"].setdefault("schemas", {})

    def walk(node: Any) -> Any:  # noqa: ANN401  (JSON)
        if isinstance(node, list):
            return [walk(each) for each in node]
        if not isinstance(node, dict):
            return node
        for name, definition in node.pop("$defs", {}).items():
            components[name] = walk(definition)
        walked = {key: walk(value) for key, value in node.items()}
        if isinstance(reference := walked.get("$ref"), str):
            walked["$ref"] = reference.replace("#/$defs/", "#/components/schemas/")
        return walked

    schema["paths"] = walk(schema["paths"])
    return schema
