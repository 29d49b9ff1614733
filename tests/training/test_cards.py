"""A card says what an adapter is; an adapter of another base or prompt is refused by what its card says."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from stepwise.config import Config
from stepwise.errors import BackendError, ConfigError, DataError
from stepwise.models.safetensors import fingerprint
from stepwise.prompt import SolvePrompt
from stepwise.training.adapters import base_of, check_adapter, read_card
from stepwise.training.cards import (
    _data_facts,
    add_evaluation,
    base_name,
    curves_of,
    write_card,
)
from stepwise.training.evaluation import Evaluated, evaluate, with_adapter
from stepwise.types import Problem

for _package in ("torch", "transformers", "peft", "gguf", "llama_cpp"):
    pytest.importorskip(_package)

BEFORE = Evaluated("m@1", 10, 2, 6, 18, {"CORRECT": 6, "WRONG": 12, "TIMEOUT": 2}, 0.7, 0)
ROWS = [
    {"id": "a", "origin": "intervention", "text": "x"},
    {"id": "b", "origin": "routing", "text": "y"},
    {"id": "c", "origin": "intervention", "text": "z"},
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A base and an adapter of it."""
    from tests.tiny_models import tiny_model
    from tests.training.test_export_lora import random_adapter

    folder = tmp_path_factory.mktemp("cards")
    base = tiny_model(folder / "base")
    random_adapter(base, folder / "adapter")
    return base, folder / "adapter"


@pytest.fixture
def adapter(made: tuple[Path, Path], tmp_path: Path) -> Path:
    """A fresh copy of the adapter."""
    return Path(shutil.copytree(made[1], tmp_path / "adapter"))


def written(adapter: Path, base: Path, **more: Any) -> Path:
    """The README of a card of `adapter`."""
    curves = curves_of({"step": i, "loss": 1 / (i + 1)} for i in range(500))
    return write_card(adapter, "sft", Config.lab(), base, data={"int.jsonl": ROWS}, curves=curves, **more)


def front_matter(readme: str) -> dict[str, Any]:
    front = readme.split("---\n")[1]
    return {key: json.loads(value) for key, _, value in (line.partition(": ") for line in front.splitlines())}


def test_the_readme_has_the_hubs_form_and_says_what_was_measured(made: tuple[Path, Path], adapter: Path) -> None:
    text = written(adapter, made[0], before=BEFORE).read_text()
    assert front_matter(text) == {
        "base_model": "base",
        "library_name": "peft",
        "license": "unknown",
        "pipeline_tag": "text-generation",
        "tags": ["lora", "stepwise", "sft"],
    }
    assert "| before | 0.333 | 10 | 2 | 18 | 0.7 |" in text
    assert "| after | not measured |" in text
    assert "| int.jsonl | 3 | intervention 2, routing 1 |" in text
    assert "| loss | 1 | 0.002 | 500 |" in text


def test_the_hub_reads_the_front_matter(made: tuple[Path, Path], adapter: Path) -> None:
    hub = pytest.importorskip("huggingface_hub")
    card = hub.ModelCard.load(written(adapter, made[0]))
    assert (card.data.base_model, card.data.library_name, card.data.license) == ("base", "peft", "unknown")


def test_the_json_holds_config_hashes_data_curves_and_versions(made: tuple[Path, Path], adapter: Path) -> None:
    written(adapter, made[0])
    card = read_card(adapter)
    assert card is not None
    config = Config.lab()
    assert (card["prompt_hash"], card["config_hash"]) == (config.prompt.hash, config.hash)
    assert card["config"]["sft"] == config.sft.model_dump(mode="json")
    assert card["config"]["prompt"] == config.prompt.model_dump(mode="json")
    assert "rl" not in card["config"]
    assert card["evaluation"] == {"before": None, "after": None}
    assert card["data"][0]["counts"] == {"intervention": 2, "routing": 1}
    loss = card["curves"]["loss"]
    assert (loss["points"], loss["first"], loss["last"]) == (500, 1.0, 1 / 500)
    assert (loss["steps"][0], loss["steps"][-1]) == (0, 499)
    assert len(loss["values"]) == len(loss["steps"]) == 200
    assert card["base"]["fingerprint"] == fingerprint(made[0])
    assert card["versions"]["torch"]
    assert "Not evaluated." in (adapter / "README.md").read_text()


