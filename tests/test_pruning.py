"""Students cut out of a larger model: which parts stay, that they are those parts, and that nothing useless is asked."""

import copy

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoConfig, AutoModelForCausalLM

from stillroom.contracts.errors import ModelError
from stillroom.contracts.recipe import Prune
from stillroom.training.pruning import Kept, choose, kept_layers, prune_student, rank

TEXTS = [[5, 9, 3, 8, 30], [7, 7, 12], [40, 2, 11, 9], list(range(3, 24))]


def model(seed: int = 0, family: str = "llama", **settings):
    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        family,
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        **settings,
    )
    made = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for name, weight in made.named_parameters():
        if name.endswith(("norm.weight", "bias")):
            torch.nn.init.normal_(weight, 1.0 if name.endswith("norm.weight") else 0.0, 0.2)
    return made


def test_kept_layers_are_spread_with_the_first_and_the_last():
    assert kept_layers(12, 4) == [0, 4, 7, 11]
    assert kept_layers(12, 4, "first") == [0, 1, 2, 3]
    assert kept_layers(6, 6) == list(range(6))
    with pytest.raises(ModelError, match="larger than its source"):
        kept_layers(2, 3)


def test_ranking_does_not_depend_on_how_texts_are_batched():
    teacher = model()
    together, alone = rank(teacher, TEXTS), [rank(teacher, [text]) for text in TEXTS]
    tokens = torch.tensor([len(text) for text in TEXTS], dtype=torch.float64)
    for name in ("layers", "heads", "neurons", "channels"):
        parts = torch.stack([getattr(ranking, name) for ranking in alone])
        mean = (parts * tokens.view(-1, *[1] * (parts.dim() - 1))).sum(0) / tokens.sum()
        torch.testing.assert_close(getattr(together, name), mean, rtol=1e-5, atol=1e-9)


def test_a_layer_that_does_nothing_has_no_influence_and_goes_first():
    teacher = model()
    for name in ("self_attn.o_proj", "mlp.down_proj"):
        torch.nn.init.zeros_(teacher.model.layers[1].get_submodule(name).weight)
    assert rank(teacher, TEXTS).layers[1].abs() < 1e-6
    kept = choose(Prune(layers=2, keep="influence"), teacher, lambda: TEXTS)
    assert kept.layers == [0, 2]
    ids = torch.tensor([TEXTS[3]])
    with torch.no_grad():
        torch.testing.assert_close(prune_student(teacher, kept)(ids).logits, teacher(ids).logits)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral"])
@pytest.mark.parametrize("tied", [False, True])
def test_cutting_parts_that_do_nothing_changes_nothing(family, tied):
    teacher = model(family=family, tie_word_embeddings=tied)
    dead_neurons, dead_head = [1, 7, 40], 1
    with torch.no_grad():
        for layer in teacher.model.layers:
            layer.mlp.up_proj.weight[dead_neurons] = 0
            layer.self_attn.v_proj.weight[dead_head * 8 : (dead_head + 1) * 8] = 0
            if layer.self_attn.v_proj.bias is not None:
                layer.self_attn.v_proj.bias[dead_head * 8 : (dead_head + 1) * 8] = 0
    kept = choose(Prune(mlp=45, heads=2), teacher, lambda: TEXTS)
    assert all(set(range(48)) - set(layer.tolist()) == set(dead_neurons) for layer in kept.neurons)
    student = prune_student(teacher, kept)
    config = student.config
    assert (config.intermediate_size, config.num_attention_heads, config.num_key_value_heads) == (45, 2, 1)
    ids = torch.tensor([TEXTS[3]])
    with torch.no_grad():
        torch.testing.assert_close(student(ids).logits, teacher(ids).logits)


def test_a_narrower_hidden_state_keeps_the_channels_that_the_lessons_drive(tmp_path):
    teacher = model(tie_word_embeddings=True)
    loud = [3, 4, 10, 17, 20, 21, 30, 31]
    with torch.no_grad():
        for layer in teacher.model.layers:
            for norm in (layer.input_layernorm, layer.post_attention_layernorm):
                norm.weight.fill_(0.01)
                norm.weight[loud] = 1.0
    kept = choose(Prune(hidden=8, layers=2, keep="first"), teacher, lambda: TEXTS)
    assert kept.channels.tolist() == loud
    student = prune_student(teacher, kept)
    assert student.get_output_embeddings().weight is student.get_input_embeddings().weight
    embedding = student.get_input_embeddings().weight
    assert torch.equal(embedding, teacher.get_input_embeddings().weight[:, loud])
    assert torch.equal(
        student.model.layers[1].self_attn.o_proj.weight, teacher.model.layers[1].self_attn.o_proj.weight[loud]
    )
    student.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.config.head_dim == 8
    with torch.no_grad():
        torch.testing.assert_close(
            again(torch.tensor([[1, 2, 3]])).logits, student(torch.tensor([[1, 2, 3]])).logits
        )


def test_the_source_stays_as_it_was():
    teacher = model()
    before = copy.deepcopy(teacher.state_dict())
    student = prune_student(teacher, choose(Prune(layers=2, mlp=16), teacher, lambda: TEXTS))
    with torch.no_grad():
        for weight in student.parameters():
            weight.zero_()
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"mlp": 49}, "at most 48"),
        ({"hidden": 33}, "at most 32"),
        ({"heads": 5}, "at most 4"),
        ({"heads": 3}, "a multiple of 2"),
        ({"layers": 4, "mlp": 8}, "at most 3"),
    ],
)
def test_more_than_there_is_is_refused(asked, words):
    with pytest.raises(ModelError, match="student") as caught:
        choose(Prune(**asked), model(), lambda: TEXTS)
    assert words in str(caught.value)


def test_nothing_to_cut_and_nothing_to_rank_by_are_refused():
    with pytest.raises(ValidationError, match="nothing would be cut"):
        Prune()
    with pytest.raises(ModelError, match="without lessons"):
        choose(Prune(mlp=8), model(), tuple)


def test_an_architecture_with_other_parts_is_cut_by_place_alone():
    phi = model(family="phi3", pad_token_id=0)
    assert prune_student(phi, choose(Prune(layers=2), phi, tuple)).config.num_hidden_layers == 2
    with pytest.raises(ModelError, match="cannot be cut so"):
        prune_student(phi, Kept([0, 1], neurons=[torch.arange(8)] * 2))
