"""Labelled cases for the leak check, made from sentences by transformations whose effect on the label is known.

`leak_sentences.jsonl` holds interventions that give nothing away, with the problem, the steps before them, the answer,
other spellings of the answer, a sentence that gives it away in words of its own, a wrong value that looks like it, and
numbers of the sentence by where they come from. A case is a sentence after one transformation. Every other sentence of
each area is held out; asserting phrases are not shared between the two parts. To write leak_cases.jsonl anew:
`python tests/interventions/leak_cases.py`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
PHRASES = {
    "tune": (
        "{content} So the answer is {a}.",
        "{content} This gives {a}.",
        "{content} Working this out, the result = {a}.",
        "{content} Therefore we get \\boxed{{{a}}}.",
        "{content} Carrying this out, I obtain {a}.",
        "{content} The value is ${a}$.",
        "{content} Final answer: {a}",
        "Since the answer equals {a}, I can check every step against it. {content}",
    ),
    "held-out": (
        "{content} I already know that the answer will be {a}.",
        "{content} Thus the final result must be {a}.",
        "{content} The requested quantity is $\\boxed{{{a}}}$.",
        "{content} That leaves me with {a}.",
        "{content} Doing so yields {a}.",
        "{content} The solution is **{a}**.",
        "{content} It comes to {a}.",
        "I am aiming for a final value of {a} here. {content}",
    ),
}
NUMBER = re.compile(r"\d+(?:\.\d+)?")


def sentences() -> list[dict[str, Any]]:
    """The sentences as they are on disk."""
    return [json.loads(line) for line in (FOLDER / "leak_sentences.jsonl").read_text(encoding="utf-8").splitlines()]


def cases() -> Iterator[dict[str, Any]]:
    """Every case: what the check is given, the split, the transformation and the expected verdict."""
    for number, base in enumerate(sentences()):
        split = "held-out" if number % 2 else "tune"
        phrases = PHRASES[split]

        def case(
            change: str,
            content: str,
            verdict: str,
            answer: str,
            due: bool = False,
            base: Any = base,
            split: str = split,
        ) -> dict[str, Any]:
            given = {key: base[key] for key in ("problem", "prefix")}
            name = f"{base['id']}/{change}"
            return {
                "id": name, "split": split, "change": change.partition("-")[0], **given, "content": content,
                "answer": answer, "due": due, "expected": verdict,
            }  # fmt: skip

        content, answer = base["content"], base["answer"]
        asserted = [phrases[(number // 2 + i) % len(phrases)] for i in range(len(base["forms"]) + 4)]
        yield case("unchanged", content, "clean", answer)
        yield case("unchanged-last", content, "clean", answer, due=True)
        for i, phrase in enumerate(asserted[:2]):
            yield case(f"asserted-{i}", phrase.format(content=content, a=answer), "leak", answer)
        yield case("last", asserted[2].format(content=content, a=answer), "answer_step", answer, due=True)
        yield case("wrong", asserted[3].format(content=content, a=base["near"]), "clean", answer)
        for i, (phrase, form) in enumerate(zip(asserted[4:], base["forms"], strict=True)):
            yield case(f"equivalent-{i}", phrase.format(content=content, a=form), "leak", answer)
        yield case("paraphrase", f"{content} {base['paraphrase']}", "leak", answer)
        for origin, value in base["swaps"].items():
            yield case(origin, content, "clean", value)
        if "given" in base["swaps"]:
            value = base["swaps"]["given"]
            yield case("given_asserted", asserted[0].format(content=content, a=value), "leak", value)


def faults() -> Iterator[str]:
    """Sentences whose notes are not true of them: a number that is not where the notes say."""
    for base in sentences():
        inside = set(NUMBER.findall(base["content"]))
        places = {"given": base["problem"], "prefix": " ".join(base["prefix"]), "operand": base["content"]}
        for origin, value in base["swaps"].items():
            if origin == "inside":
                fits = value not in inside and any(value in number for number in inside)
            else:
                fits = value in base["content"] and value in places[origin]
            if not fits:
                yield f"{base['id']}: {value!r} is not {origin}"


def text() -> str:
    """The file of cases."""
    return "".join(json.dumps(case, ensure_ascii=False) + "\n" for case in cases())


if __name__ == "__main__":
    (FOLDER / "leak_cases.jsonl").write_text(text(), encoding="utf-8")
