"""Random-weight process reward models, written in the file layouts of the published ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Literal

from tests.tiny_models import CHAT_TEMPLATE, tiny_model

Layout = Literal["qwen", "skywork"]
MARK = "<extra_0>"


def save_prm(folder: Path, layout: Layout = "qwen", *, classes: int = 2, shards: bool = False, **config: Any) -> Path:
    """Write config.json, tokenizer and safetensors as Qwen2.5-Math-PRM ("qwen") or Skywork-o1-Open-PRM has them."""
    import torch
    from safetensors.torch import load_file, save_file

    base = tiny_model(folder.with_name(folder.name + "-base"), "qwen2", tied=False, **config)
    folder.mkdir(parents=True)
    weights = load_file(base / "model.safetensors")
    width = json.loads((base / "config.json").read_text())["hidden_size"]
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * 0.06

    if layout == "qwen":
        weights |= {"score.0.weight": draw(width, width), "score.0.bias": draw(width)}
        weights |= {"score.2.weight": draw(classes, width), "score.2.bias": draw(classes)}
        architecture, modeling = "Qwen2ForProcessRewardModel", "modeling_qwen2_rm"
    else:
        weights |= {"v_head.summary.weight": draw(1, width), "v_head.summary.bias": draw(1)}
        architecture, modeling = "Qwen2ForPrmModel", "modeling_qwen2_prm"
    if shards:
        names = sorted(weights)
        parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
        for file, held in parts.items():
            save_file({name: weights[name] for name in held}, folder / file, {"format": "pt"})
        index = {"metadata": {}, "weight_map": {name: file for file, held in parts.items() for name in held}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    else:
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
    settings = json.loads((base / "config.json").read_text())
    settings |= {"architectures": [architecture], "num_labels": classes}
    settings["auto_map"] = {"AutoModel": f"{modeling}.{architecture}", "AutoConfig": "configuration_x.XConfig"}
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / f"{modeling}.py").write_text("raise SystemExit('remote code was run')\n")
    (folder / "configuration_x.py").write_text("raise SystemExit('remote code was run')\n")
    _write_tokenizer(folder, base, layout)
    shutil.rmtree(base)
    return folder


def _write_tokenizer(folder: Path, base: Path, layout: Layout) -> None:
    """The tokenizer of the base model; in Qwen's layout <|score|>'s place is taken by <extra_0>, as Qwen does it."""
    text = (base / "tokenizer.json").read_text(encoding="utf-8")
    (folder / "tokenizer.json").write_text(text.replace("<|score|>", MARK) if layout == "qwen" else text)
    config = json.loads((base / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"bos_token": "<|endoftext|>"}))
    if layout == "qwen":
        (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)


def golden_scores(folder: Path, question: str, steps: list[str], system: str) -> list[float]:
    """The scores by the model card's recipe: the whole chat with all markers in one string, no padding, float32."""
    import torch
    from safetensors.torch import load_file
    from transformers import AutoTokenizer, Qwen2Config, Qwen2Model

    weights = {k: v for file in sorted(folder.glob("*.safetensors")) for k, v in load_file(file).items()}
    settings = json.loads((folder / "config.json").read_text())
    settings.pop("auto_map")
    model = Qwen2Model(Qwen2Config(**settings)).eval()
    model.load_state_dict({k.removeprefix("model."): v for k, v in weights.items() if k.startswith("model.")})
    tokenizer = AutoTokenizer.from_pretrained(folder)
    chat = f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    whole = chat + MARK.join(steps) + MARK + "<|im_end|>\n"
    ids = torch.tensor([tokenizer.encode(whole, add_special_tokens=False)])
    with torch.no_grad():
        hidden = model(ids).last_hidden_state[0]
        inner = torch.relu(hidden @ weights["score.0.weight"].T + weights["score.0.bias"])
        logits = inner @ weights["score.2.weight"].T + weights["score.2.bias"]
    marks = ids[0] == tokenizer.convert_tokens_to_ids(MARK)
    e = logits[marks].double().exp()
    return [float(p) for p in (e[:, 1] / e.sum(-1))]
