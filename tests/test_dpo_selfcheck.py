"""The self-check: architectures that cannot read tries are found, and trained all the same."""

import pytest
import torch
import transformers
from conftest import ARCHITECTURES, small_model
from families import ROTARY, drawn, family_model, length_dependent
from test_dpo_logps import ANSWERS, OTHER, PROMPT

from data import DataError, EncodedQuestion
from dpo import NumericError, logps
from dpo import check_sharing as check_whole
from dpo.excerpt import excerpt, first_of_each_kind, renumbered
from lora import decoder_layers, rotary_by_rows

QUESTIONS = [
    EncodedQuestion(PROMPT, ANSWERS[0], tuple(ANSWERS[1:])),
    EncodedQuestion(OTHER[0], OTHER[1][0], tuple(OTHER[1][1:])),
]


def check_sharing(model, questions, largest_id=0):
    return check_whole(model, questions, largest_id, decoder_layers(model))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_architectures_of_the_tests_read_tries(architecture, dtype):
    model = in_dtype(small_model(architecture), dtype)
    check = check_sharing(model, QUESTIONS)
    assert check.way == "tries", check.reason
    assert model.dtype == dtype


def in_dtype(model, dtype):
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
        if dtype == torch.bfloat16:
            parameter.data *= 0.5  # tamer than float32 can take, nearer to trained models
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_mask_that_is_wrong_at_branches_alone_is_noticed_whatever_rounding_does(
    dtype, monkeypatch
):
    """Each token also sees the column before it, which is its parent's but for siblings."""
    model = in_dtype(small_model("gemma3", scale=0.1), dtype)
    assert check_sharing(model, QUESTIONS).way == "tries"
    honest = logps.ancestor_mask

    def lenient(positions, ends, window):
        before = torch.ones_like(ends[0].outer(ends[0]), dtype=torch.bool).tril(-1).triu(-1)
        return honest(positions, ends, window) | before

    monkeypatch.setattr(logps, "ancestor_mask", lenient)
    assert check_sharing(model, QUESTIONS).way == "rows"


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("types, count", [("sfsf", 2), ("sssf", 4), ("ffff", 1)], ids=str)
def test_an_excerpt_has_a_layer_of_each_kind_and_leaves_the_model_as_it_was(types, count, tied):
    kinds = {"s": "sliding_attention", "f": "full_attention"}
    model = small_model(
        "gemma2", layer_types=[kinds[t] for t in types], tie_word_embeddings=tied
    ).to(torch.bfloat16)  # fmt: skip
    layers = decoder_layers(model)
    before, places = list(layers), [p.data_ptr() for p in model.parameters()]
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    rows = embeddings.weight[[1, 5, 50]].float(), head.weight[[1, 5, 50]].float()
    with pytest.raises(KeyError), excerpt(model, layers, [1, 5, 50]):
        assert list(layers) == before[:count]
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        assert torch.equal(embeddings.weight, rows[0]) and torch.equal(head.weight, rows[1])
        assert model(input_ids=torch.tensor([[0, 2, 1]])).logits.shape == (1, 3, 3)
        raise KeyError
    assert list(layers) == before
    assert [p.data_ptr() for p in model.parameters()] == places
    assert model.dtype == torch.bfloat16


def test_the_tokens_of_an_excerpt_are_their_places_in_it():
    question = EncodedQuestion((7, 5), (9,), ((5, 9), (7,)))
    assert renumbered(question, [5, 7, 9]) == EncodedQuestion((1, 0), (2,), ((0, 2), (1,)))


@pytest.mark.parametrize("why", ["counted by the configuration", "split among processes"])
def test_where_no_excerpt_can_be_made_the_whole_model_is_compared(why):
    model = small_model()
    layers, seen = decoder_layers(model), []
    honest = type(model.model).forward

    def forward(*args, **inputs):
        seen.append(len(layers))
        layers[3]  # an IndexError where it is not there
        return honest(model.model, *args, **inputs)

    model.model.forward = forward
    if why.startswith("split"):
        layers[0].unshard = lambda: None
    assert check_sharing(model, QUESTIONS).way == "tries"
    model.config.logit_scale = 0.5
    assert check_sharing(model, QUESTIONS).way == "logits"
    assert (1 in seen) == why.startswith("counted") and seen.count(4) >= 8


