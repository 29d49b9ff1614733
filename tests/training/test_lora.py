from pathlib import Path

import pytest

from stepwise import lab
from stepwise.config import Config, ModelConfig
from stepwise.errors import ConfigError, DataError
from tests.training.sft_world import config, copied

torch = pytest.importorskip("torch", reason='needs pip install "stepwise[train]"')
pytest.importorskip("peft", reason='needs pip install "stepwise[train]"')

from stepwise.training.adapters import base_directory  # noqa: E402
from stepwise.training.checkpoint import load_checkpoint, save_checkpoint  # noqa: E402
from stepwise.training.lora import load_trainee  # noqa: E402


def disturb(trainee: object, seed: int = 1) -> None:
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in trainee.trainable():  # type: ignore[attr-defined]
            parameter.add_(0.1 * torch.randn_like(parameter))


def logits(trainee: object) -> object:
    with torch.no_grad():
        return trainee.model(input_ids=torch.arange(1, 20)[None]).logits  # type: ignore[attr-defined]


def test_only_the_adapter_is_trained_and_the_same_seed_gives_the_same_one(tiny_gguf_path: Path) -> None:
    one, two = load_trainee(config(tiny_gguf_path)), load_trainee(config(tiny_gguf_path))
    other = load_trainee(config(tiny_gguf_path, "seed=5"))
    names = [name for name, p in one.model.named_parameters() if p.requires_grad]
    assert names
    assert all("lora_" in name for name in names)
    assert not any("lm_head" in name or "embed" in name for name in names)
    assert all(torch.equal(a, b) for a, b in zip(one.trainable(), two.trainable(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one.trainable(), other.trainable(), strict=True))


def test_the_base_alone_is_the_model_without_its_adapter(tiny_gguf_path: Path) -> None:
    trainee = load_trainee(config(tiny_gguf_path))
    before = logits(trainee)
    disturb(trainee)
    changed = logits(trainee)
    with trainee.model.disable_adapter():
        assert torch.equal(logits(trainee), before)
    assert torch.equal(logits(trainee), changed)
    assert not torch.allclose(changed, before, atol=1e-2)


def test_an_adapter_is_saved_in_pefts_layout_and_gone_on_with(tiny_gguf_path: Path, tmp_path: Path) -> None:
    trainee = load_trainee(config(tiny_gguf_path))
    disturb(trainee)
    folder = trainee.save(tmp_path / "adapter")
    assert sorted(path.name for path in folder.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    again = load_trainee(config(tiny_gguf_path, "seed=9"), adapter=folder)
    assert torch.equal(logits(again), logits(trainee))
    assert again.trainable()


def test_dropout_is_for_supervised_training_alone(tiny_gguf_path: Path) -> None:
    how = config(tiny_gguf_path, "lora.dropout=0.5")
    for dropout in (True, False):
        trainee = load_trainee(how, dropout=dropout)
        disturb(trainee)
        assert torch.equal(logits(trainee), logits(trainee)) is not dropout


def test_a_checkpoint_brings_back_adapter_and_optimizer(tiny_gguf_path: Path, tmp_path: Path) -> None:
    trainee = load_trainee(config(tiny_gguf_path))
    optimizer = trainee.optimizer(1e-2)

    def step(trained: object, by: object) -> None:
        trained.model(input_ids=torch.arange(1, 20)[None]).logits.square().mean().backward()  # type: ignore[attr-defined]
        by.step()  # type: ignore[attr-defined]
        by.zero_grad()  # type: ignore[attr-defined]

    assert load_checkpoint(tmp_path / "checkpoint", trainee, optimizer) == (0, {})
    step(trainee, optimizer)
    save_checkpoint(tmp_path / "checkpoint", 7, trainee, optimizer, {"tokens": 5})
    step(trainee, optimizer)
    save_checkpoint(tmp_path / "checkpoint", 8, trainee, optimizer, {"tokens": 6})
    step(trainee, optimizer)
    again = load_trainee(config(tiny_gguf_path, "seed=3"))
    own = again.optimizer(1e-2)
    assert load_checkpoint(tmp_path / "checkpoint", again, own) == (8, {"tokens": 6})
    step(again, own)
    assert torch.equal(logits(again), logits(trainee))
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_a_checkpoint_that_was_being_replaced_is_still_found(tiny_gguf_path: Path, tmp_path: Path) -> None:
    trainee = load_trainee(config(tiny_gguf_path))
    optimizer = trainee.optimizer(1e-2)
    save_checkpoint(tmp_path / "checkpoint", 3, trainee, optimizer, {})
    (tmp_path / "checkpoint").rename(tmp_path / "checkpoint.old")
    (tmp_path / "checkpoint.new").mkdir()
    assert load_checkpoint(tmp_path / "checkpoint", trainee, optimizer) == (3, {})


def test_where_the_weights_to_train_lie() -> None:
    assert base_directory(ModelConfig(model="llamacpp/lab-weak")) == lab.model_path("lab-weak", "safetensors")
    with pytest.raises(ConfigError, match="set train_from"):
        base_directory(ModelConfig(model="llamacpp/other.gguf"))
    with pytest.raises(ConfigError, match=r"holds no config.json"):
        base_directory(ModelConfig(model="llamacpp/other.gguf", train_from="/nowhere"))


def test_a_device_or_a_type_that_is_not_there_is_refused_before_weights_are_read(tiny_gguf_path: Path) -> None:
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="finds no CUDA device"):
            load_trainee(config(tiny_gguf_path, "lora.device=cuda"))
    with pytest.raises((ConfigError, ImportError), match="4bit"):
        load_trainee(config(tiny_gguf_path, "lora.base=4bit"))


def test_a_tokenizer_needs_no_padding_token_but_an_end_and_a_template(tiny_gguf_path: Path, tmp_path: Path) -> None:
    from stepwise.training.lora import load_tokenizer

    assert load_tokenizer(copied(tiny_gguf_path, tmp_path / "unpadded", pad_token=None)).pad_token is None
    with pytest.raises(ConfigError, match="names no eos_token"):
        load_tokenizer(copied(tiny_gguf_path, tmp_path / "endless", eos_token=None))
    bare = copied(tiny_gguf_path, tmp_path / "bare")
    (bare / "chat_template.jinja").unlink()
    with pytest.raises(ConfigError, match="has no chat template"):
        load_tokenizer(bare)


def test_what_is_no_adapter_is_refused(tiny_gguf_path: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no adapter_config.json"):
        load_trainee(config(tiny_gguf_path), adapter=tmp_path)


def test_weights_of_another_tokenizer_are_refused(tiny_gguf_path: Path) -> None:
    lab_weak = lab.model_path("lab-weak", "safetensors")
    with pytest.raises(ConfigError, match="tokenizers differ"):
        load_trainee(Config.load(None, [f"models.weak.model=llamacpp/{tiny_gguf_path}",
                                        f"models.weak.train_from={lab_weak}"]))  # fmt: skip
