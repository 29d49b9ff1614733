"""Classification heads on random weights in the published file layouts, against an independent computation."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from stepwise.config import ScorerConfig
from stepwise.errors import BackendError, ConfigError, ScorerError
from stepwise.models.scorers import ClassifierScorer, load_scorer
from stepwise.models.scorers.pooling import QWEN_PRM_SYSTEM
from stepwise.routing import StepRouter
from stepwise.types import Problem
from tests.scorers.prm_models import MARK, golden_scores, save_prm

pytest.importorskip("torch")
pytest.importorskip("transformers")

P = Problem("p", "Mia has 3 apples and buys 9 more. How many apples?", "12")
STEPS = ["Mia starts with 3 apples.", "After buying 9, there are\n3 + 9 = 12 apples.", "So it is \\boxed{12}."]


@pytest.fixture(scope="module")
def qwen_prm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_prm(tmp_path_factory.mktemp("prm") / "qwen-prm")


@pytest.fixture(scope="module")
def scorer(qwen_prm: Path) -> ClassifierScorer:
    return ClassifierScorer(qwen_prm, dtype="float32")


def copy_of(model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model, tmp_path / "copy"))


def test_scores_are_those_of_the_model_cards_recipe(qwen_prm: Path, scorer: ClassifierScorer) -> None:
    golden = golden_scores(qwen_prm, P.question, STEPS, QWEN_PRM_SYSTEM)
    assert len({round(p, 3) for p in golden}) == 3
    assert scorer.score(P, STEPS) == pytest.approx(golden, abs=1e-5)


def test_shards_and_a_head_apart_from_the_base_give_the_same(tmp_path: Path, qwen_prm: Path) -> None:
    sharded = save_prm(tmp_path / "sharded", shards=True)
    golden = golden_scores(qwen_prm, P.question, STEPS, QWEN_PRM_SYSTEM)
    assert ClassifierScorer(sharded, dtype="float32").score(P, STEPS) == pytest.approx(golden, abs=1e-5)


def test_a_score_depends_on_nothing_but_the_steps_up_to_it_and_not_on_the_batch(qwen_prm: Path) -> None:
    items: list[Any] = [(P, STEPS[:n]) for n in (1, 3, 0, 2)] + [("What is 2 + 2?", ["It is 4."])]
    batched = ClassifierScorer(qwen_prm, dtype="float32").score_batch(items)
    alone = [ClassifierScorer(qwen_prm, dtype="float32", batch_tokens=1).score(*item) for item in items]
    for row, right in zip(batched, alone, strict=True):
        assert row == pytest.approx(right, abs=1e-5)
    assert batched[1][:2] == pytest.approx(batched[3], abs=1e-5)
    assert batched[2] == []


def test_a_known_solution_costs_nothing_and_a_longer_one_its_whole_prefix(qwen_prm: Path) -> None:
    made = ClassifierScorer(qwen_prm, dtype="float32")
    first = made.score_detailed([(P, STEPS[:2])])[0]
    again = made.score_detailed([(P, STEPS[:2])])[0]
    longer = made.score_detailed([(P, STEPS)])[0]
    assert first.usage.evaluated_tokens == first.usage.prompt_tokens > 0
    assert again.usage.calls == 0
    assert longer.usage.evaluated_tokens > first.usage.evaluated_tokens
    assert longer.scores[:2] == first.scores
    assert made.incremental is False


def test_bfloat16_is_close_and_takes_half_the_memory(qwen_prm: Path, scorer: ClassifierScorer) -> None:
    half = ClassifierScorer(qwen_prm, dtype="bfloat16")
    assert half.score(P, STEPS) == pytest.approx(scorer.score(P, STEPS), abs=0.05)
    assert half.parameters == scorer.parameters
    assert half.memory_bytes is not None
    assert half.memory_bytes * 2 == scorer.memory_bytes


def test_the_number_of_weights_is_that_of_the_file(qwen_prm: Path, scorer: ClassifierScorer) -> None:
    from safetensors.torch import load_file

    held = load_file(qwen_prm / "model.safetensors")
    assert scorer.parameters == sum(v.numel() for k, v in held.items() if not k.startswith("lm_head"))


def test_skyworks_value_head_is_read_at_the_line_break_after_each_step(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file
    from transformers import AutoTokenizer, Qwen2Config, Qwen2Model

    folder = save_prm(tmp_path / "skywork", "skywork")
    weights = load_file(folder / "model.safetensors")
    settings = json.loads((folder / "config.json").read_text())
    settings.pop("auto_map")
    model = Qwen2Model(Qwen2Config(**settings)).eval()
    model.load_state_dict({k.removeprefix("model."): v for k, v in weights.items() if k.startswith("model.")})
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer.encode("<|endoftext|>" + P.question + "\n")
    ends = []
    for text in STEPS:
        ids += [*tokenizer.encode(text), tokenizer.encode("\n")[-1]]
        ends.append(len(ids) - 1)
    with torch.no_grad():
        hidden = model(torch.tensor([ids])).last_hidden_state[0, ends]
        values = hidden @ weights["v_head.summary.weight"].T + weights["v_head.summary.bias"]
    golden = [1 / (1 + float((-v).exp())) for v in values[:, 0].double()]
    assert ClassifierScorer(folder, dtype="float32").score(P, STEPS) == pytest.approx(golden, abs=1e-5)


def test_special_tokens_typed_into_a_step_stay_text_and_a_marker_is_refused(scorer: ClassifierScorer) -> None:
    assert len(scorer.score(P, ["A <|im_end|> in the text.", "b"])) == 2
    end = scorer._one_token("<|im_end|>", Path())
    assert end not in scorer._plain_ids("A <|im_end|> in the text.")
    with pytest.raises(ScorerError, match=r"step 0 contains the marker '<extra_0>'"):
        scorer.score(P, [f"a {MARK} b"])


@pytest.mark.parametrize(
    ("question", "steps", "message"),
    [
        ("", ["a"], "the question is empty"),
        ("How?", ["a", " "], "step 1 is empty"),
        ("How?", ["word " * 600], r"the solution has \d+ tokens, more than the context of 512; raise scorer.context"),
    ],
)
def test_what_cannot_be_scored_fails_alone(
    scorer: ClassifierScorer, question: str, steps: list[str], message: str
) -> None:
    fine, bad = scorer.score_detailed([("How many?", ["Four."]), (question, steps)])
    assert (len(fine.scores), fine.error) == (1, "")
    assert bad.scores == []
    with pytest.raises(ScorerError, match=f"scorer 'qwen-prm float32', problem 'q-.*{message}"):
        scorer.score(question, steps)


def test_threads_share_one_scorer(qwen_prm: Path, scorer: ClassifierScorer) -> None:
    expected = [scorer.score(P, [*STEPS, f"t{k}"]) for k in range(4)]
    fresh = ClassifierScorer(qwen_prm, dtype="float32")
    found: dict[int, list[list[float]]] = {}
    threads = [
        threading.Thread(target=lambda k=k: found.update({k: fresh.score_batch([(P, [*STEPS, f"t{k}"])] * 2)}))
        for k in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k in range(4):
        assert found[k] == [pytest.approx(expected[k], abs=1e-5)] * 2
    assert fresh.usage.calls == 8


def test_nan_weights_are_an_error_that_names_step_and_value(tmp_path: Path, qwen_prm: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = copy_of(qwen_prm, tmp_path)
    weights = load_file(folder / "model.safetensors")
    weights["score.2.bias"][:] = float("nan")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ScorerError, match="problem 'p', step 0: the score is nan; it must be a probability"):
        ClassifierScorer(folder, dtype="float32").score(P, STEPS)


def test_a_tokenizer_without_the_marker_is_an_error_at_load_time(qwen_prm: Path) -> None:
    with pytest.raises(ConfigError, match=r"the tokenizer has no token '<extra_9>'.*set scorer\.marker"):
        ClassifierScorer(qwen_prm, marker="<extra_9>")


def test_files_that_are_no_such_model_say_what_is_wrong(tmp_path: Path, qwen_prm: Path) -> None:
    with pytest.raises(BackendError, match=r"config\.json does not exist; give the directory"):
        ClassifierScorer(tmp_path / "nothing")
    folder = copy_of(qwen_prm, tmp_path)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(BackendError, match=r"holds no \*\.safetensors; pickled weights .* are not read"):
        ClassifierScorer(folder)
    (folder / "model.safetensors").write_bytes(b"not a model")
    with pytest.raises(BackendError, match="no readable safetensors file"):
        ClassifierScorer(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(BackendError, match="model_type is 'bert'; supported are qwen2"):
        ClassifierScorer(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(BackendError, match="no configuration of a model"):
        ClassifierScorer(folder)


def test_a_model_without_a_head_or_with_missing_weights_is_refused(tmp_path: Path, qwen_prm: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = copy_of(qwen_prm, tmp_path)
    weights = load_file(folder / "model.safetensors")
    headless = {k: v for k, v in weights.items() if not k.startswith("score.")}
    save_file(headless, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(BackendError, match=r"no head of a process reward model .*found nothing.*score\.0\.weight"):
        ClassifierScorer(folder)
    weights.pop("model.layers.1.mlp.up_proj.weight")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(BackendError, match=r"tensors are missing .*layers\.1\.mlp\.up_proj"):
        ClassifierScorer(folder)
    with pytest.raises(BackendError, match="3 classes; a process reward model has 2"):
        ClassifierScorer(save_prm(tmp_path / "three", classes=3))


def test_it_is_loaded_from_a_configuration_and_closed(qwen_prm: Path, scorer: ClassifierScorer) -> None:
    made = load_scorer(ScorerConfig(kind="classifier", model=f"transformers/{qwen_prm}", dtype="float32"))
    assert isinstance(made, ClassifierScorer)
    assert made.score(P, STEPS) == pytest.approx(scorer.score(P, STEPS), abs=1e-6)
    made.close()
    made.close()
    with pytest.raises(BackendError, match="is closed"):
        made.score(P, STEPS)
    with pytest.raises(ConfigError, match="transformers/"):
        load_scorer(ScorerConfig(kind="classifier", model="llamacpp/x.gguf"))


def test_a_router_refuses_what_is_no_classifier_before_it_looks_at_its_other_models(
    tmp_path: Path, qwen_prm: Path
) -> None:
    from safetensors.torch import load_file, save_file

    headless = copy_of(qwen_prm, tmp_path)
    weights = load_file(headless / "model.safetensors")
    save_file({k: v for k, v in weights.items() if not k.startswith("score.")}, headless / "model.safetensors")
    for folder, said in ((tmp_path, "config.json does not exist"), (headless, "no head of a")):
        scorer = ScorerConfig(kind="classifier", model=f"transformers/{folder}")
        with pytest.raises(BackendError, match=said):
            StepRouter("llamacpp/lab-weak", f"llamacpp/{tmp_path / 'none.gguf'}", scorer)
    with pytest.raises(ConfigError, match="transformers/"):
        StepRouter("llamacpp/lab-weak", "llamacpp/none.gguf", ScorerConfig(kind="classifier", model="llamacpp/lab-prm"))
