"""Builds one answer as its tokens arrive. Generated tokens become text only here."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from server.engine.interface.results import FinishReason, Hypothesis, TopToken
from server.text.tokenization import TextCodec


@dataclass(frozen=True, kw_only=True)
class AnswerToken:
    """A token and the text it adds to its answer."""

    id: int
    text: str  # "" if held back, if its character is not complete yet, or if the token is special
    logprob: float | None  # None if not requested
    special: bool
    top_tokens: list["AnswerToken"] = field(default_factory=list)  # the likeliest tokens here, best first, if requested


class Answer:
    """`text` is the joined text of its tokens up to the first stop string. Text that may begin one is held back."""

    def __init__(self, codec: TextCodec, prefix: Sequence[int] = (), stops: Sequence[str] = ()) -> None:
        """Begin an answer that continues the decoder's `prefix` but does not contain it.

        `stops`: the text ends before the first of them to appear; each has at least one character.
        """
        self.text = ""
        self.tokens: list[AnswerToken] = []
        self.stopped = False  # whether a stop string appeared; no more tokens may follow then
        self.generated_tokens = 0  # up to the stop string, if any
        self.score: float | None = None
        self._reason: FinishReason | None = None
        self._codec = codec
        self._stream = codec.stream(prefix)
        self._before = prefix[-1] if prefix else None
        self._stops = stops
        self._held = ""

    @classmethod
    def whole(cls, codec: TextCodec, prefix: Sequence[int], hypothesis: Hypothesis) -> "Answer":
        """A whole answer at once, without its single tokens and without stop strings."""
        answer = cls(codec)
        answer.text = codec.decode(hypothesis.tokens, prefix)
        answer.generated_tokens = len(hypothesis.tokens)
        answer.score, answer._reason = hypothesis.score, hypothesis.finish_reason
        return answer

    @property
    def finish_reason(self) -> FinishReason:
        """Why it ended; only after it has."""
        if self.stopped:
            return FinishReason.STOP
        assert self._reason is not None, "an answer that goes on"
        return self._reason

    def add(
        self, token: int, logprob: float | None, top_tokens: Sequence[TopToken] = (), *, last: bool = False
    ) -> AnswerToken:
        """Add the next token; with the `last` one, nothing stays held back."""
        text = self._take(self._stream.finish(token) if last else self._stream.push(token), last=last)
        added = AnswerToken(
            id=token,
            text=text,
            logprob=logprob,
            special=self._codec.is_special(token),
            top_tokens=[
                AnswerToken(
                    id=each.id,
                    text=self._codec.decode_one(each.id, self._before),
                    logprob=each.logprob,
                    special=self._codec.is_special(each.id),
                )
                for each in top_tokens
            ],
        )
        self.tokens.append(added)
        self.generated_tokens += 1
        self._before = token
        return added

    def complete(self, hypothesis: Hypothesis) -> list[AnswerToken]:
        """Add the remaining tokens of a finished hypothesis, up to a stop string; return those added."""
        self.score, self._reason = hypothesis.score, hypothesis.finish_reason
        begun, end = len(self.tokens), len(hypothesis.tokens)
        while len(self.tokens) < end and not self.stopped:
            at = len(self.tokens)
            self.add(
                hypothesis.tokens[at],
                hypothesis.logprobs[at] if hypothesis.logprobs else None,
                hypothesis.top_tokens[at] if hypothesis.top_tokens else (),
                last=at == end - 1,
            )
        return self.tokens[begun:]

    def _take(self, added: str, *, last: bool) -> str:
        """Append `added` and return the text that can now be released."""
        if self.stopped:
            return ""
        text = self._held + added
        end = first_stop(text, self._stops)
        self.stopped = end is not None
        if end is None:
            end = len(text) if last else len(text) - beginning_of_a_stop(text, self._stops)
        self._held = "" if self.stopped else text[end:]
        self.text += text[:end]
        return text[:end]


def first_stop(text: str, stops: Sequence[str]) -> int | None:
    """The start of the stop string that is complete first, reading from the left; None if there is none."""
    found = [(begin + len(stop), begin) for stop in stops if (begin := text.find(stop)) >= 0]
    return min(found)[1] if found else None


def beginning_of_a_stop(text: str, stops: Sequence[str]) -> int:
    """How many characters at the end of `text` may begin a stop string. `text` contains no whole one."""
    return max((_overlap(text, stop) for stop in stops), default=0)


def _overlap(text: str, stop: str) -> int:
    """The length of the longest suffix of `text` that is a proper prefix of `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((length for length in range(longest, 0, -1) if text.endswith(stop[:length])), 0)
