"""The terms that the page uses, for readers who have never met them."""

from __future__ import annotations

from dataclasses import dataclass

from stillroom.report.rows import Results


@dataclass(frozen=True)
class Term:
    """A word and what it means."""

    id: str
    name: str
    meaning: str


_ALWAYS = (
    Term(
        "teacher",
        "Teacher and student",
        "The teacher is the large model that knows how; the student is the small one that learned from its answers.",
    ),
    Term(
        "distillation",
        "Distillation",
        "Training a small model to do what a large one does, by imitating its answers and how sure it was of them.",
    ),
    Term(
        "token",
        "Token",
        "A piece of text, about three quarters of an English word; models read and write tokens.",
    ),
)
_SIGNALS = Term(
    "signals",
    "Signals",
    "What the teacher thought at each token: the words that it could have written next, and how likely each was. "
    "They teach more than the answer alone, since they show the near misses too.",
)
_BY_METRIC = {
    "exact": Term(
        "exact",
        "Exact answer",
        "An answer that is right as a whole, by its task’s own check: every field, the final number, the tool calls, the "
        "tests that its code must pass. One wrong part makes it wrong.",
    ),
    "valid_json": Term(
        "json", "Valid JSON", "The answer is one well-formed JSON object that a program can read."
    ),
    "retention": Term("kept", "Kept", "The student’s score divided by the teacher’s, on the same questions."),
    "loss": Term(
        "loss",
        "Loss",
        "How surprised a model is by the right text, in nats a token (one nat is 1.44 bits). Lower is better.",
    ),
    "perplexity": Term(
        "perplexity",
        "Perplexity",
        "How many equally likely next tokens a model would be in doubt among, on average over a text: e to the power of its "
        "loss. Lower is better. Counted by the byte of text, it also compares models that cut text into other tokens.",
    ),
    "pass@1": Term(
        "pass",
        "pass@k",
        "The chance that at least one of k answers to a question, each drawn alone, is right. What a user gets who can "
        "tell a right answer from a wrong one and asks again.",
    ),
    "kl": Term(
        "kl",
        "KL divergence",
        "How far the student’s probabilities for the next token lie from the teacher’s. 0 means that they are equal.",
    ),
    "ece": Term(
        "ece",
        "Expected calibration error",
        "The mean gap between how sure a model was and how often it was right. 0 is best: of the answers that it was "
        "80% sure of, 80% were right.",
    ),
    "brier": Term(
        "brier",
        "Brier score",
        "The mean squared gap between how sure a model was of an answer and whether it was right (1 or 0). "
        "Lower is better.",
    ),
    "cascade": Term(
        "cascade",
        "Cascade",
        "Two models as one: the small one answers what it is sure enough of, the large one is asked for the rest.",
    ),
    "difference": Term(
        "p",
        "p-value",
        "How often chance alone would show at least this large a difference if the two models were equally good. "
        "Below 0.05 it is usual to believe in the difference.",
    ),
    "items_for_a_point": Term(
        "point",
        "Questions for one point",
        "How many questions it would take to tell two models apart that differ by one point and disagree as often as these "
        "two did, in four cases of five.",
    ),
}
_AMONG_ALL = Term(
    "holm",
    "p among all",
    "The p-value after Holm’s correction: among twenty comparisons of equal models one has a p below 0.05 by chance, so "
    "each counts for less the more there are. Of all that is believed below 0.05 here, anything is wrong in at most one "
    "evaluation of twenty.",
)
_INTERVAL = Term(
    "interval",
    "95% interval",
    "The range that would hold the true value in 95 of 100 repetitions with other questions of the same sort. "
    "The fewer the questions, the wider it is.",
)
_QUANTISED = (
    Term(
        "gguf",
        "GGUF",
        "A model in one file, in the format that llama.cpp, Ollama and LM Studio run.",
    ),
    Term(
        "quantisation",
        "Quantisation",
        "Storing a model’s numbers with fewer bits, so that the file shrinks and runs faster. Q4_K_M keeps between four "
        "and five bits for most numbers, Q8_0 about eight, F16 sixteen.",
    ),
)
_AWARE = Term(
    "aware",
    "Aware",
    "A file whose weights were trained a little more as the file stores them, pulled to what the student says in full "
    "precision, so that storing them with fewer bits costs less.",
)
_BASELINES = {
    "first-teacher": Term(
        "first-teacher",
        "The chain’s first teacher",
        "The model that taught the first student of the chain. The one called teacher here is the student before this one.",
    ),
    "labels-only": Term(
        "labels-only",
        "Trained on labels only",
        "The same student, trained on the right answers that came with the data; the teacher had no part in it.",
    ),
    "answers-only": Term(
        "answers-only",
        "Trained on answers only",
        "The same student, trained on the teacher’s written answers without its signals.",
    ),
}


def explained(results: Results, quantised: bool) -> list[Term]:
    """The terms that this page uses, in alphabetical order."""
    metrics = {row.metric.removeprefix("validation_") for row in results.rows}
    terms = [*_ALWAYS, *(term for metric, term in _BY_METRIC.items() if metric in metrics)]
    terms += [term for model, term in _BASELINES.items() if model in results.models]
    if "student" in results.models:
        terms.append(_SIGNALS)
    if any(row.p_holm is not None for row in results.rows):
        terms.append(_AMONG_ALL)
    if any(row.low is not None for row in results.rows):
        terms.append(_INTERVAL)
    if quantised or any("student-" in model for model in results.models):
        terms += _QUANTISED
    if any(model.endswith("-aware") for model in results.models):
        terms.append(_AWARE)
    return sorted(terms, key=lambda term: term.name.lower())
