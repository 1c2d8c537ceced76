"""Generation: the cached ragged batch equals the plain loop, for every row and every order."""

import itertools
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from stemma.core.errors import ModelError, UsageError
from stemma.infer import generate as generation
from stemma.infer.generate import Generation, generate, stream
from stemma.infer.sampling import Sampling, uniform

PROMPTS = ["", "a", "The cat", "é€", "A longer prompt than the others", "The cat"]
GREEDY = Sampling(temperature=0, max_new_tokens=12)
DRAWN = Sampling(temperature=1.3, top_k=90, top_p=0.9, min_p=0.01, seed=7, max_new_tokens=12)
PENALISED = DRAWN.model_copy(update={"repetition_penalty": 1.4})


def plain_loop(model, ids, sampling, eos_id):
    """No cache, no batch, the reference's filters: one full pass for each token."""
    ids, made = list(ids), []
    warpers = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty)])
    if sampling.temperature:
        warpers += [
            TemperatureLogitsWarper(sampling.temperature),
            TopKLogitsWarper(sampling.top_k),
            TopPLogitsWarper(sampling.top_p),
            MinPLogitsWarper(sampling.min_p),
        ]
    while len(made) < sampling.max_new_tokens and eos_id not in made:
        with torch.no_grad():
            scores = model(torch.tensor([ids]))[:, -1]
        scores = warpers(torch.tensor([ids]), scores)[0]
        if sampling.temperature:
            below = itertools.accumulate(scores.softmax(-1).tolist())
            noise = uniform(sampling.seed, len(ids))
            token = next(n for n, chance in enumerate(below) if chance > noise)
        else:
            token = scores.argmax().item()
        ids.append(token)
        made.append(token)
    return made


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN, PENALISED], ids=["greedy", "drawn", "penalty"])
def test_ragged_cached_batch_equals_the_plain_loop(model, tokenizer, sampling):
    results = generate(model, tokenizer, PROMPTS, sampling)
    for prompt, result in zip(PROMPTS, results, strict=True):
        ids = [tokenizer.bos_id, *tokenizer.encode(prompt)]
        assert result.token_ids == plain_loop(model, ids, sampling, tokenizer.eos_id)
        assert result.prompt_tokens == len(ids)
        assert result.completion_tokens == len(result.token_ids)
        assert result.text == tokenizer.decode(result.token_ids)


def test_rows_do_not_depend_on_their_batch_nor_its_order(model, tokenizer):
    """Rows with different settings and lengths, so that they leave at different times."""
    rows = [
        (
            prompt,
            Sampling(
                temperature=heat,
                repetition_penalty=1 + n % 3,
                seed=n,
                max_new_tokens=3 + 5 * n,
                logprobs=2,
            ),
        )
        for n, (prompt, heat) in enumerate(zip(PROMPTS, [0, 1, 2, 0.5, 1, 1], strict=True))
    ]
    alone = [generate(model, tokenizer, [prompt], [sampling])[0] for prompt, sampling in rows]
    assert len({len(result.token_ids) for result in alone}) > 3
    for order_seed in range(3):
        order = random.Random(order_seed).sample(range(len(rows)), k=len(rows))
        prompts, samplings = zip(*(rows[n] for n in order), strict=True)
        for n, result in zip(order, generate(model, tokenizer, prompts, samplings), strict=True):
            assert result.token_ids == alone[n].token_ids
            assert result.text == alone[n].text
            assert result.finish_reason == alone[n].finish_reason
            for ours, theirs in zip(result.logprobs, alone[n].logprobs, strict=True):
                assert abs(ours.logprob - theirs.logprob) < 1e-9


def test_equal_prompts_differ_by_their_seeds_only(llama, tokenizer):
    samplings = [Sampling(temperature=2, top_p=1, seed=n, max_new_tokens=8) for n in (1, 2, 1)]
    first, other, again = generate(llama, tokenizer, ["x"] * 3, samplings)
    assert first == again
    assert first.token_ids != other.token_ids


def test_a_drawn_seed_is_reported_and_repeats_the_text(llama, tokenizer):
    free = Sampling(temperature=2, top_p=1, max_new_tokens=8)
    first, other = generate(llama, tokenizer, ["x", "x"], free)
    assert first.seed != other.seed
    again = generate(llama, tokenizer, ["x"], free.model_copy(update={"seed": first.seed}))
    assert again == [first]


def test_a_text_can_be_continued_where_it_ended(llama, tokenizer):
    """Noise is counted by position: twelve tokens are five and then seven."""
    whole = generate(llama, tokenizer, [[65, 66]], DRAWN)[0].token_ids
    head = generate(llama, tokenizer, [[65, 66]], DRAWN.model_copy(update={"max_new_tokens": 5}))
    prompt = [65, 66, *head[0].token_ids]
    tail = generate(llama, tokenizer, [prompt], DRAWN.model_copy(update={"max_new_tokens": 7}))
    assert head[0].token_ids + tail[0].token_ids == whole


