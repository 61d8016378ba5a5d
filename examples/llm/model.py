"""A stand-in for a language model: it answers with words of a text, 50 a second, and needs no network.

The variable LLM_WORDS_PER_SECOND sets another pace.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator

WORDS_PER_SECOND = float(os.environ.get("LLM_WORDS_PER_SECOND", "50"))

PARAGRAPHS = (
    "I am not a language model, only a stand-in for one. I know a few paragraphs by heart and send them one word at a "
    "time, fifty words a second, as a real model would. Everything between me and your screen is real, though: each "
    "word is an event, the events together are a run, and the run has a beginning and an end.",
    "Reload this page while I am writing. The browser closes its connection and opens a new one, and I do not notice. "
    "My words go to the hub, not to your browser. The hub keeps all of them from the first one on, so the new page "
    "begins with the words that you have already seen and then goes on with me, in the middle of a sentence if need "
    "be. No word is missing, and none appears twice.",
    "Open a second tab. The hub has announced this answer to every page of yours, so the tab finds it by itself and "
    "shows the same words at the same time. It makes no difference to me how many tabs there are: I write once.",
    "Press Stop and I am interrupted between two words, wherever I am. The hub tells me at once, even if I am silent "
    "and only thinking, and it tells every tab that the answer has been stopped. A late click can't hurt the next "
    "answer, because the page says which generation of the answer it wants to stop.",
    "Ask again and the answer begins anew under the same name, as the next generation. Whoever still wrote the old one "
    "is refused from that moment on. Every tab that shows the old words removes them and starts over with the new "
    "ones, so nobody ever reads two answers mixed into one.",
    "When I am done, the hub says so, and the page closes its stream. The end is part of the run, with a place of its "
    "own behind the last word. A phone that was asleep hears of it when it wakes up, and a browser that has heard of "
    "it does not ask again. That is all a stream with an end needs, and surprisingly few systems have it.",
)


def text_of(question: str, attempt: int) -> str:
    """Return the answer to a question. Every further attempt begins with another paragraph."""
    first, *rest = PARAGRAPHS
    turn = attempt % len(rest)
    return "\n\n".join([f"You asked: “{question}”", first, *rest[turn:], *rest[:turn]])


async def answer(question: str, attempt: int) -> AsyncIterator[str]:
    """Yield the words of the answer, each with the spaces and line ends behind it."""
    for word in re.findall(r"\S+\s*", text_of(question, attempt)):
        yield word
        await asyncio.sleep(1 / WORDS_PER_SECOND)
