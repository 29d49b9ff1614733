import json
from pathlib import Path

import pytest

from stepwise.config.training import SftConfig
from stepwise.data.examples import read_training_rows, write_examples
from stepwise.errors import ConfigError, DataError
from stepwise.io import read_rows
from stepwise.prompt import SolvePrompt
from stepwise.training.rendering import TokenRow
from tests.training.sft_world import config, copied, metrics, row, whole_and_killed

torch = pytest.importorskip("torch", reason='needs pip install "stepwise[train]"')
pytest.importorskip("peft", reason='needs pip install "stepwise[train]"')

from stepwise.training import sft  # noqa: E402
from stepwise.training.lora import load_trainee  # noqa: E402
from stepwise.training.rendering import render_all  # noqa: E402
from stepwise.training.supervised import _schedule, weighted_nll  # noqa: E402
from stepwise.training.trainer import train_step  # noqa: E402

ROWS = [row(i) for i in range(6)]
QUICK = ("sft.batch=2", "sft.epochs=2", "sft.save_every=2", "sft.learning_rate=1e-2")


def tokens(n: int, length: int = 3) -> TokenRow:
    return TokenRow((n,) * (length + 1), 1, (1.0,) * length)


def step(trainee: object, cfg: object, made: list[TokenRow]) -> float:
    """The loss of one step of plain gradient descent on `made`."""
    optimizer = torch.optim.SGD(trainee.trainable(), lr=1.0)  # type: ignore[attr-defined]
    loss = lambda part: (weighted_nll(trainee, part, cfg.lora.tile), {})  # type: ignore[attr-defined, arg-type]  # noqa: E731
    means, _ = train_step(trainee, optimizer, made, loss, cfg.lora, 1.0, cfg.sft.clip_norm, 0)  # type: ignore[attr-defined, arg-type]
    return means["loss"]


def test_loss_and_gradients_are_those_of_full_logits_in_float64(tiny_gguf_path: Path) -> None:
    cfg = config(tiny_gguf_path, "sft.prefix_weight=0.5", "lora.micro_tokens=150", "lora.tile=7")
    trainee = load_trainee(cfg)
    trainee.model.double()
    made = render_all(ROWS[:3], trainee.tokenizer, cfg.prompt, cfg.sft)
    with torch.no_grad():
        for parameter in trainee.trainable():
            parameter.add_(0.05 * torch.randn_like(parameter))
    total = sum(sum(r.weights) for r in made)
    found = sum(weighted_nll(trainee, [r], 7) for r in made) / total
    found.backward()
    ours = [p.grad.clone() for p in trainee.trainable()]
    trainee.model.zero_grad()
    plain = 0.0
    for r in made:
        logits = trainee.model(input_ids=torch.tensor([r.ids])).logits[0].double()
        logp = logits.log_softmax(-1)[range(r.prompt - 1, len(r.ids) - 1), r.ids[r.prompt :]]
        plain = plain - (logp * torch.tensor(r.weights, dtype=torch.float64)).sum() / total
    plain.backward()  # type: ignore[attr-defined]
    assert abs(float(found.detach()) - float(plain.detach())) < 1e-10  # type: ignore[attr-defined]
    assert all(torch.allclose(a, p.grad, atol=1e-10, rtol=0) for a, p in zip(ours, trainee.trainable(), strict=True))


@pytest.mark.parametrize("budget", [60, 100_000])
def test_micro_batches_do_not_change_a_step(tiny_gguf_path: Path, budget: int) -> None:
    cfg = config(tiny_gguf_path, f"lora.micro_tokens={budget}")
    trainee = load_trainee(cfg)
    made = render_all(ROWS, trainee.tokenizer, cfg.prompt, cfg.sft)
    done = step(trainee, cfg, made)
    small = config(tiny_gguf_path, "lora.micro_tokens=16")
    alone = load_trainee(small)
    assert done == pytest.approx(step(alone, small, made), abs=1e-6)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(trainee.trainable(), alone.trainable(), strict=True))


