"""What the teacher thought at each token, small enough to keep.

bits      numbers of a few bits packed end to end
counter   random numbers that depend on a token's key alone
codes     Signals: sparse targets whose weights are the codes that stand on disk
capture   logits or an API's top_logprobs in, Signals out, within a budget of bytes a token
head      the teacher's output head, once in a book of hidden states
hidden    HiddenSignals: the teacher's last hidden states, exact and large
kinds     which of these a book holds, and how a row keeps it
error     how far they are from the teacher, and what another budget would give
codec     one row (tokens, mask, signals) to bytes and back
book      rows by content key in a folder of memory-mapped shards; with it header, shards, index, lookup, lock, reading
mixture   several teachers of the same tokens, read as one
showing   a book in lines for people
"""

from stillroom.signals.book import Book
from stillroom.signals.capture import capture, from_top_logprobs
from stillroom.signals.codec import Row
from stillroom.signals.codes import Signals
from stillroom.signals.counter import token_keys
from stillroom.signals.error import Outlook, choose, outlook
from stillroom.signals.head import BookHead
from stillroom.signals.header import BookHeader, row_key
from stillroom.signals.hidden import HiddenSignals
from stillroom.signals.mixture import MixedRow, Mixture, mix

__all__ = [
    "Book",
    "BookHead",
    "BookHeader",
    "HiddenSignals",
    "MixedRow",
    "Mixture",
    "Outlook",
    "Row",
    "Signals",
    "capture",
    "choose",
    "from_top_logprobs",
    "mix",
    "outlook",
    "row_key",
    "token_keys",
]
