"""The chat template tried at the start of a run: by it workers tell answers from what is given."""

import logging

from transformers import PreTrainedTokenizerBase

from common.data.chat_encoding import NoPrefix, require_prefixes, turns_of
from common.data.chat_template import rendered, template_of
from common.data.conversations import ASSISTANT, Conversation, Message
from common.data.processors import Processor
from common.errors import ModelError

log = logging.getLogger(__name__)

_SINGLE = Conversation((Message("user", "What stands here?"), Message(ASSISTANT, "A question.")))
_SEVERAL = Conversation(
    (*_SINGLE.messages, Message("user", "And what is this?"), Message(ASSISTANT, "Another one."))
)


def check_chat_template(here: Processor, there: Processor, path: str, *, needed: bool) -> None:
    """The FM's template, where it has one, renders, tells answers apart, and is the same at workers: `there`.

    Raises ModelError for one that does not where the run is for conversations (`needed`). Otherwise that is
    logged: it concerns workers whose data are conversations, if there are any. A template that can mark the
    answer of a single turn only is told of, and serves.
    """
    assert isinstance(here, PreTrainedTokenizerBase) and isinstance(there, PreTrainedTokenizerBase)
    try:
        _check(here, there, path)
    except ModelError as error:
        if needed:
            raise ModelError(f"model {path}: {error}") from error
        log.warning("model %s: %s; workers whose data are conversations will be refused", path, error)


def _check(here: PreTrainedTokenizerBase, there: PreTrainedTokenizerBase, path: str) -> None:
    template = template_of(here)
    if template is None:
        return
    if template_of(there) != template:
        raise ModelError("its chat template does not reach workers as it is; save it with save_pretrained")
    chats = (_SINGLE, _SEVERAL)
    found = rendered(here, template, [(chat.messages, turns_of(chat)) for chat in chats])
    for chat, texts in zip(chats, found, strict=True):
        if isinstance(texts, str):
            raise ModelError(f"its chat template cannot be rendered: {texts}")
        try:
            require_prefixes(texts, turns_of(chat))
        except NoPrefix as error:
            if chat is _SINGLE:
                raise
            log.warning("model %s: %s; such conversations will be refused", path, error)
