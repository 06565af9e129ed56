"""The recipe: one YAML file, one typed model, one home per setting.

Every field has a description; `docs/recipe.md` and the JSON Schema are generated from them.
"""

from stillroom.contracts.recipe.align import Align
from stillroom.contracts.recipe.aware import Aware, AwareFile, QuantisedFile
from stillroom.contracts.recipe.classify import Classify, Masked, Prepare
from stillroom.contracts.recipe.distil import Baseline, Curriculum, Distil, Loss, Match, Past, Replay, Rounds
from stillroom.contracts.recipe.evaluate import Chains, Evaluate, ProbeName, Score, Task
from stillroom.contracts.recipe.export import Draft, Export, Importance, Kind
from stillroom.contracts.recipe.filter import Filter
from stillroom.contracts.recipe.models import Lora, Prune, Student, Teacher
from stillroom.contracts.recipe.prompts import EXPANDED, Expand, Form, Method, Mix, PromptSource, Splits
from stillroom.contracts.recipe.report import Report
from stillroom.contracts.recipe.route import Route
from stillroom.contracts.recipe.section import Section
from stillroom.contracts.recipe.teach import Signal, Teach
from stillroom.contracts.recipe.whole import Link, Recipe

__all__ = [
    "EXPANDED",
    "Align",
    "Aware",
    "AwareFile",
    "Baseline",
    "Chains",
    "Classify",
    "Curriculum",
    "Distil",
    "Draft",
    "Evaluate",
    "Expand",
    "Export",
    "Filter",
    "Form",
    "Importance",
    "Kind",
    "Link",
    "Lora",
    "Loss",
    "Masked",
    "Match",
    "Method",
    "Mix",
    "Past",
    "Prepare",
    "ProbeName",
    "PromptSource",
    "Prune",
    "QuantisedFile",
    "Recipe",
    "Replay",
    "Report",
    "Rounds",
    "Route",
    "Score",
    "Section",
    "Signal",
    "Splits",
    "Student",
    "Task",
    "Teach",
    "Teacher",
]
