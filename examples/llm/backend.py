"""The backend of the page: it remembers who asked what, and lets the model write the answers into runs."""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from model import answer
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from hubs import AnswersHub

MAX_QUESTION = 200
MAX_QUESTIONS = 20
MAX_SESSIONS = 1_000


@dataclass
class Question:
    """One question of one browser. The run with the answer has the name `run`."""

    text: str
    run: str = field(default_factory=lambda: f"answer-{secrets.token_urlsafe(8)}")
    attempts: int = 0


class Backend:
    """The questions of each session, by the run of their answer. A session is a cookie, and a user of the hub."""

    def __init__(self, hub: AnswersHub) -> None:
        self._hub = hub
        self._page = (Path(__file__).parent / "page.html").read_text()
        self._sessions: OrderedDict[str, dict[str, Question]] = OrderedDict()

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/", self.show_page),
                Route("/state", self.show_state, methods=["POST"]),
                Route("/ask", self.ask, methods=["POST"]),
                Route("/again/{run}", self.ask_again, methods=["POST"]),
                Route("/kill", self.kill, methods=["POST"]),
                *self._hub.routes,
            ],
            lifespan=self._lifespan,
        )

    async def show_page(self, request: Request) -> Response:
        page = self._page.replace("{{hub}}", self._hub.url)
        response = HTMLResponse(page.replace("{{can_be_killed}}", str(self._hub.kill is not None).lower()))
        if request.cookies.get("session") not in self._sessions:
            session = secrets.token_urlsafe(16)
            self._sessions[session] = {}
            if len(self._sessions) > MAX_SESSIONS:
                self._sessions.popitem(last=False)
            response.set_cookie("session", session, httponly=True, samesite="strict")
        return response

    async def show_state(self, request: Request) -> Response:
        """Answer with a token for the hub and the questions so far. The answers come from the hub."""
        session, questions = self._session_of(request)
        if questions is None:
            return Response(status_code=401)
        asked = [{"run": question.run, "question": question.text} for question in questions.values()]
        return JSONResponse({"token": await self._hub.token(session), "questions": asked})

    async def ask(self, request: Request) -> Response:
        session, questions = self._session_of(request)
        if questions is None:
            return Response(status_code=401)
        text = str((await request.json()).get("question", "")).strip()[:MAX_QUESTION]
        if not text:
            return Response(status_code=400)
        question = Question(text)
        questions[question.run] = question
        if len(questions) > MAX_QUESTIONS:
            del questions[next(iter(questions))]
        return await self._answer(question, session)

    async def ask_again(self, request: Request) -> Response:
        session, questions = self._session_of(request)
        question = (questions or {}).get(request.path_params["run"])
        return Response(status_code=404) if question is None else await self._answer(question, session)

    async def kill(self, request: Request) -> Response:
        _, questions = self._session_of(request)
        if questions is None or self._hub.kill is None:
            return Response(status_code=404)
        await self._hub.kill()
        return Response(status_code=204)

    async def _answer(self, question: Question, session: str) -> Response:
        words = answer(question.text, question.attempts)
        question.attempts += 1
        await self._hub.start(question.run, words, session)
        result: dict[str, Any] = {"run": question.run, "question": question.text}
        return JSONResponse(result, 201)

    def _session_of(self, request: Request) -> tuple[str, dict[str, Question] | None]:
        session = request.cookies.get("session", "")
        return session, self._sessions.get(session)

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await self._hub.aclose()