def test_training_lowers_the_loss_and_leaves_adapter_card_and_metrics(tiny_gguf_path: Path, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    adapter = sft(ROWS, config(tiny_gguf_path, *QUICK, "sft.epochs=6"), tmp_path / "run")
    lines = metrics(tmp_path / "run")
    assert [line["step"] for line in lines] == list(range(1, 19))
    assert lines[-1]["loss"] < 0.6 * lines[0]["loss"]
    assert {path.name for path in adapter.iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", "adapter.gguf", "README.md", "card.json",
    }  # fmt: skip
    base = AutoModelForCausalLM.from_pretrained(tiny_gguf_path.parent / "qwen3")
    assert PeftModel.from_pretrained(base, adapter).peft_config["default"].r == 4
    assert json.loads((adapter / "card.json").read_text())["method"]


def test_a_file_of_the_dataset_builder_trains_as_its_rows_do(tiny_gguf_path: Path, tmp_path: Path) -> None:
    path = write_examples(tmp_path / "rows.jsonl", ROWS, card={})
    cfg = config(tiny_gguf_path, *QUICK)
    one, two = sft(path, cfg, tmp_path / "one"), sft(ROWS, cfg, tmp_path / "two")
    assert (one / "adapter_model.safetensors").read_bytes() == (two / "adapter_model.safetensors").read_bytes()


def test_zero_weight_on_the_prefix_leaves_its_tokens_out_of_the_count(tiny_gguf_path: Path, tmp_path: Path) -> None:
    for name, weight in (("with", 1.0), ("without", 0.0)):
        sft(ROWS, config(tiny_gguf_path, *QUICK, f"sft.prefix_weight={weight}"), tmp_path / name)
    assert metrics(tmp_path / "without")[-1]["tokens"] < metrics(tmp_path / "with")[-1]["tokens"]


def test_the_schedule_visits_every_row_once_an_epoch_in_another_order() -> None:
    rows = [tokens(i) for i in range(10)]
    plan = _schedule(rows, [], SftConfig(batch=4, epochs=2), seed=1)
    assert [len(batch) for batch in plan] == [4, 4, 2, 4, 4, 2]
    first, second = ([i for batch in plan[k : k + 3] for i in batch] for k in (0, 3))
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second
    assert plan == _schedule(rows, [], SftConfig(batch=4, epochs=2), seed=1)


def test_a_number_of_tokens_ends_the_schedule_at_the_step_that_reaches_it() -> None:
    plan = _schedule([tokens(i) for i in range(10)], [], SftConfig(batch=4, epochs=1, tokens=70), seed=1)
    assert sum(3 * len(batch) for batch in plan) >= 70
    assert sum(3 * len(batch) for batch in plan[:-1]) < 70


@pytest.mark.parametrize("pool", [3, 40])
def test_replay_makes_up_its_share_of_the_rows(pool: int) -> None:
    rows, again = [tokens(i) for i in range(20)], [tokens(i) for i in range(pool)]
    plan = _schedule(rows, again, SftConfig(batch=100, epochs=3, replay=0.5), seed=1)
    for batch in plan:
        assert len(batch) == 40
        assert sum(i >= 20 for i in batch) == 20
    assert {i for batch in plan for i in batch if i >= 20} <= set(range(20, 20 + pool))


def test_replay_without_rows_an_empty_dataset_and_another_dataset_in_the_same_place_are_refused(
    tiny_gguf_path: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"sft\.replay is 0\.5, but no rows"):
        sft(ROWS, config(tiny_gguf_path, "sft.replay=0.5"), tmp_path / "a")
    with pytest.raises(DataError, match="has no rows"):
        sft([], config(tiny_gguf_path), tmp_path / "b")
    sft(ROWS, config(tiny_gguf_path, *QUICK), tmp_path / "c")
    with pytest.raises(DataError, match="another"):
        sft(ROWS[:3], config(tiny_gguf_path, *QUICK), tmp_path / "c")


def test_a_tokenizer_without_a_padding_token_trains_all_the_same(tiny_gguf_path: Path, tmp_path: Path) -> None:
    folder = copied(tiny_gguf_path, tmp_path / "unpadded", pad_token=None)
    cfg = config(tiny_gguf_path, *QUICK)
    weights = [
        sft(ROWS, how, tmp_path / name) / "adapter_model.safetensors"
        for name, how in (("a", cfg), ("b", config(tiny_gguf_path, *QUICK, f"models.weak.train_from={folder}")))
    ]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_a_bad_row_stops_before_any_step(tiny_gguf_path: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="p9/r0/c0"):
        sft([*ROWS, row(9, prompt_hash="other")], config(tiny_gguf_path, *QUICK), tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_loss_that_is_not_finite_stops_with_the_batch_on_disk(tiny_gguf_path: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"loss is nan.*failed-batch\.jsonl"):
        sft(ROWS, config(tiny_gguf_path, *QUICK, "sft.learning_rate=1e30"), tmp_path / "run")  # the second step's is
    assert len(read_rows(tmp_path / "run" / "failed-batch.jsonl")) == 2


def train(gguf: str, out: str) -> None:
    """A whole run, for another process."""
    torch.set_num_threads(1)
    cfg = config(Path(gguf), "sft.batch=2", "sft.epochs=3", "sft.save_every=3", "lora.dropout=0.2")
    sft([row(i) for i in range(6)], cfg, out)


def test_a_run_that_is_killed_and_gone_on_with_equals_the_uninterrupted_one(
    tiny_gguf_path: Path, tmp_path: Path
) -> None:
    whole, killed = whole_and_killed(train, tiny_gguf_path, tmp_path)
    assert metrics(killed) == metrics(whole)
    for name in ("adapter/adapter_model.safetensors", "adapter/adapter.gguf"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()


def test_rows_of_messages_and_of_prompt_and_completion_train_as_they_are_served(
    tiny_gguf_path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cfg = config(tiny_gguf_path, *QUICK)
    question, reply = "What is 2 + 3?", "2 + 3 = 5.\n\nSo it is 5."
    ask, say = {"role": "user", "content": question}, {"role": "assistant", "content": reply}
    forms = [
        {"prompt": question, "completion": reply},
        {"messages": [ask, say]},
        {"prompt": [ask], "completion": [say]},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(form) + "\n" for form in forms))
    tokenizer = load_trainee(cfg).tokenizer
    read = read_training_rows(path, cfg.prompt)
    first, *others = render_all(read, tokenizer, cfg.prompt, cfg.sft)
    assert [row.ids for row in others] == [first.ids] * 2
    assert tokenizer.decode(first.ids[first.prompt :]) == f"{reply}{tokenizer.eos_token}"
    with caplog.at_level("INFO", "stepwise"):
        sft(path, cfg, tmp_path / "run")
    assert "3 rows: 4 optimizer steps, learning rate 0.01 at its peak" in caplog.text


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"messages": []}, "row 1 has no chat"),
        ({"prompt": "What?", "completion": " "}, "row 1, field completion is ' '"),
        ({"completion": "5"}, "row 1, field prompt is None"),
        ({"messages": [{"role": "assistant", "content": "a"}, {"role": "user", "content": "b"}]}, "row 1 ends with"),
        ({"text": "5"}, "row 1: not a row of examples"),
    ],
)
def test_a_row_of_no_known_form_is_refused_by_its_number(bad: dict[str, object], said: str) -> None:
    with pytest.raises(DataError, match=said):
        read_training_rows([bad], SolvePrompt())


def test_an_adapter_goes_on_the_layers_that_are_named_and_others_are_refused(tiny_gguf_path: Path) -> None:
    trainee = load_trainee(config(tiny_gguf_path, 'lora.target_modules=["q_proj"]'))
    adapted = [name for name, parameter in trainee.model.named_parameters() if parameter.requires_grad]
    assert adapted
    assert all(".q_proj.lora_" in name for name in adapted)
    with pytest.raises(ConfigError, match=r"lora\.target_modules is .*query.*the model has .*q_proj"):
        load_trainee(config(tiny_gguf_path, "lora.target_modules=query"))
