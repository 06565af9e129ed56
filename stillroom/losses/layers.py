"""Which of the teacher's layers each of the student's layers is matched with.

Layers are counted as a list of hidden states is: 0 is the embedding, 1 the output of the first block, and
the last index is the number of blocks.
"""

from __future__ import annotations

from collections.abc import Mapping


def map_layers(
    student_layers: int, teacher_layers: int, how: str | Mapping[int, int] = "uniform"
) -> dict[int, int]:
    """Student layer -> teacher layer, for models of any two depths.

    Args:
        student_layers: the student's blocks, Ls >= 1.
        teacher_layers: the teacher's blocks, Lt >= 1.
        how: "uniform" maps every m in 0..Ls to m * Lt / Ls, rounded half up, so the embedding to the embedding
            and the last layer to the last (the uniform strategy of TinyBERT, Jiao et al. 2020, extended to
            depths that do not divide). "last" maps only the last layer, to the last (MiniLM, Wang et al.
            2020). A mapping is checked and returned in the student's order.

    Raises:
        ValueError: a depth below 1, an unknown name, an empty mapping, or a layer that a model does not have.
    """
    for side, depth in (("student", student_layers), ("teacher", teacher_layers)):
        if depth < 1:
            raise ValueError(f"the {side} must have at least 1 layer, got {depth}")
    if how == "uniform":
        return {
            m: (2 * m * teacher_layers + student_layers) // (2 * student_layers)
            for m in range(student_layers + 1)
        }
    if how == "last":
        return {student_layers: teacher_layers}
    if isinstance(how, str):
        raise ValueError(f'unknown layer map {how!r}; known: "uniform", "last", or a mapping of your own')
    if not how:
        raise ValueError("a layer map must hold at least 1 pair, got an empty one")
    for student, teacher in how.items():
        for side, layer, depth in (
            ("student", student, student_layers),
            ("teacher", teacher, teacher_layers),
        ):
            if not 0 <= layer <= depth:
                raise ValueError(
                    f"the map {student} -> {teacher} names layer {layer} of the {side}, which has 0 (the embedding)"
                    f" to {depth}"
                )
    return dict(sorted(how.items()))
