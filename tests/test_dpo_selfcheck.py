"""The self-check: architectures that cannot read tries are found, and trained all the same."""

import pytest
import torch
import transformers
from conftest import ARCHITECTURES, small_model
from test_dpo_logps import ANSWERS, OTHER, PROMPT

from data import DataError, EncodedQuestion
from dpo import NumericError, check_sharing

QUESTIONS = [
    EncodedQuestion(PROMPT, ANSWERS[0], tuple(ANSWERS[1:])),
    EncodedQuestion(OTHER[0], OTHER[1][0], tuple(OTHER[1][1:])),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_architectures_of_the_tests_read_tries(architecture, dtype):
    model = small_model(architecture)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
        if dtype == torch.bfloat16:
            parameter.data *= 0.3  # a tamer model than float32 can take, nearer to trained ones
    check = check_sharing(model, QUESTIONS)
    assert check.shared, check.reason


def test_an_architecture_with_its_own_positions_is_trained_on_plain_rows():
    """BLOOM's ALiBi adds a distance between columns, which branches of a trie break."""
    torch.manual_seed(0)
    config = transformers.BloomConfig(vocab_size=97, hidden_size=32, n_layer=2, n_head=4)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    check = check_sharing(model, QUESTIONS)
    assert not check.shared and "does not take a tree mask" in check.reason


def test_a_recurrent_architecture_is_trained_on_plain_rows():
    torch.manual_seed(0)
    config = transformers.MambaConfig(
        vocab_size=97, hidden_size=32, num_hidden_layers=2, state_size=4
    )
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    assert not check_sharing(model, QUESTIONS).shared


@pytest.mark.parametrize(
    "architecture, lie",
    [
        ("gemma2", {"final_logit_softcapping": None}),  # the head would lose its soft-cap
        ("gemma3", {"sliding_window": 1000}),  # the masks would lose their window
        ("llama", {"sliding_window": 3}),  # the masks would have one that the model has not
        ("llama", {"logit_scale": 0.5}),
    ],
)
def test_a_wrongly_read_configuration_is_noticed(architecture, lie):
    """The model is built by one configuration, and tries are built by another."""
    model = small_model(architecture)
    honest = type(model).forward
    truth = {name: getattr(model.config, name, None) for name in lie}

    def truthful_forward(**inputs):
        for name, value in truth.items():
            setattr(model.config, name, value)
        try:
            return honest(model, **inputs)
        finally:
            for name, value in lie.items():
                setattr(model.config, name, value)

    model.forward = truthful_forward
    for name, value in lie.items():
        setattr(model.config, name, value)
    check = check_sharing(model, QUESTIONS)
    assert not check.shared and "differ from plain rows" in check.reason


def test_the_longest_answer_is_among_those_compared():
    """Only it leaves the window that the masks ignore."""
    model = small_model("mistral")
    short = [(20 + i, 2) for i in range(5)]
    long = tuple(range(30, 60))
    question = EncodedQuestion((3, 4), short[0], (*short[1:], long))
    assert check_sharing(model, [question]).shared
    model.config.sliding_window = 1000
    model.forward = windowed(model.forward, model.config, 6)
    assert not check_sharing(model, [question]).shared


def windowed(forward, config, window):
    """The model's own forward keeps the window that its configuration has lost."""

    def run(**inputs):
        lie, config.sliding_window = config.sliding_window, window
        try:
            return forward(**inputs)
        finally:
            config.sliding_window = lie

    return run


def test_scores_that_are_not_numbers_stop_the_run():
    model = small_model()
    model.model.layers[0].self_attn.q_proj.weight.data[:] = torch.nan
    with pytest.raises(NumericError, match="not finite in torch.float32"):
        check_sharing(model, QUESTIONS)


def test_a_tokenizer_of_another_model_is_named():
    question = EncodedQuestion((3, 4), (5, 2), ((200, 2),))
    with pytest.raises(DataError, match="the id 200 and the model embeds 97 tokens"):
        check_sharing(small_model(), [question])
    small = EncodedQuestion((3, 4), (5, 2), ((6, 2),))
    with pytest.raises(DataError, match="the id 300"):  # of a question that is not among the few
        check_sharing(small_model(), [small], largest_id=300)
