"""lab-critic's corpus, and the adapter that ships."""

from __future__ import annotations

import itertools
import random
import re

import pytest

from evals.lab_corpus import IGNORE, bundle
from evals.lab_critic import _intervention, _localization, criticized, repaired
from stepwise.config import CriticConfig, ModelConfig
from stepwise.lab import card, generate, model_path
from stepwise.lab.families import CRITIC_WITHHELD

dspy = pytest.importorskip("dspy")


def attempts(n: int, start: int = 0) -> list[tuple]:
    """Misled attempts at held-out problems that do end wrong."""
    found = []
    for problem in generate("test", 4 * n, start=start):
        steps = problem.solution(random.Random(problem.problem.id), misled=True)
        if problem.first_error(steps) is not None:
            found.append((problem, steps, problem.first_error(steps)))
    return found[:n]


def test_the_truth_it_is_taught_agrees_with_the_checker() -> None:
    for problem, steps, first in attempts(20):
        found = _localization(problem, steps)
        assert found["first_error"] == first
        assert [row.step for row in found["checks"]] == list(range(first + 1))
        assert [row.verdict for row in found["checks"]] == ["right"] * first + ["wrong"]
        assert all((row.quote == row.expected) == (row.verdict == "right") for row in found["checks"])
        proposed = _intervention(problem, steps, first)
        assert proposed is not None
        assert problem.check([*steps[:first], proposed["content"]])[-1]


def test_a_right_attempt_has_no_error_and_one_that_recovers_no_critical_one() -> None:
    problem = generate("test", 1)[0]
    steps = problem.solution(random.Random(0))
    found = _localization(problem, steps)
    assert (found["first_error"], found["critical_error"]) == (None, None)
    assert {row.verdict for row in found["checks"]} == {"right"}
    recovered = [*steps[:-1]]
    recovered[0] = recovered[0].replace(" = ", " = 9")
    wrong_early = _localization(problem, [*recovered, steps[-1]])
    assert wrong_early["first_error"] == 0
    assert wrong_early["critical_error"] is None  # the box holds the right answer all the same


def test_withheld_families_never_come_in_its_corpus_and_the_loss_is_on_replies_alone() -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_path("lab-weak", "safetensors"))
    for ids, targets in itertools.islice(criticized(tokenizer, seed=4), 60):
        text = tokenizer.decode(ids)
        reply = tokenizer.decode([target for target in targets if target >= 0])
        assert reply.startswith(("#checks:", "#location:"))
        assert text.endswith(reply)
        assert "percent" not in text
    assert set(CRITIC_WITHHELD) == {"percent", "half_again"}


def test_repairs_share_the_beginning_of_their_prompts_and_ask_for_the_right_step_in_every_place() -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_path("lab-weak", "safetensors"))
    for made in itertools.islice(repaired(tokenizer, seed=4), 20):
        assert "percent" not in tokenizer.decode(made.ids)
        replies = []
        for branch in range(1, max(made.branches) + 1):
            own = [i for i, b in enumerate(made.branches) if b in (0, branch)]
            assert [made.positions[i] for i in own] == list(range(len(own)))
            replies.append(tokenizer.decode([made.targets[i] for i in own if made.targets[i] != IGNORE]))
        places = [int(re.findall(r"#location:\s*(\d+)", reply)[0]) for reply in replies if "#location" in reply]
        assert places == sorted(set(places))
        assert len(places) >= 3