@given(
    st.lists(st.lists(st.integers(0, 257), max_size=9), max_size=4),
    st.lists(st.text("abc\x00\ufffd", min_size=1, max_size=2), max_size=3),
    st.integers(0, 99),
)
@settings(max_examples=25, deadline=None)
def test_streamed_pieces_are_the_text(build, tokenizer, prompts, stop, seed):
    model = build("llama", depth=1)
    sampling = Sampling(temperature=2, top_p=1, seed=seed, stop=tuple(stop), max_new_tokens=10)
    whole = generate(model, tokenizer, prompts, sampling)
    pieces = list(stream(model, tokenizer, prompts, sampling))
    for row, result in enumerate(whole):
        mine = [piece for piece in pieces if piece.row == row]
        assert "".join(piece.text for piece in mine) == result.text
        assert [piece.token_id for piece in mine] == result.token_ids
        reasons = [piece.finish_reason for piece in mine]
        assert reasons == [None] * (len(mine) - 1) + [result.finish_reason]


def test_sampled_frequencies_are_the_softmax(build, tokenizer):
    """The whole path, 1,000 seeds in one batch; chi-square over tokens expected 20 times."""
    model, count = build("llama", depth=1, vocab_size=20), 1000
    with torch.no_grad():
        chances = model(torch.tensor([[3, 4]]))[0, -1].softmax(-1)
    samplings = [Sampling(temperature=1, top_p=1, seed=n, max_new_tokens=1) for n in range(count)]
    results = generate(model, tokenizer, [[3, 4]] * count, samplings)
    drawn = torch.tensor([result.token_ids[0] for result in results]).bincount(minlength=20)
    often = chances * count >= 20
    assert often.sum() >= 4
    chi_square = ((drawn - chances * count) ** 2 / (chances * count))[often].sum()
    assert chi_square < 3 * often.sum() + 10


def test_logprobs_equal_a_full_pass(model, tokenizer):
    """Of the raw distribution, whatever the temperature and the filters."""
    sampling = DRAWN.model_copy(update={"logprobs": 3})
    for prompt, result in zip(PROMPTS, generate(model, tokenizer, PROMPTS, sampling), strict=True):
        ids = [tokenizer.bos_id, *tokenizer.encode(prompt), *result.token_ids]
        with torch.no_grad():
            log_TV = model(torch.tensor([ids]))[0].log_softmax(-1)[result.prompt_tokens - 1 :]
        for log_V, found, token in zip(log_TV, result.logprobs, result.token_ids, strict=False):
            assert found.token_id == token
            assert abs(found.logprob - log_V[token].item()) < 1e-9
            assert [best for best, _ in found.best] == log_V.topk(3).indices.tolist()
            assert abs(found.best[2][1] - log_V.topk(3).values[2].item()) < 1e-9
    assert generate(model, tokenizer, ["x"], GREEDY)[0].logprobs is None


def test_single_precision_logprobs_are_close_to_a_full_pass(build, tokenizer):
    model = build("llama").float()
    sampling = Sampling(seed=1, logprobs=1, max_new_tokens=20)
    for result in generate(model, tokenizer, [[5], [6, 7, 8]], sampling):
        prompt = [[5], [6, 7, 8]][result.prompt_tokens > 1]
        ids = torch.tensor([prompt + result.token_ids])
        with torch.no_grad():
            log_TV = model(ids)[0].log_softmax(-1)[len(prompt) - 1 : -1]
        for log_V, found in zip(log_TV, result.logprobs, strict=True):
            assert abs(found.logprob - log_V[found.token_id].item()) < 1e-4


def test_the_end_token_ends_the_text_and_is_no_part_of_it(say, tokenizer):
    model = say({ord("a"): ord("b"), ord("b"): tokenizer.eos_id})
    (result,) = generate(model, tokenizer, ["a"], GREEDY)
    assert result == Generation("b", [98, 257], "stop", 2, 2, result.seed, None)


@pytest.mark.parametrize(
    ("end_ids", "text"),
    [(None, "bcd"), ({257}, "bcd"), ([257, 99], "b"), ([99, 98], ""), ((), "bcd\x01")],
)
def test_each_of_several_end_tokens_ends_the_text(say, tokenizer, end_ids, text):
    model = say({97: 98, 98: 99, 99: 100, 100: 257, 257: 1, 1: 257})
    sampling = GREEDY.model_copy(update={"max_new_tokens": 5})
    (result,) = generate(model, tokenizer, ["a"], sampling, end_ids=end_ids)
    assert (result.text, result.finish_reason) == (text, "length" if end_ids == () else "stop")
    pieces = stream(model, tokenizer, ["a"], sampling, end_ids=end_ids)
    assert "".join(piece.text for piece in pieces) == text