def test_scores_that_are_no_numbers_in_the_models_own_dtype_stop_the_run():
    """An excerpt in float32 has them not."""
    model = small_model().to(torch.float16)
    model.model.layers[3].mlp.down_proj.weight.data[:] = 60_000
    with pytest.raises(NumericError, match="not finite in torch.float16"):
        check_sharing(model, QUESTIONS)


def test_an_architecture_with_its_own_positions_is_trained_on_plain_rows():
    """BLOOM's ALiBi adds a distance between columns, which branches of a trie break."""
    torch.manual_seed(0)
    config = transformers.BloomConfig(vocab_size=97, hidden_size=32, n_layer=2, n_head=4)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    check = check_sharing(model, QUESTIONS)
    assert check.way == "rows" and "does not take a tree mask" in check.reason


def test_a_recurrent_architecture_is_trained_on_plain_rows():
    torch.manual_seed(0)
    config = transformers.MambaConfig(
        vocab_size=97, hidden_size=32, num_hidden_layers=2, state_size=4
    )
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    assert check_sharing(model, QUESTIONS).way == "rows"


@pytest.mark.parametrize(
    "architecture, lie, way",
    [
        ("gemma2", {"final_logit_softcapping": None}, "logits"),  # the head would lose its soft-cap
        ("gemma3", {"sliding_window": 1000}, "logits"),  # all masks would lose their window
        ("llama", {"sliding_window": 3}, "rows"),  # the masks would have one that the model has not
        ("llama", {"logit_scale": 0.5}, "logits"),
    ],
)
def test_a_wrongly_read_configuration_is_noticed(architecture, lie, way):
    """The model is built by one configuration, and tries are built by another.

    Plain rows are read by the body alone, with the other configuration, and by our head.
    """
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
    assert check.way == way and "tries differ from plain rows by" in check.reason


def test_the_longest_answer_is_among_those_compared():
    """Only it leaves the window that the masks ignore."""
    model = small_model("mistral")
    short = [(20 + i, 2) for i in range(5)]
    long = tuple(range(30, 60))
    question = EncodedQuestion((3, 4), short[0], (*short[1:], long))
    assert check_sharing(model, [question]).way == "tries"
    model.config.sliding_window = 1000
    model.forward = windowed(model.forward, model.config, 6)
    assert check_sharing(model, [question]).way == "logits"


def windowed(forward, config, window):
    """The model's own forward keeps the window that its configuration has lost."""

    def run(**inputs):
        lie, config.sliding_window = config.sliding_window, window
        try:
            return forward(**inputs)
        finally:
            config.sliding_window = lie

    return run


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_no_numbers_are_named_and_no_dtype_is_advised(value):
    model = small_model()
    model.model.layers[0].self_attn.q_proj.weight.data[3, 1] = value
    with pytest.raises(
        NumericError, match=r"in 1 of .*model\.layers\.0\.self_attn\.q_proj"
    ) as error:
        check_sharing(model, QUESTIONS)
    assert "--dtype" not in str(error.value)


def test_scores_that_overflow_in_float32_do_not_advise_float32():
    model = small_model()
    model.lm_head.weight.data[:] = 3e38
    with pytest.raises(NumericError, match="not finite in torch.float32; choose another --model"):
        check_sharing(model, QUESTIONS)


LONG = EncodedQuestion(PROMPT, tuple(range(30, 60)), ((70, 2),))


@pytest.mark.parametrize("questions", [QUESTIONS, [LONG, *QUESTIONS]], ids=["short", "long"])
@pytest.mark.parametrize("kind", ROTARY)
def test_tries_do_not_suit_a_model_whose_rotary_frequencies_depend_on_a_length_that_comes(
    kind, questions
):
    model = length_dependent(kind, window=24)
    rotary_by_rows(model)
    assert check_sharing(model, questions).way == "rows"
    far = length_dependent(kind, window=2000)  # no text comes near
    rotary_by_rows(far)
    assert check_sharing(far, questions).way == "tries"


