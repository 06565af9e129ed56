"""What the answers cost: what is spent, what requests in flight may still cost, and the limit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stillroom.contracts.errors import UserError
from stillroom.contracts.records import Reply, Request, Sampling
from stillroom.models.chat_completions import ChatReply, prompt_tokens
from stillroom.models.teachers import BUILT_IN, Price


class Bill:
    """Money spent and promised.

    Before a request goes out the most that it may cost is set aside, so that the limit holds whatever comes back
    (as far as the prompt's tokens can be estimated); its answer replaces that by what it did cost.

    Args:
        price: what the teacher costs; None where it is not known.
        sampling: says how long an answer may be.
        spent: US dollars of earlier answers.
        limit: US dollars that all answers may cost together, if there is a limit.
        batch: whether the batch endpoint's prices count.
        parameters: of every request's body; its tools and its response format are paid for as prompt.

    Raises:
        UserError: there is a limit and no price.
    """

    def __init__(
        self,
        price: Price | None,
        sampling: Sampling,
        *,
        spent: float = 0.0,
        limit: float | None = None,
        batch: bool = False,
        parameters: Mapping[str, Any] | None = None,
    ) -> None:
        if limit is not None and price is None:
            raise UserError(
                "what this model costs is not known, so no limit can be kept",
                got=f"a limit of ${limit:g}",
                expected=f"an entry for it in the prices of {BUILT_IN}, or in a file of your own",
                do="name a file with its prices in teacher.prices (filter.judge.prices for a judge) or --prices, or leave "
                "the limit out",
            )
        self.price, self.limit = price, limit
        self.spent, self.spent_now = spent, 0.0
        self._sampling, self._batch, self._parameters = sampling, batch, parameters
        self._promised: dict[str, float] = {}
        self._held = 0.0

    def most(self, request: Request) -> float:
        """US dollars that a request may cost at most."""
        if self.price is None:
            return 0.0
        tokens = prompt_tokens(request, self._parameters)
        return self.price.cost(tokens, self._sampling.max_new_tokens, batch=self._batch)

    def promise(self, request: Request) -> bool:
        """Set the most that a request may cost aside; False where that would pass the limit."""
        most = self.most(request)
        if self.limit is not None and self.spent + self._held + most > self.limit:
            return False
        if self.limit is not None:
            self._promised[request.key] = most
            self._held += most
        return True

    def withdraw(self, request: Request) -> None:
        """Take a promise back."""
        self._held -= self._promised.pop(request.key, 0.0)

    def settle(self, request: Request, reply: Reply) -> float | None:
        """What a reply did cost, in US dollars; None where no price is known."""
        self.withdraw(request)
        if self.price is None:
            return None
        if reply.finish == "failed":
            return 0.0
        prompt, answer = reply.prompt_tokens, reply.completion_tokens
        if not prompt and not answer:  # the server does not count, but it may well charge
            prompt = prompt_tokens(request, self._parameters)
            answer = len(reply.text.encode(errors="replace")) // 4
        cached = reply.cached_tokens if isinstance(reply, ChatReply) else 0
        cost = round(self.price.cost(prompt, answer, cached, batch=self._batch), 9)
        self.spent += cost
        self.spent_now += cost
        return cost