def test_an_evaluation_is_added_later_without_losing_the_earlier_one(made: tuple[Path, Path], adapter: Path) -> None:
    for other in (None, "{}"):
        if other is not None:
            (adapter / "card.json").write_text(other)
        with pytest.raises(DataError, match=r"has no card\.json of this form; write one with write_card"):
            add_evaluation(adapter, after=BEFORE)
    written(adapter, made[0], before=BEFORE)
    nothing = Evaluated("m@2", 4, 1, 0, 0, {"TIMEOUT": 4}, 0.0, 0)
    text = add_evaluation(adapter, after=nothing).read_text()
    assert "| before | 0.333 |" in text
    assert "| after | nothing judged | 4 | 1 | 0 | 0 |" in text
    card = read_card(adapter)
    assert card is not None
    assert card["evaluation"]["after"]["accuracy"] is None  # and not 0


def test_the_licence_is_the_bases_own_where_it_names_one(
    made: tuple[Path, Path], adapter: Path, tmp_path: Path
) -> None:
    base = Path(shutil.copytree(made[0], tmp_path / "base"))
    (base / "README.md").write_text("---\nlanguage: en\nlicense: apache-2.0\n---\n\nlicense: of the text\n")
    assert front_matter(written(adapter, base).read_text())["license"] == "apache-2.0"
    (base / "README.md").write_text("# No front matter\n\nlicense: mit\n")
    assert front_matter(written(adapter, base).read_text())["license"] == "unknown"


def test_a_base_in_the_hubs_cache_has_its_name_there(tmp_path: Path) -> None:
    folder = tmp_path / "models--some-org--Some-Model-0.6B" / "snapshots" / "0123abcd"
    folder.mkdir(parents=True)
    assert base_name(folder) == "some-org/Some-Model-0.6B"


def test_curves_leave_out_what_is_no_number_instead_of_drawing_zero() -> None:
    rows = [{"step": 3, "kl": None, "loss": 1}, {"step": 4, "kl": math.nan, "loss": 2.5, "kept": True}, {"kl": 0.5}]
    assert curves_of(rows) == {"loss": [(3, 1.0), (4, 2.5)], "kl": [(2, 0.5)]}


def test_a_curve_is_thinned_with_its_ends_and_in_order(made: tuple[Path, Path], adapter: Path) -> None:
    points = {"long": [(i, float(i)) for i in range(1000)], "short": [(0, 3.0), (1, 2.0)], "one": [(4, 1.0)]}
    write_card(adapter, "sft", Config.lab(), made[0], curves=points)
    curves = (read_card(adapter) or {})["curves"]
    assert (curves["long"]["steps"][0], curves["long"]["steps"][-1], len(curves["long"]["steps"])) == (0, 999, 200)
    assert curves["long"]["steps"] == sorted(set(curves["long"]["steps"]))
    assert (curves["short"]["steps"], curves["short"]["values"]) == ([0, 1], [3.0, 2.0])
    assert (curves["one"]["steps"], curves["one"]["last"]) == ([4], 1.0)


def test_data_hashes_depend_on_rows_and_order() -> None:
    again = _data_facts(ROWS, "other name")["sha256"]
    assert again == _data_facts(ROWS, "int.jsonl")["sha256"]
    assert again != _data_facts(ROWS[::-1], "int.jsonl")["sha256"]
    assert _data_facts([Problem("1", "q", source="gsm8k")], "p")["counts"] == {"gsm8k": 1}


def test_the_fingerprint_sees_one_changed_weight_but_not_the_sharding(made: tuple[Path, Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    from tests.tiny_models import tiny_model

    sharded = tiny_model(tmp_path / "sharded", max_shard_size="200KB")
    assert len(list(sharded.glob("*.safetensors"))) > 1
    assert fingerprint(sharded) == fingerprint(made[0])
    weights = load_file(made[0] / "model.safetensors")
    weights["model.norm.weight"][0] += 1e-3
    changed = Path(shutil.copytree(made[0], tmp_path / "changed"))
    save_file(weights, changed / "model.safetensors", {"format": "pt"})
    assert fingerprint(changed) != fingerprint(made[0])


def test_an_adapter_of_its_own_base_and_prompt_passes(made: tuple[Path, Path], adapter: Path) -> None:
    assert check_adapter(adapter, made[0]) is None  # no card: the shapes alone were compared
    written(adapter, made[0])
    card = check_adapter(adapter, made[0], Config.lab().prompt)
    assert card is not None
    assert card["method"] == "sft"


def test_an_adapter_of_other_weights_of_the_same_shape_is_refused(
    made: tuple[Path, Path], adapter: Path, tmp_path: Path
) -> None:
    from tests.tiny_models import tiny_model

    other = tiny_model(tmp_path / "other", seed=1)
    assert check_adapter(adapter, other) is None
    written(adapter, made[0])
    with pytest.raises(DataError, match=r"was trained on other weights: base with fingerprint \w+.*give that base"):
        check_adapter(adapter, other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 96}, r"down_proj is \(96, 256\), and the adapter's B is for 128 instead of 96"),
        ({"num_attention_heads": 3}, r"o_proj is \(128, 192\), and the adapter's A is for 128 instead of 192"),
        ({"num_hidden_layers": 1}, r"changes model\.layers\.1\.\S+, which the base has not"),
    ],
)
def test_a_base_of_another_shape_is_refused_without_a_card(
    adapter: Path, tmp_path: Path, change: dict[str, int], message: str
) -> None:
    from tests.tiny_models import tiny_model

    with pytest.raises(DataError, match=message):
        check_adapter(adapter, tiny_model(tmp_path / "other", **change))


