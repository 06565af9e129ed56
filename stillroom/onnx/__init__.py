"""Classifiers as ONNX files, whole or with weights of eight bits, each checked against the model it was made from.

from stillroom.onnx import check_parity, export, round_weights

export("student", "student-F32")
made = round_weights("student-F32", "student-int8")
print(made.bytes, check_parity("student", "student-int8", ["How do I cancel?"], exact=False))
"""

from stillroom.onnx.export import Exported, export, round_weights
from stillroom.onnx.parity import Parity, check_parity

__all__ = ["Exported", "Parity", "check_parity", "export", "round_weights"]
