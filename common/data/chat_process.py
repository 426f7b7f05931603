"""Renders conversations by a chat template: run as a process of its own, for a template is a program.

Jinja's sandbox keeps it from files and from Python; the time and memory that it takes, the kernel bounds.
From standard input comes one JSON object: `template`; `tokens`, the tokenizer's special tokens by name;
`chats`, each with `messages` and `turns`, pairs of how many messages to render and whether to invite an
answer behind them. To standard output goes a list: for each chat its texts, or one text that says why there
are none.

This is a script: it imports nothing of ours.
"""

import json
import sys
from pathlib import Path
from typing import Any

# Beside what the process has taken before the first template.
_MEMORY_BYTES = 2**30
_CPU_SECONDS = 60
# Of a text: a template may have much of its own to say, such as rules and dates.
_OWN_CHARACTERS = 2**18
_MOST_TIMES = 16
_TOLD = 200


def _bound() -> None:
    """No more memory and time than these; where this cannot be had, the caller's deadline is left."""
    try:
        import resource

        pages = Path("/proc/self/statm").read_text().split()[0]
    except (ImportError, OSError):
        return
    most = int(pages) * resource.getpagesize() + _MEMORY_BYTES
    for kind, limit in (
        (resource.RLIMIT_AS, most),
        (resource.RLIMIT_CPU, _CPU_SECONDS),
        (resource.RLIMIT_CORE, 0),
    ):
        # What this process was given less of stays as it is.
        hard = resource.getrlimit(kind)[1]
        allowed = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(kind, (allowed, allowed))


def _texts(render: Any, request: dict[str, Any], chat: dict[str, Any]) -> list[str] | str:
    most = _OWN_CHARACTERS + _MOST_TIMES * sum(len(m["content"]) for m in chat["messages"])
    texts = []
    try:
        for count, inviting in chat["turns"]:
            [text], _ = render(
                [chat["messages"][:count]],
                chat_template=request["template"],
                add_generation_prompt=inviting,
                **request["tokens"],
            )
            if len(text) > most:
                return f"it makes {len(text):,} characters of one conversation"
            texts.append(text)
    except MemoryError:
        return "it wants more memory than a text can need"
    except Exception as error:
        # Of no one class: a template can fail as any program can.
        line = getattr(error, "lineno", None)
        told = " ".join(str(error).split())[:_TOLD] or type(error).__name__
        return f"{'' if line is None else f'line {line}: '}{told}"
    return texts


def main() -> None:
    """Answer the one request."""
    from transformers.utils.chat_template_utils import render_jinja_template

    request = json.load(sys.stdin)
    _bound()
    json.dump([_texts(render_jinja_template, request, chat) for chat in request["chats"]], sys.stdout)


if __name__ == "__main__":
    main()