def test_an_adapter_of_another_prompt_is_refused_with_the_prompt_it_wants(
    made: tuple[Path, Path], adapter: Path
) -> None:
    written(adapter, made[0])
    with pytest.raises(ConfigError, match=r"trained under the prompt \w{12}.*set \[prompt\] as its card has it.*user"):
        check_adapter(adapter, made[0], SolvePrompt(system="Think."))


def test_a_damaged_card_or_layout_is_named(made: tuple[Path, Path], adapter: Path) -> None:
    (adapter / "card.json").write_text("{")
    with pytest.raises(DataError, match=r"card\.json is not JSON"):
        check_adapter(adapter, made[0])
    (adapter / "adapter_config.json").unlink()
    with pytest.raises(DataError, match=r"has no adapter_config\.json"):
        check_adapter(adapter, made[0])


def test_the_base_is_found_by_path_lab_name_and_adapter_config(made: tuple[Path, Path], adapter: Path) -> None:
    from stepwise.lab import model_path

    assert base_of(adapter) == made[0]
    assert base_of(adapter, "lab-weak") == model_path("lab-weak", "safetensors")
    with pytest.raises(DataError, match="'nowhere' of adapter"):
        base_of(adapter, "nowhere")
    critic = check_adapter(model_path("lab-critic", "safetensors"))
    assert critic is not None
    assert critic["starts from"] == "lab-weak"


def test_evaluation_counts_what_the_lab_model_solves(tmp_path: Path) -> None:
    from stepwise.lab import generate

    problems = [made.problem for made in generate("test", 6)]
    cfg = Config.load(None, ["rl.max_tokens=250", "sampling.temperature=0.7"])
    found = evaluate(cfg, problems, samples=2)
    assert (found.problems, found.samples, found.judged) == (6, 2, 12)
    assert found.correct == found.verdicts["CORRECT"]
    assert found.accuracy is not None
    assert 0 < found.accuracy < 1
    short = Config.load(None, ["rl.max_tokens=1"])
    cut = evaluate(short, problems[:2], adapter="lab-critic")
    assert cut.model.startswith(found.model + "+")
    assert (cut.accuracy, cut.judged) == (0.0, 2)  # no answer is the model's own failure
    assert cut == evaluate(short, problems[:2], adapter="lab-critic")


def test_what_was_not_generated_or_judged_counts_neither_as_right_nor_as_wrong() -> None:
    problems = [Problem("long", "word " * 3000, "1"), Problem("gold", "How many?", "\\frac{1}{")]
    found = evaluate(Config.load(None, ["rl.max_tokens=4"]), problems)
    assert found.accuracy is None
    assert found.verdicts["NOT_GENERATED"] == 1
    assert found.judged == 0


def test_what_cannot_be_evaluated_is_said(adapter: Path, tmp_path: Path) -> None:
    problem = Problem("p", "q")
    with pytest.raises(DataError, match="problem 'p' has no answer"):
        evaluate(Config.lab(), [problem])
    with pytest.raises(DataError, match="0 problems"):
        evaluate(Config.lab(), [])
    with pytest.raises(DataError, match=r"has no adapter\.gguf; write it with export_lora_gguf"):
        with_adapter(Config.lab().models.weak, adapter)
    with pytest.raises(BackendError, match=r"nowhere\.gguf"):
        evaluate(Config.lab(), [Problem("p", "q", "1")], adapter=tmp_path / "nowhere.gguf")
    with pytest.raises(ConfigError, match=r"openai/some-model, behind an API.*leave --test and --test-lab out"):
        evaluate(Config.load(None, ["models.weak.model=openai/some-model"]), [Problem("p", "q", "1")])
