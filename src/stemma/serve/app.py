"""The application: routes of the API and of the chat page.

GET  /v1/models, /v1/models/{model}
POST /v1/chat/completions, /v1/completions
GET  /health
GET  /, /page/…
"""

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from mimetypes import guess_type
from pathlib import Path
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from stemma.core.errors import clipped, nearest, printable
from stemma.serve.answers import ChatForm, CompletionForm, Head
from stemma.serve.body import read_json
from stemma.serve.engine import Engine, Job, Served
from stemma.serve.guard import Guard
from stemma.serve.limits import Limits
from stemma.serve.prompts import chat_prompt, completion_prompts, require_most
from stemma.serve.refusal import Refusal, of_failure
from stemma.serve.replies import Reply, Stream, unless_left, whole_response
from stemma.serve.requests import (
    SEEDS,
    ChatRequest,
    CompletionRequest,
    parse,
    samplings,
    wants_usage,
)

LOG = logging.getLogger("stemma")
PAGE = Path(__file__).parent / "page"
PREPARING = 2  # threads that encode prompts, so that a crowd does not fill memory and cores
GONE = 499  # what a log shows for a client that left; nobody receives it
EXACT = 2**53  # above it, readers of JSON that know only doubles would round a seed
Endpoint = Callable[[Request], Awaitable[Any]]
Made = TypeVar("Made")


class Service:
    """The endpoints over the models that are served. The engine is theirs together."""

    def __init__(self, models: Sequence[Served], limits: Limits) -> None:
        self.models = {served.name: served for served in models}
        self.limits, self.engine = limits, Engine(limits.waiting)
        self.pool = ThreadPoolExecutor(PREPARING, thread_name_prefix="prepare")
        self.page = page_routes()
        self.routes = [
            Route("/v1/models", answered(self.list_models), methods=["GET"]),
            Route("/v1/models/{model:path}", answered(self.one_model), methods=["GET"]),
            Route("/v1/chat/completions", answered(self.chat), methods=["POST"]),
            Route("/v1/completions", answered(self.complete), methods=["POST"]),
            Route("/health", answered(self.health), methods=["GET"]),
            *self.page,
        ]

    async def chat(self, request: Request) -> Any:
        """POST /v1/chat/completions"""
        with self.engine.place():
            asked = parse(ChatRequest, await read_json(request, self.limits))
            served = self._model(asked.model)
            require_most(served, asked.most, asked.most_key)
            ids = await self._prepared(request, chat_prompt, served, asked.messages)
        form = ChatForm(served.tokenizer, asked.best)
        prompts = [ids] * (asked.n or 1)
        return await self._answer(request, asked, served, prompts, form, served.chat_ends)

    async def complete(self, request: Request) -> Any:
        """POST /v1/completions"""
        with self.engine.place():
            asked = parse(CompletionRequest, await read_json(request, self.limits))
            served = self._model(asked.model)
            require_most(served, asked.max_tokens, "max_tokens")
            prompts = await self._prepared(
                request, completion_prompts, served, asked.prompt, asked.n or 1
            )
        form = CompletionForm(served.tokenizer, asked.best)
        return await self._answer(request, asked, served, prompts, form, served.text_ends)

    async def _prepared(self, request: Request, prepare: Callable[..., Made], *given: Any) -> Made:
        """Encode in a thread of a small pool, for as long as the client stays."""
        work = asyncio.get_running_loop().run_in_executor(self.pool, prepare, *given)
        return await unless_left(request.receive, work)

    async def _answer(
        self,
        request: Request,
        asked: ChatRequest | CompletionRequest,
        served: Served,
        prompts: list[list[int]],
        form: ChatForm | CompletionForm,
        end_ids: frozenset[int],
    ) -> Any:
        seed = secrets.randbelow(EXACT) if asked.seed is None else asked.seed % SEEDS
        drawn = samplings(asked, served.sampling, len(prompts), seed)
        job = Job(served, prompts, drawn, end_ids)
        head = Head(f"{form.prefix}-{secrets.token_hex(12)}", int(time.time()), served.name, seed)
        reply = Reply(job, form, head, each=asked.n or 1, silence=self.limits.silence)
        self.engine.submit(job)
        if asked.stream:
            return Stream(self.engine, job, reply.events(with_usage=wants_usage(asked)))
        return await whole_response(self.engine, reply, request.receive)

    def _model(self, name: str) -> Served:
        """The model of a name. Raises Refusal."""
        found = self.models.get(name)
        if found is None:
            shown = clipped(printable(name), 100)
            what = f"the model {shown!r} does not exist here; {nearest(shown, self.models)}"
            raise Refusal(404, what, param="model", code="model_not_found")
        return found

    async def list_models(self, request: Request) -> Response:
        """GET /v1/models"""
        entries = [described(served) for served in self.models.values()]
        return JSONResponse({"object": "list", "data": entries})

    async def one_model(self, request: Request) -> Response:
        """GET /v1/models/{model}"""
        return JSONResponse(described(self._model(request.path_params["model"])))

    async def health(self, request: Request) -> Response:
        """GET /health: that the server lives, and how busy it is."""
        return JSONResponse({"status": "ok", **self.engine.state()})


