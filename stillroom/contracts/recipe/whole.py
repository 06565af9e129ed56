"""The whole recipe, and which of its settings go together."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from pydantic import Field, field_validator, model_validator

from stillroom.contracts.recipe.align import Align
from stillroom.contracts.recipe.aware import AwareFile, QuantisedFile
from stillroom.contracts.recipe.classify import Classify
from stillroom.contracts.recipe.distil import Baseline, Distil
from stillroom.contracts.recipe.evaluate import Evaluate, Score
from stillroom.contracts.recipe.export import Export, Importance
from stillroom.contracts.recipe.filter import Filter
from stillroom.contracts.recipe.models import Student, Teacher
from stillroom.contracts.recipe.prompts import Mix, PromptSource, Splits
from stillroom.contracts.recipe.report import Report
from stillroom.contracts.recipe.route import Route
from stillroom.contracts.recipe.schedule import peak, value_at
from stillroom.contracts.recipe.section import Section
from stillroom.contracts.recipe.teach import Teach


class Link(Section):
    """A student between the teacher and the last student."""

    name: str = Field(description="Its run is runs/NAME/chain/ITS-NAME.")
    student: Student = Field(description="The model that learns, and teaches the next.")
    teach: Teach | None = Field(None, description="How its teacher is asked. Empty: as the recipe says.")
    distil: Distil | None = Field(None, description="How it trains. Empty: as the recipe says.")

    @field_validator("name")
    @classmethod
    def _plain_name(cls, name: str) -> str:
        return plain_name(name)


def plain_name(name: str) -> str:
    """The name, if it can name a folder anywhere.

    Raises:
        ValueError: it cannot.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise ValueError(
            "a name has letters, digits, '.', '_' and '-' only, and starts with a letter or digit"
        )
    return name


def _or_list(schema: dict[str, Any]) -> None:
    """One of these, or several."""
    one = {"$ref": schema.pop("$ref")}
    schema["anyOf"] = [one, {"type": "array", "items": one, "minItems": 1}]


