import math
from pathlib import Path
from typing import Any

import pytest

from stepwise.config import Config
from stepwise.data.examples import read_pairs
from stepwise.errors import ConfigError, DataError
from stepwise.io import write_rows
from tests.training.sft_world import config, metrics, whole_and_killed

torch = pytest.importorskip("torch", reason='needs pip install "stepwise[train]"')
pytest.importorskip("peft", reason='needs pip install "stepwise[train]"')

from stepwise.training import dpo  # noqa: E402
from stepwise.training.lora import Trainee, load_trainee  # noqa: E402
from stepwise.training.preference import (  # noqa: E402
    _pair_losses,
    _PairRow,
    _reference_logprobs,
    _render_pair,
    preference_loss,
)
from stepwise.training.trainer import train_step  # noqa: E402

QUICK = ("dpo.batch=2", "dpo.epochs=6", "dpo.save_every=3", "dpo.learning_rate=1e-2")


def pair(number: int = 0, **changes: object) -> dict[str, Any]:
    start = f"Tom starts with {number + 3} coins."
    return {
        "id": f"p{number}",
        "prompt": f"Tom has {number + 3} coins and buys 4 more. How many coins does Tom have now?",
        "chosen": f"{start}\n\nAfter buying 4, there are {number + 3} + 4 = {number + 7} coins.",
        "rejected": f"{start}\n\nHe gave 4 away, which leaves {number + 3} of them.",
        "prompt_hash": Config().prompt.hash,
        **changes,
    }


PAIRS = [pair(i) for i in range(6)]


def disturb(trainee: Trainee) -> None:
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in trainee.trainable():
            parameter.add_(0.05 * torch.randn_like(parameter))


def rows(trainee: Trainee, cfg: Config, references: float = -20.0) -> list[_PairRow]:
    sides = [_render_pair(made, trainee.tokenizer, cfg.prompt) for made in read_pairs(PAIRS[:3])]
    return [_PairRow(*both, references - i, references + 2 * i) for i, both in enumerate(sides)]


@pytest.mark.parametrize("nll", [0.0, 0.7])
def test_loss_and_gradients_are_those_of_full_logits_in_float64(tiny_gguf_path: Path, nll: float) -> None:
    cfg = config(tiny_gguf_path, "lora.tile=7", "dpo.beta=0.3", f"dpo.nll={nll}")
    trainee = load_trainee(cfg)
    trainee.model.double()
    disturb(trainee)
    made = rows(trainee, cfg)
    found, figures = _pair_losses(trainee, made, cfg)
    found.backward()  # type: ignore[no-untyped-call]
    ours = [p.grad.clone() for p in trainee.trainable()]  # type: ignore[union-attr]
    trainee.model.zero_grad()
    plain, margins = torch.zeros((), dtype=torch.float64), []
    for row in made:
        sums = []
        for side in (row.chosen, row.rejected):
            logp = trainee.model(input_ids=torch.tensor([side.ids])).logits[0].log_softmax(-1)
            where = [i for i in range(side.prompt, len(side.ids)) if side.weights[i - side.prompt]]
            sums.append(sum(logp[i - 1, side.ids[i]] for i in where))
        margins.append(0.3 * ((sums[0] - row.reference_chosen) - (sums[1] - row.reference_rejected)))
        plain = plain + torch.log1p(torch.exp(-margins[-1])) - nll * sums[0] / row.chosen.num_trained
    plain.backward()
    assert float(found.detach()) == pytest.approx(float(plain.detach()), abs=1e-10)
    assert figures["margin"] == pytest.approx(float(sum(margins).detach()), abs=1e-10)
    assert all(torch.allclose(a, p.grad, atol=1e-10, rtol=0) for a, p in zip(ours, trainee.trainable(), strict=True))


def test_the_loss_by_hand() -> None:
    policy = torch.tensor([[-2.0, -3.0], [-5.0, -1.0]], dtype=torch.float64)
    before = torch.tensor([[-2.0, -3.0], [-4.0, -4.0]], dtype=torch.float64)
    losses, margins = preference_loss(policy, before, torch.tensor([4.0, 5.0]), beta=0.5)
    assert margins.tolist() == [0.0, -2.0]  # 0.5 * ((-5 + 4) - (-1 + 4))
    assert losses.tolist() == pytest.approx([math.log(2), math.log1p(math.exp(2))])
    more, _ = preference_loss(policy, before, torch.tensor([4.0, 5.0]), beta=0.5, nll=2.0)
    assert (more - losses).tolist() == pytest.approx([2 * 2 / 4, 2 * 5 / 5])


@pytest.mark.parametrize("budget", [60, 100_000])
def test_micro_batches_do_not_change_a_step(tiny_gguf_path: Path, budget: int) -> None:
    steps = []
    for tokens in (budget, 16):
        cfg = config(tiny_gguf_path, f"lora.micro_tokens={tokens}", "dpo.nll=0.5")
        trainee = load_trainee(cfg)
        disturb(trainee)
        optimizer = torch.optim.SGD(trainee.trainable(), lr=1.0)
        given = rows(trainee, cfg)
        means, _ = train_step(
            trainee, optimizer, given, lambda part, t=trainee, c=cfg: _pair_losses(t, part, c), cfg.lora, 1.0, 1.0, 0
        )
        steps.append((means, trainee))
    (one, first), (two, second) = steps
    assert one.pop("loss") == pytest.approx(two.pop("loss"), abs=1e-5)
    assert one == pytest.approx(two, abs=1e-4)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(first.trainable(), second.trainable(), strict=True))


