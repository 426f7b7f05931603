"""A tokenizer's chat template: which it is, and conversations rendered by it, in a process of its own."""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import IO, Any

from transformers import PreTrainedTokenizerBase

from common.data.conversations import Message
from common.errors import ModelError
from common.runtime.stopping import between_pieces

# The longest published ones, with tools and reasoning, take about 20 KB.
MOST_TEMPLATE_BYTES = 64 * 2**10
# Of one request: on a busy machine it takes seconds.
_SECONDS = 300.0
_LOOK_SECONDS = 0.5
# To render: the first so many messages; and whether to invite an answer behind them.
Turn = tuple[int, bool]


def template_of(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The tokenizer's template, of several the one called "default"; None where it has none.

    Raises ModelError for one that is larger than what is taken.
    """
    template: Any = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    if not isinstance(template, str) or not template:
        return None
    if (size := len(template.encode(errors="replace"))) > MOST_TEMPLATE_BYTES:
        raise ModelError(f"a chat template of {size:,} bytes; at most {MOST_TEMPLATE_BYTES:,} are taken")
    return template


def rendered(
    tokenizer: PreTrainedTokenizerBase,
    template: str,
    chats: Sequence[tuple[Sequence[Message], Sequence[Turn]]],
) -> list[list[str] | str]:
    """For each chat the texts of its turns, as transformers' `apply_chat_template` renders them; or, as one
    text, why there are none.

    The template runs in a process of its own, within bounds of time and memory. Raises ModelError when it
    breaks them all at once; Stopped.
    """
    request = {
        "template": template,
        "tokens": {
            name: [str(one) for one in token] if isinstance(token, list | tuple) else str(token)
            for name, token in tokenizer.special_tokens_map.items()
        },
        "chats": [
            {
                "messages": [{"role": m.role, "content": m.content} for m in messages],
                "turns": list(turns),
            }
            for messages, turns in chats
        ],
    }
    # -P: the folder of the script is no place to import from.
    command = [sys.executable, "-P", str(Path(__file__).with_name("chat_process.py"))]
    pipe = subprocess.PIPE
    begun = time.monotonic()
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        # Beside the wait: what `communicate` has not written when its time is over it never writes.
        feeding = Thread(target=_feed, args=(process.stdin, json.dumps(request).encode()), daemon=True)
        process.stdin = None
        feeding.start()
        while True:
            try:
                answer, told = process.communicate(timeout=_LOOK_SECONDS)
                break
            except subprocess.TimeoutExpired:
                try:
                    between_pieces()
                    if time.monotonic() - begun > _SECONDS:
                        raise ModelError(f"its chat template took more than {_SECONDS:.0f} seconds") from None
                except BaseException:
                    process.kill()
                    raise
        feeding.join()
    if process.returncode == 0:
        found: list[list[str] | str] = json.loads(answer)
        return found
    if process.returncode < 0:
        raise ModelError("its chat template takes more time or memory than conversations can need")
    reason = (told.decode(errors="replace").strip().splitlines() or ["it says nothing"])[-1][:200]
    raise ModelError(f"its chat template cannot be rendered: {reason}")


def _feed(pipe: IO[bytes] | None, content: bytes) -> None:
    assert pipe is not None
    # Who has ended reads no more; why is asked elsewhere.
    with suppress(BrokenPipeError), pipe:
        pipe.write(content)