def test_a_position_that_is_not_in_a_models_table_is_never_asked_for():
    """A GPU stops for good there."""
    size = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 40}
    config = transformers.GPT2Config(vocab_size=97, attn_implementation="eager", **size)
    model, asked = transformers.AutoModelForCausalLM.from_config(config).eval(), []
    model.transformer.wpe.register_forward_hook(lambda _, given, out: asked.append(given[0].max()))
    assert check_sharing(model, QUESTIONS).way == "tries"
    assert max(asked) < 40


def test_a_model_that_scores_a_row_otherwise_beside_others_is_refused():
    """Unmended rotary frequencies do, and experts that have room for so many tokens."""
    with pytest.raises(DataError, match="depends on what else is in its batch"):
        check_sharing(length_dependent("longrope", window=24), [LONG, *QUESTIONS])
    model = small_model()
    mlp = model.model.layers[0].mlp
    honest = mlp.forward
    mlp.forward = lambda x: honest(x) * (x.flatten(0, -2).shape[0] <= 24)
    with pytest.raises(DataError, match="depends on what else is in its batch"):
        check_sharing(model, QUESTIONS)


@pytest.mark.parametrize("raised", [KeyError("full_attention"), RuntimeError("shapes differ")])
def test_a_model_whose_own_forward_fails_is_refused(raised):
    model = small_model()

    def forward(**inputs):
        raise raised

    model.forward = forward
    with pytest.raises(DataError, match="own forward fails .*(full_attention|shapes differ)"):
        check_sharing(model, QUESTIONS)


def test_a_tokenizer_of_another_model_is_named():
    question = EncodedQuestion((3, 4), (5, 2), ((200, 2),))
    with pytest.raises(DataError, match="the id 200 and the model embeds 97 tokens"):
        check_sharing(small_model(), [question])
    small = EncodedQuestion((3, 4), (5, 2), ((6, 2),))
    with pytest.raises(DataError, match="the id 300"):  # of a question that is not among the few
        check_sharing(small_model(), [small], largest_id=300)


def test_layers_that_differ_in_what_is_written_in_them_are_of_different_kinds():
    """GPT-Neo's second layer has a window over columns, which tries break; modules are alike."""
    config = transformers.GPTNeoConfig(
        vocab_size=97, hidden_size=32, num_layers=4, num_heads=4, window_size=6,
        attention_types=[[["global", "local"], 2]],
    )  # fmt: skip
    model = drawn(config, 0.3)
    layers = decoder_layers(model)
    assert first_of_each_kind(model, layers) == 2
    assert first_of_each_kind(small_model(), decoder_layers(small_model())) == 1
    assert check_sharing(model, QUESTIONS).way == "rows"


def test_numbers_that_count_the_layers_make_no_kinds():
    """Where some layers have one and others none, too, as the recurrent ones of a hybrid."""
    model = family_model("bamba", num_hidden_layers=4, attn_layer_indices=[1, 3])
    assert first_of_each_kind(model, decoder_layers(model)) == 2


@pytest.mark.parametrize("kind", ["Bert", "Roberta"])
def test_a_model_that_reads_ahead_is_refused(kind):
    """An encoder is one where its configuration does not say that it is a decoder."""
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "pad_token_id": 0}
    kind = getattr(transformers, f"{kind}Config")
    encoder, decoder = (
        drawn(kind(vocab_size=97, intermediate_size=48, is_decoder=is_decoder, **size), 0.3)
        for is_decoder in (False, True)
    )
    with pytest.raises(DataError, match="reads ahead.*no causal language model"):
        check_sharing(encoder, QUESTIONS)
    assert check_sharing(decoder, QUESTIONS).way in ("tries", "logits")


def test_a_model_that_changes_its_own_weights_as_it_reads_is_refused():
    """RWKV divides some of them in eval mode, so that a merged model would do so once more."""
    config = transformers.RwkvConfig(vocab_size=97, hidden_size=32, num_hidden_layers=2)
    with pytest.raises(DataError, match="changes its own weights"):
        check_sharing(drawn(config, 0.2), QUESTIONS)
