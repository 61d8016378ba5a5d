"""Django and a hub in one ASGI process; a view and a thread publish events.

Start it in this folder (needs `pip install django`), then listen and publish in other terminals:

uvicorn django_app:app --http ssehub.server:HttpProtocol

TOKEN=$(curl -s http://127.0.0.1:8000/token)
curl -N "http://127.0.0.1:8000/sse/events/?token=$TOKEN"
curl -d text=hi http://127.0.0.1:8000/say
curl -d seconds=1 http://127.0.0.1:8000/remind
"""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
import time
from collections.abc import AsyncIterator

import django
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt
from starlette.applications import Starlette
from starlette.routing import Mount

from ssehub import Hub, Tokens, create_client_app

SECRET = os.environ.get("SECRET") or secrets.token_urlsafe(32)  # a random one makes tokens end with the process

settings.configure(ROOT_URLCONF=__name__, SECRET_KEY=SECRET, ALLOWED_HOSTS=["localhost", "127.0.0.1"])
django.setup()

hub = Hub()
tokens = Tokens(SECRET)


def token(request: HttpRequest) -> HttpResponse:
    """Issue a token. A real application would take the user from `request.user`."""
    return HttpResponse(tokens.issue("alex", ["chat"], expires_at=time.time() + 3600), content_type="text/plain")


@csrf_exempt
def say(request: HttpRequest) -> JsonResponse:
    """Publish from a view, which runs in a thread. An `async def` view would `await hub.publish(…)` instead."""
    return JsonResponse({"id": hub.publish_sync(channel="chat", user_id="*", data=request.POST["text"])})


@csrf_exempt
def remind(request: HttpRequest) -> HttpResponse:
    """Publish later from a thread, with the same call."""

    def later() -> None:
        time.sleep(float(request.POST["seconds"]))
        hub.publish_sync(channel="chat", user_id="*", data="time is up", type="reminder")

    threading.Thread(target=later, daemon=True).start()
    return HttpResponse(status=202)


urlpatterns = [path("token", token), path("say", say), path("remind", remind)]


@contextlib.asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    async with hub:
        yield


app = Starlette(
    routes=[Mount("/sse", create_client_app(hub, tokens=tokens)), Mount("/", get_asgi_application())],
    lifespan=lifespan,
)
