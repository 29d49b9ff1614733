"""From a configuration to a scorer: every kind, and what is refused with the key's name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from stepwise.config import Config, ScorerConfig
from stepwise.errors import BackendError, ConfigError
from stepwise.models.scorers import ConstantScorer, LabelTokenScorer, Scorer, load_scorer
from stepwise.types import Problem


def refusal(tmp_path: Path, lines: str) -> str:
    path = tmp_path / "x.toml"
    path.write_text("[scorer]\n" + lines)
    with pytest.raises(ConfigError) as caught:
        Config.load(path)
    return str(caught.value)


def test_the_default_kind_reads_label_tokens_and_a_name_is_enough(tiny_gguf_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    assert Config().scorer.kind == "label_token"
    made = load_scorer(f"llamacpp/{tiny_gguf_path}")
    assert isinstance(made, LabelTokenScorer)
    assert made.incremental is True
    assert made.memory_bytes is not None
    assert made.memory_bytes > tiny_gguf_path.stat().st_size * 0.9
    made.close()
    made.close()


def test_label_tokens_that_a_model_lacks_are_named_and_the_model_is_freed(tiny_gguf_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    for key in ("marker", "good", "bad"):
        config = ScorerConfig(model=f"llamacpp/{tiny_gguf_path}", **{key: "<|maybe|>"})  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match=r"no token '<\|maybe\|>', which is split .*<\|good\|>"):
            load_scorer(config)


def test_a_missing_or_corrupt_gguf_is_named(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    with pytest.raises(BackendError, match=r"nothing\.gguf"):
        load_scorer(f"llamacpp/{tmp_path}/nothing.gguf")
    (tmp_path / "broken.gguf").write_bytes(b"GGUF garbage")
    with pytest.raises(BackendError, match=r"broken\.gguf"):
        load_scorer(f"llamacpp/{tmp_path}/broken.gguf")


def test_a_constant_scorer_is_a_line_of_configuration() -> None:
    made = load_scorer(ScorerConfig(kind="constant", value=0.25))
    assert isinstance(made, ConstantScorer)
    assert isinstance(made, Scorer)
    assert made.score("How many?", ["a", "b"]) == [0.25, 0.25]
    assert (made.memory_bytes, made.parameters) == (0, 0)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('kind = "clasifier"', '"scorer.kind": the value is .*clasifier.; did you mean'),
        ('maker = "<x>"', 'unknown key "scorer.maker"; did you mean "scorer.marker"'),
        ('device = "cuda"', '"device" is set, but means nothing to a scorer of kind "label_token" .only to classifier'),
        ('kind = "judge"\nmodel = "openai/x"\nmarker = "+"', '"marker" is set, but means nothing .*"judge"'),
        ('kind = "constant"\nmarker = "<x>"', '"marker" is set, but means nothing'),
        ("value = 0.3", '"value" is set, but means nothing'),
        ('kind = "constant"\nvalue = 1.5', '"scorer.value" is 1.5'),
        ('kind = "pooling"\nmodel = "vllm/x"', 'kind "pooling" asks a server; set its address, api_base'),
        ('kind = "classifier"\napi_base = "http://localhost:1"', '"api_base" is set, but means nothing'),
    ],
)
def test_a_key_that_does_not_go_with_the_kind_is_refused(tmp_path: Path, lines: str, message: str) -> None:
    import re

    assert re.search(message, refusal(tmp_path, lines))


def test_what_runs_here_is_free_and_what_runs_elsewhere_has_no_price_unless_given() -> None:
    assert ScorerConfig().prices == (0.0, 0.0)
    assert ScorerConfig(kind="classifier", model="transformers/x").prices == (0.0, 0.0)
    assert ScorerConfig(kind="judge", model="openai/x").prices is None
    assert ScorerConfig(kind="judge", model="openai/x", price_in=1.0, price_out=2.0).prices == (1.0, 2.0)


def test_a_scorer_is_handed_through_and_an_api_model_is_refused() -> None:
    scorer = ConstantScorer(0.5)
    assert load_scorer(scorer) is scorer
    with pytest.raises(ConfigError, match=r'scorer\.model is "openai/gpt"'):
        load_scorer("openai/gpt")


class Novelty(Scorer):
    """The share of words of a step that were not there before."""

    def __init__(self, floor: float = 0.3):
        self.floor = floor

    def score(self, problem: Problem, steps: Sequence[str]) -> Sequence[float]:
        words = [set(step.split()) for step in steps]
        seen = [set(problem.question.split()).union(*words[:i]) for i in range(len(steps))]
        return [max(self.floor, len(new - old) / len(new)) for new, old in zip(words, seen, strict=True)]


def test_a_scorer_of_ones_own_is_named_by_its_import_path_and_takes_options() -> None:
    kind = "tests.scorers.test_load:Novelty"
    scorer = load_scorer(ScorerConfig(kind=kind, options={"floor": 0.6}))
    assert scorer.score_batch([("A cat sat.", ["A cat.", "A dog."])]) == [[0.6, 0.6]]
    assert load_scorer(ScorerConfig(kind=kind)).identity != scorer.identity
    with pytest.raises(ConfigError, match=r"scorer: Novelty takes no 'flor'; did you mean 'floor'\?"):
        load_scorer(ScorerConfig(kind=kind, options={"flor": 0.5}))
    with pytest.raises(ConfigError, match=r"scorer\.kind is 'fractions:Fraction': Fraction is no Scorer"):
        load_scorer(ScorerConfig(kind="fractions:Fraction"))
    with pytest.raises(ConfigError, match=r"\"options\" is set, but means nothing"):
        ScorerConfig(options={"floor": 0.5})
