"""Documents of a language model as token sequences: where they begin and end, what is learnt, what is too long."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch

from understudy.errors import ModelError
from understudy.models.text_preprocess import texts_of
from understudy.models.tokens import TokenSequence

Long = Literal["split", "cut", "refuse"]
LONG: tuple[Long, ...] = ("split", "cut", "refuse")

SKIPPED, CUT_PROMPT, CUT_RESPONSE, CUT, SPLIT = (
    "without a token of their own, which are left out",
    "with a prompt that was cut to fit into a row",
    "with a response that was cut to fit into a row",
    "longer than a row, whose rest was cut off",
    "longer than a row, which were split into windows",
)


class Documents:
    """Turns texts, or pairs of a prompt and a response, into sequences of tokens.

    A text is encoded as its tokenizer does, and ends with the end token, so that a model learns to stop. Of a pair the
    prompt is read and the response learnt, with the end token behind it.

    Args:
        tokenizer: a `transformers` tokenizer with an end token.
        max_length: most tokens of a sequence.
        long: what happens to a longer document. "split": windows, each beginning with the last token of the one
            before; "cut": the first window only; "refuse": an error. The prompt of a pair is cut on its left in either
            of the first two.
        chat_template: whether pairs go through the tokenizer's chat template.
    """

    def __init__(self, tokenizer: Any, max_length: int, long: Long, chat_template: bool) -> None:
        self.tokenizer, self.max_length = tokenizer, max_length
        self.long, self.chat_template = long, chat_template
        self.counts: Counter[str] = Counter()
        self._end = tokenizer.eos_token_id
        self._begin = tokenizer.bos_token_id
        self._bare = self._encode([""], special=True)[0]

    def __call__(self, raw: Any) -> list[TokenSequence]:
        """Return the sequences of a batch, in the order of its documents; an empty document has none.

        Raises:
            ModelError: what comes is no text, or is too long where that is refused.
        """
        first, second = texts_of(raw)
        if second is None:
            found = self._texts(first)
        elif self.chat_template:
            found = self._chats(first, second)
        else:
            found = self._pairs(first, second)
        self.counts["documents"] += len(first)
        return list(found)

    def notes(self) -> list[str]:
        """Say what happened to documents so far, for a log."""
        return said(self.counts)

    def _encode(self, texts: Sequence[str], special: bool) -> list[list[int]]:
        encoded = self.tokenizer(
            list(texts),
            add_special_tokens=special,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        ids: list[list[int]] = encoded["input_ids"]
        return ids

    def _texts(self, texts: Sequence[str]) -> Iterator[TokenSequence]:
        for number, ids in enumerate(self._encode(texts, special=True)):
            if ids == self._bare:
                self.counts[SKIPPED] += 1
                continue
            yield from self._windows(number, self._ended(ids))

    def _windows(self, number: int, ids: list[int]) -> Iterator[TokenSequence]:
        size = self.max_length
        if len(ids) <= size:
            yield TokenSequence(torch.tensor(ids), number)
            return
        self._refuse_long(number, len(ids))
        if self.long == "cut":
            self.counts[CUT] += 1
            yield TokenSequence(torch.tensor(ids[:size]), number)
            return
        self.counts[SPLIT] += 1
        for begin in range(0, len(ids) - 1, size - 1):
            window = torch.tensor(ids[begin : begin + size])
            yield TokenSequence(window, number, repeated=int(begin > 0))

    def _pairs(self, prompts: Sequence[str], responses: Sequence[str]) -> Iterator[TokenSequence]:
        asked = self._encode(prompts, special=True)
        answered = self._encode(responses, special=False)
        for number, (prompt, response) in enumerate(zip(asked, answered, strict=True)):
            # An end that the tokenizer writes behind every text does not belong between prompt and response.
            open_prompt = prompt[:-1] if prompt and prompt[-1] == self._end else prompt
            yield from self._pair(number, open_prompt, self._ended(response), bool(response))

    def _chats(self, prompts: Sequence[str], responses: Sequence[str]) -> Iterator[TokenSequence]:
        for number, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
            turns = [{"role": "user", "content": prompt}]
            asked = self._templated(turns, number, add_generation_prompt=True)
            turns.append({"role": "assistant", "content": response})
            whole = self._templated(turns, number, add_generation_prompt=False)
            if whole[: len(asked)] != asked:
                raise ModelError(
                    f"Document {number} of the batch: with its response, the chat template does not begin with what "
                    "it writes for the prompt alone, so it cannot be said where the response begins. Use a template "
                    "that only adds to what it wrote, or `chat_template: false`."
                )
            answer = whole[len(asked) :]
            if self._end in answer:
                # What a template writes behind the end, such as a line break, is never generated.
                answer = answer[: len(answer) - answer[::-1].index(self._end)]
            yield from self._pair(number, asked, self._ended(answer), bool(response))

    def _templated(
        self, turns: list[dict[str, str]], number: int, *, add_generation_prompt: bool
    ) -> list[int]:
        import jinja2

        try:
            ids = self.tokenizer.apply_chat_template(
                turns,
                add_generation_prompt=add_generation_prompt,
                tokenize=True,
                return_dict=False,
            )
        except jinja2.TemplateError as error:
            raise ModelError(
                f"Document {number} of the batch: the chat template refuses it ({error})."
            ) from error
        return list(ids)

    def _pair(
        self, number: int, prompt: list[int], response: list[int], answered: bool
    ) -> Iterator[TokenSequence]:
        if not answered:
            self.counts[SKIPPED] += 1
            return
        size = self.max_length
        if len(prompt) + len(response) > size:
            self._refuse_long(number, len(prompt) + len(response))
            # At least one token stays before the response, from which its first token is predicted.
            least = min(1, len(prompt))
            if len(response) > size - least:
                self.counts[CUT_RESPONSE] += 1
                response = response[: size - least]
            if len(prompt) > size - len(response):
                self.counts[CUT_PROMPT] += 1
                prompt = self._shortened(prompt, size - len(response))
        yield TokenSequence(torch.tensor(prompt + response), number, start=len(prompt))

    def _shortened(self, prompt: list[int], size: int) -> list[int]:
        """Keep the end of a prompt, and the begin token before it where there was one."""
        if size > 1 and prompt[0] == self._begin:
            return [prompt[0], *prompt[len(prompt) - size + 1 :]]
        return prompt[len(prompt) - size :]

    def _ended(self, ids: list[int]) -> list[int]:
        return ids if ids and ids[-1] == self._end else [*ids, self._end]

    def _refuse_long(self, number: int, length: int) -> None:
        if self.long == "refuse":
            raise ModelError(
                f"Document {number} of the batch has {length} tokens, a row of the model holds {self.max_length}. "
                "Give a larger `max_length`, or `long: split` or `long: cut`."
            )


def said(counts: Counter[str]) -> list[str]:
    """Say how many of the documents so far something happened to, a sentence for each thing."""
    return [
        f"{counts[what]} of {counts['documents']} documents {what}."
        for what in (SKIPPED, SPLIT, CUT, CUT_PROMPT, CUT_RESPONSE)
        if counts[what]
    ]