def test_the_end_token_is_not_shown_by_tokenizers_that_would_write_it(say, make_tokenizer):
    class Loud(make_tokenizer):
        def decode(self, ids):
            return "".join("<end>" if token == 257 else chr(token) for token in ids)

    model = say({ord("a"): ord("b"), ord("b"): 257})
    assert generate(model, Loud(), ["a"], GREEDY)[0].text == "b"


def test_without_an_end_token_only_the_length_ends_a_text(say, make_tokenizer):
    model = say({ord("a"): ord("b"), ord("b"): 257, 257: ord("c")})
    tokenizer = make_tokenizer(eos_id=None)
    (result,) = generate(model, tokenizer, ["a"], GREEDY.model_copy(update={"max_new_tokens": 3}))
    assert (result.text, result.finish_reason) == ("bc", "length")


def test_a_stop_string_across_tokens_ends_the_text(say, tokenizer):
    model = say({97: 98, 98: 99, 99: 100, 100: 97})  # abcdabcd...
    sampling = GREEDY.model_copy(update={"stop": ("dab", "zz")})
    (result,) = generate(model, tokenizer, ["a"], sampling)
    assert (result.text, result.finish_reason) == ("bc", "stop")
    assert result.token_ids == list(b"bcdab")
    pieces = [piece.text for piece in stream(model, tokenizer, ["a"], sampling)]
    assert pieces == ["b", "c", "", "", ""]


def test_the_beginning_of_a_stop_string_is_shown_when_the_text_ends(say, tokenizer):
    model = say({97: 98, 98: 99, 99: tokenizer.eos_id})
    sampling = GREEDY.model_copy(update={"stop": ("bcd",)})
    assert generate(model, tokenizer, ["a"], sampling)[0].text == "bc"
    short = sampling.model_copy(update={"max_new_tokens": 1})
    assert generate(model, tokenizer, ["a"], short)[0].text == "b"


def test_the_stop_string_may_stand_in_the_prompt(say, tokenizer):
    """Only what the model writes is searched."""
    model = say({97: 98, 98: 99, 99: tokenizer.eos_id})
    sampling = GREEDY.model_copy(update={"stop": ("ab",)})
    assert generate(model, tokenizer, ["aba"], sampling)[0].text == "bc"


def test_bytes_that_become_no_character_are_shown_at_the_end(say, tokenizer):
    model = say({97: 0xE2, 0xE2: 0x82, 0x82: tokenizer.eos_id})
    (result,) = generate(model, tokenizer, ["a"], GREEDY)
    assert result.text == "\ufffd"
    pieces = [piece.text for piece in stream(model, tokenizer, ["a"], GREEDY)]
    assert pieces == ["", "", "\ufffd"]


@pytest.mark.parametrize("length", [1, 40, 62, 63])
def test_a_text_ends_at_the_context(model, tokenizer, length):
    """Also beside a shorter row, with a learned position table that has no row to spare."""
    sampling = Sampling(temperature=0, max_new_tokens=1000)
    model.logits = lambda x, logits=model.logits: logits(x).index_fill(-1, torch.tensor(257), -99)
    whole, other = generate(model, tokenizer, [[65] * length, [66] * 3], sampling)
    assert (whole.completion_tokens, whole.finish_reason) == (64 - length, "length")
    assert (other.completion_tokens, other.finish_reason) == (61, "length")


@pytest.mark.parametrize("length", [64, 65, 999])
def test_a_prompt_that_leaves_no_room_is_refused_with_both_numbers(model, tokenizer, length):
    with pytest.raises(UsageError, match=f"prompt 1: {length} tokens .* context of 64"):
        stream(model, tokenizer, [[1], [1] * length], GREEDY)  # before the first piece is asked


@pytest.mark.parametrize("token", [-1, 258, 2**40])
def test_a_token_outside_the_vocabulary_is_refused(model, tokenizer, token):
    with pytest.raises(UsageError, match=f"token id {token} .* 0 to 257"):
        generate(model, tokenizer, [[0, token]], GREEDY)


def test_prompts_and_samplings_must_be_lists_of_one_length(llama, tokenizer):
    with pytest.raises(UsageError, match="2 prompts but 3 samplings"):
        generate(llama, tokenizer, ["a", "b"], [GREEDY] * 3)
    with pytest.raises(UsageError, match="hand in a list"):
        generate(llama, tokenizer, "one text", GREEDY)
    assert generate(llama, tokenizer, [], GREEDY) == []


