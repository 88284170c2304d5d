"""One answer as its tokens come: the only place where generated tokens become text."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from server.engine.interface.results import FinishReason, Hypothesis, TopToken
from server.text.tokenization import TextCodec


@dataclass(frozen=True, kw_only=True)
class AnswerToken:
    """A token, and the text that it adds to its answer."""

    id: int
    text: str  # "" where it is held back, where its character is not complete, and where the token is special
    logprob: float | None  # None where not asked for
    special: bool
    top_tokens: list["AnswerToken"] = field(default_factory=list)  # the likeliest here, best first, where asked for


class Answer:
    """What its tokens say, joined, is `text`, up to the first stop string. What may begin one is held back."""

    def __init__(self, codec: TextCodec, prefix: Sequence[int] = (), stops: Sequence[str] = ()) -> None:
        """Begin an answer that goes on from the decoder's `prefix`, and does not hold it.

        `stops`: the text ends before the first of them that comes; each has at least one character.
        """
        self.text = ""
        self.tokens: list[AnswerToken] = []
        self.stopped = False  # whether a stop string came; no token is to follow then
        self.generated_tokens = 0  # up to the stop string, where there is one
        self.score: float | None = None
        self._reason: FinishReason | None = None
        self._codec = codec
        self._stream = codec.stream(prefix)
        self._before = prefix[-1] if prefix else None
        self._stops = stops
        self._held = ""

    @classmethod
    def whole(cls, codec: TextCodec, prefix: Sequence[int], hypothesis: Hypothesis) -> "Answer":
        """A whole answer at once, its tokens not told one by one; it has no stop strings."""
        answer = cls(codec)
        answer.text = codec.decode(hypothesis.tokens, prefix)
        answer.generated_tokens = len(hypothesis.tokens)
        answer.score, answer._reason = hypothesis.score, hypothesis.finish_reason
        return answer

    @property
    def finish_reason(self) -> FinishReason:
        """Why it ended, once it has."""
        if self.stopped:
            return FinishReason.STOP
        assert self._reason is not None, "an answer that goes on"
        return self._reason

    def add(
        self, token: int, logprob: float | None, top_tokens: Sequence[TopToken] = (), *, last: bool = False
    ) -> AnswerToken:
        """Take the next token; after the `last` one nothing is held back."""
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
        """Take the tokens that are still to come of a whole one, up to a stop string; what was added."""
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
        """What of the text can be told, now that `added` has come."""
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
    """Where the stop string begins that is complete first, reading from the left; None where there is none."""
    found = [(begin + len(stop), begin) for stop in stops if (begin := text.find(stop)) >= 0]
    return min(found)[1] if found else None


def beginning_of_a_stop(text: str, stops: Sequence[str]) -> int:
    """How many characters at the end of `text`, which holds no stop string, may be the beginning of one."""
    return max((_overlap(text, stop) for stop in stops), default=0)


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that `stop` begins with."""
    longest = min(len(text), len(stop) - 1)
    return next((length for length in range(longest, 0, -1) if text.endswith(stop[:length])), 0)
