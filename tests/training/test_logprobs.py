"""Tiled log-probabilities against the plain computation from all logits, in float64, with gradients and memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from evals.training_memory_meter import count_tensors
from stepwise.errors import DataError
from stepwise.training import logprobs as logprobs_module
from stepwise.training.logprobs import token_logprobs
from tests.tiny_models import Arch, tiny_model

torch = pytest.importorskip("torch", reason='needs pip install "stepwise[train]"')
pytest.importorskip("peft", reason='needs pip install "stepwise[train]"')

ARCHS: tuple[Arch, ...] = ("qwen3", "llama", "qwen2")
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
V = 640  # vocabulary of the models here


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("logprobs")


def load(folder: Path, arch: Arch = "qwen3", *, tied: bool = True, dtype: str = "float64", **options: Any) -> Any:
    from transformers import AutoModelForCausalLM

    path = folder / f"{arch}-{tied}-{'-'.join(f'{k}{v}' for k, v in options.items())}"
    if not path.exists():
        tiny_model(path, arch, tied=tied, **{"vocab_size": V, **options})
    return AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, dtype))


def with_lora(model: Any, **options: Any) -> Any:
    """A LoRA adapter whose both halves are random, so that it changes the logits and every weight has a gradient."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    config = LoraConfig(**{"r": 4, "target_modules": LINEAR, "init_lora_weights": False, **options})
    return get_peft_model(model, config)