def described(served: Served) -> dict[str, Any]:
    """A model as the API lists it, with what a chat page needs to know of it."""
    names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
    return {
        "id": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": "stemma",
        "context": served.context,
        "chat": served.renderer is not None,
        "defaults": {name: getattr(served.sampling, name) for name in names},
    }


def answered(endpoint: Endpoint) -> Endpoint:
    """The endpoint with its refusals, and whatever else goes wrong, as OpenAI's errors."""

    async def answering(request: Request) -> Any:
        try:
            return await endpoint(request)
        except Refusal as refusal:
            return refused(refusal)
        except ClientDisconnect:
            return Response(status_code=GONE)
        except Exception as error:
            LOG.error("%s failed: %s: %s", request.url.path, type(error).__name__, error)
            return refused(of_failure(error))

    return answering


def refused(refusal: Refusal) -> Response:
    return JSONResponse(refusal.body, refusal.status, refusal.headers)


async def no_such(request: Request, error: Exception) -> Response:
    """Unknown routes and wrong methods."""
    assert isinstance(error, HTTPException)
    path = clipped(printable(request.url.path), 100)
    what = {
        404: f"there is no {path} here",
        405: f"{path} does not take {clipped(printable(request.method), 20)}",
    }.get(error.status_code, str(error.detail))
    return refused(Refusal(error.status_code, what, headers=dict(error.headers or {})))


def page_routes() -> list[Route]:
    """The files of the chat page, read once; nothing else below their folder is reachable."""
    routes = []
    for path in sorted(file for file in PAGE.iterdir() if file.is_file()):
        address = "/" if path.name == "index.html" else f"/page/{path.name}"
        routes.append(Route(address, page_file(path.read_bytes(), path.name), methods=["GET"]))
    return routes


def page_file(content: bytes, name: str) -> Endpoint:
    """An endpoint that sends one file."""
    kind = "text/javascript" if name.endswith(".js") else guess_type(name)[0]

    async def sending(request: Request) -> Response:
        return Response(content, media_type=kind, headers={"Cache-Control": "no-cache"})

    return sending


def build_app(
    models: Sequence[Served],
    *,
    keys: Iterable[str] = (),
    hosts: Iterable[str] | None = None,
    limits: Limits | None = None,
    ready: Callable[[], None] = lambda: None,
) -> tuple[ASGIApp, Service]:
    """The application with its guard, and the service behind it.

    `keys` open the API, none leaves it open; `hosts` are the names it answers to, None for any;
    `ready` is called when the engine runs.
    """
    service = Service(models, limits or Limits())

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        service.engine.start()
        ready()
        yield
        service.pool.shutdown(wait=False, cancel_futures=True)
        await asyncio.to_thread(service.engine.stop)

    handlers: dict[Any, Any] = {HTTPException: no_such}
    app = Starlette(routes=service.routes, lifespan=lifespan, exception_handlers=handlers)
    app.router.redirect_slashes = False
    public = {"/health", *(route.path for route in service.page)}
    return Guard(app, keys=keys, public=public, hosts=hosts), service
