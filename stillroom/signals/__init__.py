"""What the teacher thought at each token, small enough to keep.

counter   random numbers that depend on a token's key alone
codes     Signals: sparse targets whose weights are the codes that stand on disk
capture   logits or an API's top_logprobs in, Signals out, within a budget of bytes a token
codec     one row (tokens, mask, signals) to bytes and back
book      rows by content key in a folder of memory-mapped shards
"""

from stillroom.signals.book import Book
from stillroom.signals.capture import capture, from_top_logprobs
from stillroom.signals.codec import Row
from stillroom.signals.codes import Signals
from stillroom.signals.counter import token_keys
from stillroom.signals.header import BookHeader, row_key

__all__ = ["Book", "BookHeader", "Row", "Signals", "capture", "from_top_logprobs", "row_key", "token_keys"]