def test_only_the_steps_after_the_shared_ones_count(tiny_gguf_path: Path) -> None:
    cfg = config(tiny_gguf_path)
    trainee = load_trainee(cfg)
    made = read_pairs(PAIRS[:1])[0]
    assert made.prefix == ("Tom starts with 3 coins.",)
    for side, (text,) in zip(
        _render_pair(made, trainee.tokenizer, cfg.prompt), (made.chosen, made.rejected), strict=True
    ):
        counted = [i for i, weight in zip(side.ids[side.prompt :], side.weights, strict=True) if weight]
        assert trainee.tokenizer.decode(counted) == text + "\n\n"


def test_training_begins_at_log_2_and_the_margin_rises(tiny_gguf_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    write_rows(path, PAIRS)
    adapter = dpo(path, config(tiny_gguf_path, *QUICK, "dpo.beta=0.5"), tmp_path / "run")
    lines = metrics(tmp_path / "run")
    assert [line["step"] for line in lines] == list(range(1, 19))
    assert lines[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert lines[0]["margin"] == pytest.approx(0, abs=1e-4)
    assert lines[-1]["margin"] > 1
    assert lines[-1]["loss"] < 0.5
    assert lines[-1]["accuracy"] == 1.0
    assert {"logp_chosen", "logp_rejected", "tokens", "grad_norm", "learning_rate"} < lines[0].keys()
    assert '"dpo"' in (adapter / "card.json").read_text()


def test_the_reference_is_the_adapter_that_training_goes_on_with(tiny_gguf_path: Path, tmp_path: Path) -> None:
    cfg = config(tiny_gguf_path, *QUICK)
    first = dpo(PAIRS, cfg, tmp_path / "first")
    dpo(PAIRS, cfg, tmp_path / "second", adapter=first)
    assert metrics(tmp_path / "second")[0]["margin"] == pytest.approx(0, abs=1e-4)
    before, after = ((tmp_path / name / "reference.json").read_text() for name in ("first", "second"))
    assert before != after


def test_a_reference_on_disk_is_taken_and_one_of_other_data_refused(tiny_gguf_path: Path, tmp_path: Path) -> None:
    from stepwise.runs.directory import opened

    cfg = config(tiny_gguf_path)
    trainee = load_trainee(cfg)
    sides = [side for row in rows(trainee, cfg) for side in (row.chosen, row.rejected)]
    with opened(tmp_path / "run", program="dpo", config=cfg, arguments={}) as directory:
        found = _reference_logprobs(directory, trainee, sides, cfg, "a")
        disturb(trainee)
        assert _reference_logprobs(directory, trainee, sides, cfg, "a") == found
        with pytest.raises(DataError, match=r"reference\.json belongs to other data"):
            _reference_logprobs(directory, trainee, sides, cfg, "b")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rejected": None}, r"row 1, field rejected is None; give a text"),
        ({"chosen": [{"role": "assistant"}]}, r"row 1, field chosen is None; give a text"),
        ({"prompt": "  "}, r"row 1, field prompt is '  '; give a text"),
        ({"rejected": PAIRS[0]["chosen"]}, r"row 1: chosen equals rejected"),
        ({"rejected": "Tom starts with 3 coins."}, r"row 1: rejected is only the beginning of the other"),
        ({"prompt_hash": "other"}, r"pair 'p0' was made under another prompt \(other"),
        ({"chosen": "a lot of coins " * 400}, r"pair 'p0', chosen has \d+ tokens, more than the context of 512"),
    ],
)
def test_a_bad_pair_stops_before_any_step(
    tiny_gguf_path: Path, tmp_path: Path, changes: dict[str, object], said: str
) -> None:
    with pytest.raises(DataError, match=said):
        dpo([pair(0, **changes), *PAIRS[1:]], config(tiny_gguf_path, *QUICK), tmp_path / "run")
    assert not (tmp_path / "run" / "reference.json").exists()


def test_other_bad_input(tiny_gguf_path: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there are no pairs"):
        dpo([], config(tiny_gguf_path), tmp_path / "a")
    with pytest.raises(DataError, match=r"row 1 is 'text'; it must be an object"):
        dpo(["text"], config(tiny_gguf_path), tmp_path / "a")
    with pytest.raises(ConfigError, match=r"dpo\.beta"):
        config(tiny_gguf_path, "dpo.beta=0")


def test_lists_of_messages_are_read_and_the_same_pair_counts_once() -> None:
    roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
    chat = {name: [{"role": role, "content": PAIRS[0][name]}] for name, role in roles.items()}
    (made,) = read_pairs([PAIRS[0], chat, {name: PAIRS[0][name] for name in roles}])
    assert made.id == "p0"
    assert read_pairs([chat])[0].id == "row 1"


def train(gguf: str, out: str) -> None:
    """A whole run, for another process."""
    torch.set_num_threads(1)
    dpo(PAIRS, config(Path(gguf), *QUICK, "dpo.epochs=3", "dpo.nll=0.1"), out)


def test_a_run_that_is_killed_and_gone_on_with_equals_the_uninterrupted_one(
    tiny_gguf_path: Path, tmp_path: Path
) -> None:
    whole, killed = whole_and_killed(train, tiny_gguf_path, tmp_path)
    assert metrics(killed) == metrics(whole)
    for name in ("adapter/adapter_model.safetensors", "adapter/adapter.gguf", "reference.json"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()