def batch(rows: int = 3, length: int = 12) -> tuple[Any, Any, Any]:
    """Random ids, rows of different lengths, and a scattered choice of tokens that includes each row's last."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(V, (rows, length), generator=generator)
    lengths = torch.tensor([length - 3 * i for i in range(rows)])
    attention = torch.arange(length) < lengths[:, None]
    wanted = (torch.rand(rows, length, generator=generator) < 0.6) & attention
    wanted[torch.arange(rows), lengths - 1] = True
    wanted[:, 0] = False
    return ids, attention, wanted


def plain(model: Any, ids: Any, attention: Any, wanted: Any) -> tuple[Any, Any]:
    """Log-probabilities and entropies from all logits, as in any textbook."""
    logits = model(input_ids=ids, attention_mask=attention.long()).logits[:, :-1]
    logps = logits.log_softmax(-1)
    entropy = -(logps.exp() * logps).sum(-1)
    picked = logps.gather(-1, ids[:, 1:, None]).squeeze(-1)
    pad = torch.zeros(len(ids), 1, dtype=logits.dtype)
    return tuple(torch.cat([pad, one], 1) * wanted for one in (picked, entropy))  # type: ignore[return-value]


def gradients(model: Any, logprobs: Any) -> dict[str, Any]:
    """Gradients of a loss that weighs every token differently."""
    model.zero_grad(set_to_none=True)
    weights = torch.linspace(-1, 2, logprobs.numel(), dtype=logprobs.dtype).view_as(logprobs)
    (weights * logprobs.exp()).sum().backward()
    return {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}


def equal(ours: dict[str, Any], theirs: dict[str, Any]) -> bool:
    assert ours
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert value.abs().max() > 1e-6, f"{name} has no gradient, so that its equality shows nothing"
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours) < 1e-10


@pytest.mark.parametrize(("tile", "block"), [(1, V), (5, 100), (1024, 8192)])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("arch", ARCHS)
def test_values_entropies_and_gradients_of_an_adapter_equal_those_from_all_logits(
    folder: Path, arch: Arch, tied: bool, tile: int, block: int
) -> None:
    model, data = with_lora(load(folder, arch, tied=tied)), batch()
    logprobs, entropy = plain(model, *data)
    ours = token_logprobs(model, *data, tile=tile, block=block, entropy=True)
    assert ours.logprobs.dtype == torch.float64
    assert (ours.logprobs - logprobs).abs().max() < 1e-10
    assert ours.entropy is not None
    assert (ours.entropy - entropy).abs().max() < 1e-10
    assert not ours.entropy.requires_grad
    ours_grads = gradients(model, ours.logprobs)
    assert len(ours_grads) == 2 * 2 * len(LINEAR)
    assert equal(ours_grads, gradients(model, plain(model, *data)[0]))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("arch", ARCHS)
def test_a_trained_head_and_all_other_weights_get_the_gradients_of_the_plain_computation(
    folder: Path, arch: Arch, tied: bool
) -> None:
    model, data = load(folder, arch, tied=tied), batch()
    ours = gradients(model, token_logprobs(model, *data, tile=4, block=100).logprobs)
    assert ("model.embed_tokens.weight" if tied else "lm_head.weight") in ours
    assert equal(ours, gradients(model, plain(model, *data)[0]))


def test_a_head_alone_is_trained_on_hidden_states_without_gradient(folder: Path) -> None:
    model, data = load(folder, tied=False), batch()
    model.requires_grad_(False)
    model.lm_head.weight.requires_grad_(True)
    ours = gradients(model, token_logprobs(model, *data, tile=4).logprobs)
    assert list(ours) == ["lm_head.weight"]
    assert equal(ours, gradients(model, plain(model, *data)[0]))


def test_gradient_checkpointing_changes_nothing(folder: Path) -> None:
    model, data = with_lora(load(folder)), batch()
    before = gradients(model, token_logprobs(model, *data).logprobs)
    model.train()
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert equal(gradients(model, token_logprobs(model, *data).logprobs), before)


def test_the_disabled_adapter_gives_the_base_model(folder: Path) -> None:
    base, data = load(folder), batch()
    expected = token_logprobs(base, *data).logprobs
    model = with_lora(base)
    with model.disable_adapter(), torch.no_grad():
        assert torch.equal(token_logprobs(model, *data).logprobs, expected)
    assert not torch.equal(token_logprobs(model, *data).logprobs, expected)


def test_what_stands_in_the_padding_changes_nothing(folder: Path) -> None:
    model = load(folder)
    ids, attention, wanted = batch()
    other = torch.where(attention, ids, (ids + 7) % V)
    assert not torch.equal(ids, other)
    ours, theirs = (token_logprobs(model, one, attention, wanted).logprobs for one in (ids, other))
    assert torch.equal(ours, theirs)


def test_entropy_is_absent_unless_asked_for(folder: Path) -> None:
    assert token_logprobs(load(folder), *batch()).entropy is None


def test_without_gradients_the_values_are_the_same_and_nothing_is_recorded(folder: Path) -> None:
    model, data = with_lora(load(folder)), batch()
    with torch.no_grad():
        silent = token_logprobs(model, *data).logprobs
    assert not silent.requires_grad
    assert torch.equal(silent, token_logprobs(model, *data).logprobs)


def test_an_empty_choice_gives_zeros_and_zero_gradients(folder: Path) -> None:
    model = with_lora(load(folder))
    ids, attention, wanted = batch()
    ours = token_logprobs(model, ids, attention, torch.zeros_like(wanted), entropy=True)
    assert ours.logprobs.shape == ids.shape
    assert not ours.logprobs.any()
    assert ours.entropy is not None
    assert not ours.entropy.any()
    ours.logprobs.sum().backward()
    assert all(not one.grad.any() for one in model.parameters() if one.grad is not None)


@pytest.mark.parametrize("block", [100, 8192])
def test_a_model_in_bfloat16_has_logits_in_float32(folder: Path, block: int) -> None:
    model, data = with_lora(load(folder, dtype="bfloat16")), batch()
    decoder, head = model.get_base_model().get_decoder(), model.get_base_model().lm_head
    with torch.no_grad():
        states = decoder(input_ids=data[0]).last_hidden_state[:, :-1]
        assert states.dtype == torch.bfloat16
        logps = (states.double() @ head.weight.double().t()).log_softmax(-1)  # of the same hidden states, exactly
    expected = logps.gather(-1, data[0][:, 1:, None]).squeeze(-1) * data[2][:, 1:]
    ours = token_logprobs(model, *data, tile=7, block=block).logprobs
    assert ours.dtype == torch.float32
    assert (ours[:, 1:] - expected).abs().max() < 1e-5  # rounded logits would be 1e-2 off
    rounded = states.matmul(head.weight.t()).double().log_softmax(-1).gather(-1, data[0][:, 1:, None]).squeeze(-1)
    assert (rounded * data[2][:, 1:] - expected).abs().max() > 1e-3


def test_gradients_in_bfloat16_are_those_of_float64_up_to_rounding(folder: Path) -> None:
    grads = {}
    for dtype in ("float64", "bfloat16"):
        model = with_lora(load(folder, dtype="bfloat16")).to(getattr(torch, dtype))
        grads[dtype] = gradients(model, token_logprobs(model, *batch(), tile=7).logprobs)
    for name, exact in grads["float64"].items():
        assert grads["bfloat16"][name].dtype == torch.bfloat16
        assert (grads["bfloat16"][name].double() - exact).norm() < 0.1 * exact.norm(), name


def test_mixed_precision_around_the_call_does_not_round_the_logits(folder: Path) -> None:
    model = load(folder, dtype="float32").eval()
    ids, attention, wanted = batch()
    head = model.lm_head.weight
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        states = model.model(input_ids=ids).last_hidden_state[:, :-1]
        ours = token_logprobs(model, ids, attention, wanted).logprobs[:, 1:]
    logps = (states.double() @ head.double().t()).log_softmax(-1)
    expected = logps.gather(-1, ids[:, 1:, None]).squeeze(-1) * wanted[:, 1:]
    assert (ours - expected).abs().max() < 1e-4


@pytest.mark.parametrize("entropy", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_no_tensor_is_larger_than_the_logits_of_one_tile_and_block(
    folder: Path, checkpointing: bool, entropy: bool
) -> None:
    vocabulary, tile, rows, length = 20_000, 8, 4, 32
    of_tile = tile * logprobs_module._BLOCK * 4  # bytes
    model = with_lora(load(folder, dtype="float32", vocab_size=vocabulary))
    model.train()
    if checkpointing:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    ids, attention, _ = batch(rows, length)
    wanted = attention.clone()
    wanted[:, 0] = False
    tiles = int(wanted.sum()) // tile
    with count_tensors() as counts:
        token_logprobs(model, ids, attention, wanted, tile=tile, entropy=entropy).logprobs.sum().backward()
    assert counts.largest == of_tile  # so it was seen, and nothing beyond it
    assert counts.sizes.count(of_tile) >= 2 * 2 * tiles  # two whole blocks, forward and backward
    assert counts.peak < rows * length * vocabulary * 4 / 2  # all together, what the layers keep included
    with count_tensors() as counts:
        plain(model, ids, attention, wanted)[0].sum().backward()
    assert counts.largest >= rows * (length - 1) * vocabulary * 4  # the measure sees what it is meant to see


@pytest.mark.parametrize("entropy", [False, True])
def test_the_head_holds_no_more_than_two_tiles_at_a_time(entropy: bool) -> None:
    """On the head alone, where layers keep nothing."""
    tile, size = 16, 4 * logprobs_module._BLOCK
    states = torch.randn(64, 8, requires_grad=True)
    head, targets = torch.randn(3 * logprobs_module._BLOCK, 8), torch.randint(0, 1000, (64,))
    with count_tensors() as counts:
        found, _ = logprobs_module._TiledLogprobs.apply(states, head, targets, tile, logprobs_module._BLOCK, entropy)
        found.sum().backward()
    assert counts.peak < (2 if entropy else 1) * tile * size + 0.1 * tile * size


def test_a_frozen_head_costs_no_gradient_and_a_trained_one_does(folder: Path) -> None:
    vocabulary = 20_000
    for trained in (False, True):
        model = load(folder, dtype="float32", vocab_size=vocabulary, tied=False)
        model.lm_head.weight.requires_grad_(trained)
        model.model.embed_tokens.weight.requires_grad_(False)
        with count_tensors() as counts:
            token_logprobs(model, *batch(), tile=8).logprobs.sum().backward()
        assert (counts.largest >= vocabulary * 128 * 4) == trained


def test_the_first_token_of_a_row_cannot_be_wanted(folder: Path) -> None:
    ids, attention, wanted = batch()
    wanted[1, 0] = True
    with pytest.raises(DataError, match="first column"):
        token_logprobs(load(folder), ids, attention, wanted)


def test_padding_that_is_wanted_or_not_on_the_right_is_refused(folder: Path) -> None:
    model = load(folder)
    ids, attention, wanted = batch()
    with pytest.raises(DataError, match="padding has no log-probability"):
        token_logprobs(model, ids, attention, wanted | ~attention)
    with pytest.raises(DataError, match="pad the rows on the right"):
        token_logprobs(model, ids, attention.flip(1), torch.zeros_like(wanted))


def test_masks_of_another_shape_or_type_and_an_empty_tile_are_refused(folder: Path) -> None:
    model = load(folder)
    ids, attention, wanted = batch()
    with pytest.raises(DataError, match=r"attention is of shape \(3, 12\) and type torch.int64"):
        token_logprobs(model, ids, attention.long(), wanted)
    with pytest.raises(DataError, match=r"wanted is of shape \(3, 11\)"):
        token_logprobs(model, ids, attention, wanted[:, 1:])
    with pytest.raises(DataError, match="ids is of shape"):
        token_logprobs(model, ids.float(), attention, wanted)
    with pytest.raises(DataError, match="tile is 0"):
        token_logprobs(model, ids, attention, wanted, tile=0)


def test_a_head_with_an_adapter_or_a_bias_is_refused_with_the_remedy(folder: Path) -> None:
    for model in (
        with_lora(load(folder, tied=False), target_modules=["q_proj", "lm_head"]),
        with_lora(load(folder, tied=False), modules_to_save=["lm_head"]),
    ):
        with pytest.raises(DataError, match="leave the head"):
            token_logprobs(model, *batch())
    model = load(folder, tied=False)
    model.lm_head.bias = torch.nn.Parameter(torch.ones(V, dtype=torch.float64))
    with pytest.raises(DataError, match="without a bias"):
        token_logprobs(model, *batch())


def test_models_that_do_more_to_their_logits_and_learned_prompts_are_refused(folder: Path) -> None:
    from peft import PromptTuningConfig, get_peft_model

    model = load(folder)
    model.config.model_type = "gemma2"
    with pytest.raises(DataError, match="'gemma2'; supported are llama, qwen2, qwen3"):
        token_logprobs(model, *batch())
    prompted = get_peft_model(load(folder), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(DataError, match="learned prompt"):
        token_logprobs(prompted, *batch())


def test_on_a_gpu_products_of_half_precision_give_float32() -> None:
    """Shapes and types of the branch that only a GPU takes, on tensors without storage."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        states, head = (torch.empty(n, 16, dtype=torch.bfloat16, device="cuda") for n in (4, 32))
        logits = logprobs_module._product(states, head.t())
        assert (logits.dtype, tuple(logits.shape)) == (torch.float32, (4, 32))
        back = logprobs_module._product(logits, head)
        assert (back.dtype, tuple(back.shape)) == (torch.float32, (4, 16))