def test_texts_begin_with_bos_where_documents_do(llama, make_tokenizer):
    def prompt_of(tokenizer, prompt):
        sampling = GREEDY.model_copy(update={"max_new_tokens": 4})
        (result,) = generate(llama, tokenizer, [prompt], sampling)
        (same,) = [
            ids
            for ids in ([256, 97], [97], [256], [257])
            if plain_loop(llama, ids, sampling, 257) == result.token_ids
        ]
        assert result.prompt_tokens == len(same)
        return same

    assert prompt_of(make_tokenizer(), "a") == [256, 97]
    assert prompt_of(make_tokenizer(adds_bos=False), "a") == [97]
    assert prompt_of(make_tokenizer(bos_id=None), "a") == [97]
    assert prompt_of(make_tokenizer(), [97]) == [97]
    assert prompt_of(make_tokenizer(adds_bos=False), "") == [256]
    assert prompt_of(make_tokenizer(), []) == [256]
    assert prompt_of(make_tokenizer(bos_id=None), "") == [257]
    with pytest.raises(UsageError, match="empty"):
        prompt_of(make_tokenizer(bos_id=None, eos_id=None), "")


def test_the_model_is_found_as_it_was(build, tokenizer):
    """Dropout must not act, and every module keeps its mode, also between two pieces."""
    model = build("gpt2", dropout=0.5)
    expected = generate(model, tokenizer, ["abc"], GREEDY)[0].token_ids
    model.train()
    model.blocks[0].eval()
    before = [module.training for module in model.modules()]
    pieces = []
    for piece in stream(model, tokenizer, ["abc"], GREEDY):
        assert [module.training for module in model.modules()] == before
        assert not torch.is_inference_mode_enabled()
        pieces.append(piece.token_id)
    assert pieces == expected
    assert all(parameter.grad is None for parameter in model.parameters())


def test_modes_are_restored_after_an_error(build, tokenizer):
    model = build("llama").train()
    with torch.no_grad():
        model.norm.weight[0] = float("nan")
    with pytest.raises(ModelError, match="not finite"):
        generate(model, tokenizer, ["abc"], GREEDY)
    assert all(module.training for module in model.modules())


def test_a_token_is_read_once(llama, tokenizer):
    """With a cache a step costs one token: the stream is fed prompt + made - 1 tokens in all."""
    fed = []
    llama.embedding.register_forward_hook(lambda module, inputs, out: fed.append(inputs[0].numel()))
    sampling = GREEDY.model_copy(update={"max_new_tokens": 20})
    (result,) = generate(llama, tokenizer, [[65] * 10], sampling)
    assert sum(fed) == 10 + result.completion_tokens - 1


def test_finished_rows_leave_the_batch(say, tokenizer):
    model, widths = say({97: 257, 98: 98}), []
    model.embedding.register_forward_hook(lambda module, inputs, out: widths.append(len(out)))
    sampling = GREEDY.model_copy(update={"max_new_tokens": 4})
    short, long = generate(model, tokenizer, ["a", "b"], sampling)
    assert (short.text, long.text) == ("", "bbbb")
    assert widths == [2, 1, 1, 1]


MANY = {"even": [[65] * 11, [66] * 11], "ragged": ["a", "a longer one", [70] * 9]}


@pytest.mark.parametrize("prompts", MANY.values(), ids=MANY)
@pytest.mark.parametrize("chunk", [1, 4, 11])
def test_a_prompt_read_in_parts_is_the_prompt_read_at_once(
    model, tokenizer, monkeypatch, prompts, chunk
):
    sampling = Sampling(temperature=1.0, seed=3, max_new_tokens=12, logprobs=3)
    whole = generate(model, tokenizer, prompts, sampling)
    monkeypatch.setattr(generation, "CHUNK", chunk)
    parts = generate(model, tokenizer, prompts, sampling)
    assert [g.token_ids for g in parts] == [g.token_ids for g in whole]
    for ours, theirs in zip(parts, whole, strict=True):
        for one, other in zip(ours.logprobs, theirs.logprobs, strict=True):
            assert abs(one.logprob - other.logprob) < 1e-9


def test_a_caller_is_asked_before_every_pass(llama, tokenizer, monkeypatch):
    """Before each part of a prompt and each step, so that an answer nobody wants can end."""
    monkeypatch.setattr(generation, "CHUNK", 4)
    asked, read = [], []
    llama.embedding.register_forward_hook(lambda *_: read.append(len(asked)))

    def between():
        asked.append(True)
        if len(asked) == 5:
            raise KeyError("enough")

    made = stream(llama, tokenizer, [[65] * 10], GREEDY, between=between)
    with pytest.raises(KeyError, match="enough"):
        list(made)
    assert read == [1, 2, 3, 4]