def test_a_bundle_has_the_loss_of_its_examples() -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    from evals.lab_training import _loss_sum, pack

    folder = model_path("lab-weak", "safetensors")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    examples = [([5, 6, 7, 8, 9], [IGNORE] * 3 + [9, 4]), ([5, 6, 7, 20], [IGNORE] * 3 + [30]),
                ([5, 6, 7, 8, 21, 22], [IGNORE] * 4 + [22, 1])]  # fmt: skip
    made = bundle(examples)
    assert made.branches == [0, 0, 0, 1, 1, 2, 3, 3, 3]
    batch = next(pack(itertools.chain([made], itertools.repeat((list(range(15)), [IGNORE] * 15))), 1, 20, 0))
    document, branch = torch.from_numpy(batch.documents), torch.from_numpy(batch.branches)
    mask = (document[:, :, None] == document[:, None, :]).tril()
    mask &= (branch[:, None, :] == 0) | (branch[:, :, None] == branch[:, None, :])
    tensors = [torch.from_numpy(a) for a in (batch.ids, batch.positions, batch.targets)]
    with torch.no_grad():
        together = float(_loss_sum(model, tensors[0], tensors[1], mask[:, None], tensors[2]))
        apart = 0.0
        for ids, targets in examples:
            logits = model(input_ids=torch.tensor([ids])).logits[0]
            apart += float(torch.nn.functional.cross_entropy(logits, torch.tensor(targets), reduction="sum"))
    assert together == pytest.approx(apart, rel=1e-5)


def test_the_shipped_adapter_finds_first_errors_and_its_steps_come_to_the_right_result() -> None:
    from evals.lab_critic import result_of
    from stepwise import Config, ErrorLocalizer, InterventionProposer
    from stepwise.critics.module import run_all

    config = Config.lab()
    localizer, proposer = ErrorLocalizer.from_config(config), InterventionProposer.from_config(config)
    wrong = attempts(24, start=300)
    found = run_all(localizer, [{"problem": p.problem, "steps": s} for p, s, _ in wrong])
    assert all(made.failure is None for made in found)
    assert sum(made.first_error == first for made, (_, _, first) in zip(found, wrong, strict=True)) >= 17  # 70 %
    asked = [{"problem": p.problem, "steps": s, "first_error": first} for p, s, first in wrong]
    steps = [made.intervention for made in run_all(proposer, asked)]
    results = [
        step.location == first and result_of(step.content) == result_of(p.true_step(s[:first]) or "")
        for step, (p, s, first) in zip(steps, wrong, strict=True)
    ]
    assert sum(results) >= 12


def test_its_card_says_what_it_is_an_adapter_of() -> None:
    assert card("lab-critic")["starts from"] == "lab-weak"
    assert model_path("lab-critic").name == "adapter.gguf"


def test_a_module_of_a_name_asks_as_the_one_of_the_configuration_does() -> None:
    """By name, by configuration and through DSPy's own setting, the lab's critic gets the prompts that it knows."""
    from stepwise import Config, ErrorLocalizer, InterventionProposer

    (problem, steps, first), name = attempts(1, start=300)[0], "llamacpp/lab-critic"
    given = {"problem": problem.problem, "steps": steps}
    for make, inputs in ((ErrorLocalizer, given), (InterventionProposer, {**given, "first_error": first})):
        asked = []
        configured = make.from_config(Config.lab())
        adapted = ModelConfig(model="llamacpp/lab-weak", adapter="lab-critic")
        for module in (configured, make(name), make(adapted), make()):
            with dspy.context(lm=configured.get_lm()):
                module(**inputs)
            lm = module.predictors()[0].lm or configured.get_lm()
            kwargs = {key: lm.kwargs.get(key) for key in ("temperature", "max_tokens")}
            asked.append((module.history[-1]["messages"], kwargs))
        assert asked[1:] == asked[:1] * 3


def test_what_a_module_does_by_default_is_what_the_configuration_does() -> None:
    import inspect

    from stepwise import ErrorLocalizer, InterventionProposer
    from stepwise.critics import SolutionRewriter

    for make in (ErrorLocalizer, InterventionProposer, SolutionRewriter):
        for name, parameter in inspect.signature(make.__init__).parameters.items():
            if name in CriticConfig.model_fields and name != "temperature":  # None there: as the model is set
                assert parameter.default == getattr(CriticConfig(), name), name