class Recipe(Section):
    """A whole distillation."""

    name: str = Field(description="The run's name; its folder is runs/NAME.")
    seed: int = Field(0, description="Seeds every random choice.")
    teacher: Teacher = Field(
        description="The model that is asked; or a list: the first is asked, and what all of them think of its answers is "
        "mixed.",
        json_schema_extra=_or_list,
    )
    more_teachers: list[Teacher] = Field(
        [], description="The others of such a list: local models with the student's tokens."
    )
    student: Student = Field(description="The model that learns.")
    prompts: list[PromptSource] = Field(description="Where the questions come from.", min_length=1)
    mix: Mix = Field(default_factory=Mix, description="How many questions are taken of all sources together.")
    splits: Splits = Field(default_factory=Splits, description="Which questions serve for what.")
    classify: Classify | None = Field(
        None,
        description="The job is to choose among classes: teacher and student are encoders. Empty: they write.",
    )
    teach: Teach = Field(default_factory=Teach, description="How the teacher is asked.")
    filter: Filter = Field(default_factory=Filter, description="Which answers become lessons.")
    distil: Distil = Field(default_factory=Distil, description="How the student trains.")
    align: Align | None = Field(
        None, description="Right answers over wrong ones, after distillation. Empty: left out."
    )
    chain: list[Link] = Field(
        [],
        description="Students between the teacher and the last one: each is trained and measured in a run of its own, and "
        "is the next one's teacher.",
    )
    baselines: list[Baseline] = Field(
        [],
        description="Trained or measured beside the student, with the same steps. `before`: the student untrained. "
        "`labels-only`: trained on the sources' own right answers. `answers-only`: trained on the teacher's text "
        "without its signals.",
    )
    quantise: list[QuantisedFile] = Field(
        ["Q4_K_M"],
        description="GGUF files to write; F16 is always written and checked. With `classify` ONNX files: `int8` (the "
        "default there) and `F32`. `{kind: Q4_K_M, aware: {}}` writes a second file beside it whose weights have learned to "
        "be rounded: see docs/quantising.md.",
    )
    importance: Importance | None = Field(
        None,
        description="Quantised files are rounded with care for the weights that the student's own lessons use most (an "
        "importance matrix): mostly better files of 2 to 4 bits, of the same size. `{}` is enough. Empty: left out.",
    )
    evaluate: Evaluate = Field(default_factory=Evaluate, description="How the models are measured.")
    route: Route | None = Field(
        None,
        description="When the student's answer is good enough and when another model is asked, learned and proved on "
        "questions set apart. `{}` is enough with splits.calibrate. Empty: left out.",
    )
    export: Export = Field(default_factory=Export, description="What goes beside the model files.")
    report: Report = Field(default_factory=Report, description="What the report's verdict goes by.")

    @field_validator("name")
    @classmethod
    def _plain_name(cls, name: str) -> str:
        return plain_name(name)

    @field_validator("chain")
    @classmethod
    def _each_once(cls, chain: list[Link]) -> list[Link]:
        names = [link.name for link in chain]
        if len({*names}) < len(names):
            raise ValueError(f"two links of the chain have one name: {', '.join(names)}")
        return chain

    @model_validator(mode="before")
    @classmethod
    def _kind_of_file(cls, tree: Any) -> Any:
        if isinstance(tree, dict) and tree.get("classify") is not None and "quantise" not in tree:
            return {**tree, "quantise": ["int8"]}
        return tree

    @model_validator(mode="after")
    def _fits_together(self) -> Recipe:
        if self.classify:
            self._chooses()
            return self
        self._writes_gguf()
        if self.teach.signal.kind == "none" and any(
            item.aware.teacher == "book" for item in self.aware_files
        ):
            raise ValueError(
                "quantise: aware.teacher is book but teach.signal.kind is none, so there is no book: set it to student"
            )
        if self.more_teachers:
            self._mixes()
        if self.export.draft and (self.teacher.api or self.teacher.tokens == "own"):
            raise ValueError(
                "a student is a draft only for a teacher whose weights are here and whose tokens it shares: "
                "leave export.draft out"
            )
        self._carries_over()
        if self.route:
            self._routes(self.route)
        if self.chain:  # each link and the last student have a teacher of their own, and are checked with it
            return self
        self._hears_its_teacher()
        given = [one.file for one in self.prompts if one.form == "corpus" or one.answers == "given"]
        if given and (self.teach.samples > 1 or self.teach.logged_answers == "ask"):
            raise ValueError(
                f"{', '.join(given)} brings its own text: teach.samples must be 1 and teach.logged_answers `take`"
            )
        soft = self.teacher.api is not None and peak(self.distil.loss.soft) > 0
        if soft and given and self.teach.signal.source == "top_logprobs":
            raise ValueError(
                f"this API would not read the text that {', '.join(given)} brings: set teach.signal.source to "
                "prompt_logprobs (vLLM can), or distil.loss.soft to 0"
            )
        if soft and self.distil.temperature != 1:
            raise ValueError(
                "an API's log-probabilities are those of temperature 1: set distil.temperature to 1"
            )
        foreign = self.foreign_teacher
        own = self.student.model or (self.student.prune and self.student.prune.source)
        if foreign and not own:
            raise ValueError(
                "this teacher is no Hugging Face folder, so no student can be cut from it or shaped like it: "
                "give student.model or student.prune.source"
            )
        if foreign and self.teach.signal.kind == "hidden":
            raise ValueError(
                "only a Hugging Face folder tells hidden states: set teach.signal.kind to top-k for an API, to "
                "head+draws for a .gguf file"
            )
        if self.teacher.api and self.teach.signal.kind == "head+draws":
            raise ValueError(
                "an API gives its top log-probabilities only: set teach.signal.kind to top-k or none"
            )
        return self

    @property
    def aware_files(self) -> list[AwareFile]:
        """The items of `quantise` whose weights learn."""
        return [item for item in self.quantise if isinstance(item, AwareFile)]

    @property
    def files(self) -> list[str]:
        """What follows `student-` in the names of the quantised files: the plain one first, then the one that learns."""
        names: list[str] = []
        for item in self.quantise:
            names += [item.kind, item.name] if isinstance(item, AwareFile) else [item]
        return list(dict.fromkeys(names))

    @property
    def handed_over(self) -> str | None:
        """Which of `files` is handed over: that of the first item, the one that learns if there are two."""
        first = self.quantise[0] if self.quantise else None
        return first.name if isinstance(first, AwareFile) else first

    @property
    def measured_on_held_out(self) -> bool:
        """Whether a task asks the questions that were held out of training."""
        return any(task.file is None and task.asks for task in self.evaluate.tasks)

    @property
    def written_score(self) -> Score | None:
        """How the first task with one written answer to a question is judged; None where there is no such task."""
        return next((task.score for task in self.evaluate.tasks if task.answered_once), None)

    def _routes(self, route: Route) -> None:
        """A cascade has questions of its own, and a way to judge answers."""
        if route.file is None and not self.splits.calibrate:
            raise ValueError(
                "route has no questions of its own: set splits.calibrate, such as 0.1, or name some in route.file"
            )
        if route.score is None and self.written_score is None:
            raise ValueError(
                "route does not know how answers are judged: set route.score, or name a task with written answers"
            )

    def _writes_gguf(self) -> None:
        """Every file is of a kind that GGUF has, of a model whose weights are here, under a name of its own."""
        draft, teacher_files = self.export.draft, self.evaluate.teacher_files
        kinds: dict[str, Sequence[str]] = {
            "quantise": self.files,
            "export.draft.kind": [draft.kind] if draft else [],
            "evaluate.teacher_files": teacher_files,
        }
        for key, listed in kinds.items():
            if any(kind.startswith("int8") for kind in listed):
                raise ValueError(f"{key}: int8 is for classifiers; GGUF files of eight bits are Q8_0")
        if len({item.name for item in self.aware_files}) < len(self.aware_files):
            raise ValueError("quantise: two files of one kind are to learn and would have one name: keep one")
        if len({*teacher_files}) < len(teacher_files):
            raise ValueError("evaluate.teacher_files names a kind twice: leave one out")
        if teacher_files and self.foreign_teacher:
            raise ValueError(
                "only a Hugging Face folder can be quantised: leave evaluate.teacher_files out for an API or a .gguf file"
            )

    def _carries_over(self) -> None:
        """Teachers with tokens of their own are heard through a book that the teach stage writes."""
        foreign = [one for one in (self.teacher, *self.more_teachers) if one.tokens == "own"]
        if not foreign:
            return
        if any(one.api for one in foreign):
            raise ValueError(
                "teacher.tokens own is for local teachers: an API's tokens are compared as text anyway, leave it out"
            )
        if self.distil.rounds or self.distil.teacher != "book" or self.teach.signal.kind == "hidden":
            raise ValueError(
                "a teacher with tokens of its own is heard through a book of kind head+draws or top-k: leave "
                "distil.rounds and distil.teacher out"
            )

    def _mixes(self) -> None:
        """Several teachers are heard through books over the same tokens."""
        named = {name for teacher in (self.teacher, *self.more_teachers) for name in teacher.domains}
        files = {source.title for source in self.prompts}
        if unknown := sorted(named - files):
            raise ValueError(
                f"teacher.domains names {', '.join(unknown)}, but the prompts' files are {', '.join(sorted(files))}"
            )
        if self.teacher.domains and not any(not teacher.domains for teacher in self.more_teachers):
            raise ValueError("every teacher has domains: leave them out of one, for all other lessons")
        if foreign := [teacher.model for teacher in self.more_teachers if teacher.api]:
            raise ValueError(
                f"{foreign[0]} answers over an API and cannot read what another teacher wrote: only the first may"
            )
        if self.chain or self.distil.rounds or self.distil.teacher != "book":
            raise ValueError(
                "several teachers are heard through a book: leave chain, distil.rounds and distil.teacher out"
            )
        if self.teach.signal.kind not in ("head+draws", "top-k"):
            raise ValueError("several teachers are mixed by teach.signal.kind head+draws, or top-k")

    def _chooses(self) -> None:
        """A job of choosing among classes has only what belongs to one."""
        student, distil, loss = self.student, self.distil, self.distil.loss
        cut = student.prune
        matched = [name for name, weight in loss.matched.items() if peak(weight) > 0]
        refused = {
            "teacher is no Hugging Face folder or hub id": self.foreign_teacher,
            "several teachers": self.more_teachers,
            "teacher.tokens own": self.teacher.tokens == "own",
            "chain": self.chain,
            "align": self.align,
            "export.draft or export.vram": self.export.draft or self.export.vram,
            "importance": self.importance,
            "evaluate.teacher_files": self.evaluate.teacher_files,
            "route": self.route,
            "student.lora": student.lora,
            "student.prune of widths, or by influence (keep first or spread layers)": cut and cut.ranks,
            "distil.rounds": distil.rounds,
            "distil.curriculum": distil.curriculum,
            "distil.replay": distil.replay,
            f"distil.teacher {distil.teacher} (book, or live to match hidden states)": distil.teacher
            not in ("book", "live"),
            f"distil.loss.divergence {loss.divergence}": loss.divergence != "forward_kl",
            f"distil.loss.{(matched or [''])[-1]} (hidden can be matched)": set(matched) - {"hidden"},
            "teach.samples above 1": self.teach.samples > 1,
            "teach.system": self.teach.system,
            "prompts that are no questions with right answers": any(
                one.form in ("corpus", "documents") or one.expand or one.answers == "given"
                for one in self.prompts
            ),
            f"quantise {', '.join(self.files)} (int8 or F32, which are ONNX files)": {*self.files}
            - {"int8", "F32"},
            "evaluate.tasks with another score than exact": any(
                task.score != "exact" for task in self.evaluate.tasks
            ),
        }
        for what, found in refused.items():
            if found:
                raise ValueError(f"a job of choosing among classes cannot have {what}")
        if ("hidden" in matched) != (distil.teacher == "live"):
            raise ValueError(
                "distil.loss.hidden above 0 and distil.teacher live belong together with classify"
            )

    def _hears_its_teacher(self) -> None:
        """The soft loss has what it needs: signals, or a teacher that can be live, of a kind that fits the divergence."""
        loss, teacher = self.distil.loss, self.distil.teacher
        live = teacher != "book"
        curriculum = self.distil.curriculum
        sparse = self.teach.signal.kind in ("head+draws", "top-k") and not live and peak(loss.soft) > 0
        if curriculum and curriculum.by == "doubt" and not sparse:
            raise ValueError(
                "distil.curriculum.by doubt reads how unsure the teacher was from the sparse signals of a book: train from "
                "one, or set it to length"
            )
        if self.distil.replay and not live and self.teach.signal.kind == "hidden":
            raise ValueError(
                "distil.replay brings text whose hidden states no book holds: set teach.signal.kind to head+draws or top-k"
            )
        matched = [name for name, weight in loss.matched.items() if peak(weight) > 0]
        if matched and not live:
            raise ValueError(
                f"distil.loss.{matched[0]} matches the inside of the teacher, which no book holds: set distil.teacher live"
            )
        if live and peak(loss.soft) == 0 and not matched:
            raise ValueError(
                f"distil.teacher is {teacher} but distil.loss.soft is 0: nobody would listen to it"
            )
        if teacher in ("live", "online") and self.foreign_teacher:
            raise ValueError(
                "only a Hugging Face folder can be a live teacher: set distil.teacher to book for an API or a .gguf file"
            )
        if peak(loss.soft) > 0 and not live and self.teach.signal.kind == "none":
            raise ValueError(
                "distil.loss.soft is above 0 but teach.signal.kind is none: there is nothing to match"
            )
        if loss.divergence != "forward_kl" and not live and self.teach.signal.kind != "hidden":
            raise ValueError(
                f"distil.loss.divergence {loss.divergence} would be biased by signals that are drawn or cut: set "
                "distil.teacher to live, or teach.signal.kind to hidden"
            )
        if isinstance(self.distil.temperature, dict) and not live and self.teach.signal.kind != "hidden":
            raise ValueError(
                "signals that are drawn or cut are captured at one temperature: set distil.temperature to a number, "
                "distil.teacher to live, or teach.signal.kind to hidden"
            )

        if teacher in ("self", "online"):
            self._learns_by_itself()
        if self.distil.rounds:
            self._can_score()

    def _learns_by_itself(self) -> None:
        """Models that change while they teach have something else to hold on to."""
        teacher = self.distil.teacher
        if value_at(self.distil.loss.hard, 0.0) == 0:
            raise ValueError(
                f"distil.teacher {teacher} and distil.loss.hard 0: models that only listen to each other learn nothing; set "
                "distil.loss.hard above 0"
            )
        if teacher == "self" and self.student.lora:
            raise ValueError("distil.teacher self keeps an average of all weights: leave student.lora out")
        if teacher == "online" and (
            matched := [n for n, w in self.distil.loss.matched.items() if peak(w) > 0]
        ):
            raise ValueError(
                f"distil.loss.{matched[0]} would pull a teacher that is trained itself: set distil.teacher live"
            )
        if teacher == "online" and self.teacher.dtype in ("8-bit", "4-bit"):
            raise ValueError(
                f"weights of {self.teacher.dtype} cannot be trained: set teacher.dtype to auto for distil.teacher online"
            )

    def _can_score(self) -> None:
        """The teacher can say what it thinks of what the student wrote."""
        if peak(self.distil.loss.soft) == 0:
            raise ValueError(
                "distil.rounds has the teacher score what the student writes, but distil.loss.soft is 0: nobody would listen"
            )
        if self.distil.teacher == "book" and self.teacher.api and self.teach.signal.source == "top_logprobs":
            raise ValueError(
                "this API scores its own answers only, not what the student writes: set teach.signal.source to "
                "prompt_logprobs (vLLM can), have a local teacher, or leave distil.rounds out"
            )
        if self.distil.rounds and self.distil.rounds.patience and self.measured_on_held_out:
            raise ValueError(
                "distil.rounds.patience picks the student by the questions held out of training, and a task without a file "
                "would measure it on the same ones: give the task a file, or leave patience out"
            )

    @property
    def capture_temperature(self) -> float:
        """The temperature that signals are captured at; hidden states, which have none, serve every one."""
        temperature = self.distil.temperature
        return 1.0 if isinstance(temperature, dict) else temperature

    @property
    def foreign_teacher(self) -> bool:
        """Whether the teacher's weights are out of transformers' reach."""
        return self.teacher.api is not None or self.teacher.model.endswith(".gguf")
