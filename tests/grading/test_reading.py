r"""Where in a text its answer stands: the stated order, how it was read, and texts from which nothing can be read."""

from __future__ import annotations

import pytest

from stepwise.errors import DataError
from stepwise.grading import FoundAnswer, Verdict, check_gold, find_answer, grade
from stepwise.types import Problem

READ = [
    (r"Thus \boxed{5}. The answer is 6. #### 7", "5", "box"),
    (r"\boxed{} The answer is 6.", "6", "answer is"),
    ("9 * 2 = 18\n#### 18", "18", "####"),
    ("#### 18", "18", "####"),
    ("#### 1\nNo.\n#### 1,234 ", "1,234", "####"),
    ("The answer is 7.\n#### 8", "8", "####"),
    ("6 * 7 = 42\n\nThe answer is 42.", "42", "answer is"),
    ("Final Answer: The final answer is $18$. I hope it is correct.", "18", "answer is"),
    ("The final answer is 0.00000672. I hope it is correct.", "0.00000672", "answer is"),
    ("**Final Answer:** 3.5", "3.5", "answer is"),
    ("The correct answer to this question is (D).", "(D)", "answer is"),
    ("Answer: She received $7.00 in change.", "7.00", "answer is"),
    ("The answer is 4. No, the answer is 5.", "5", "answer is"),
    ("<answer>18</answer>", "18", "tag"),
    ("So <answer> 1/2 </answer>", "1/2", "tag"),
    ("8 + 12 = 20\n\nTherefore, the length of the red rope is 20 centimeters.", "20", "conclusion"),
    ("So, he has $8 left.", "8", "conclusion"),
    ("Thus, he used **12 tomatoes** in all.", "12", "conclusion"),
    ("We sum: \\[7 + 7 = 14\\] Therefore, the sum is **14**.", "14", "conclusion"),
    (r"Therefore, $\cos A = -\frac{24}{25}$.", r"\cos A = -\frac{24}{25}", "conclusion"),
    ("42", "42", "text"),
    ("x = 5", "x = 5", "text"),
    ("<think>The answer is 3</think>The answer is 4.", "4", "answer is"),
    ("", "", ""),
    ("I add.\n\nI subtract.", "", ""),
    (r"I run out of \boxed{", "", ""),
]


@pytest.mark.parametrize(("text", "answer", "source"), READ)
def test_an_answer_is_read_in_a_stated_order_and_how_is_recorded(text, answer, source):
    assert find_answer(text) == FoundAnswer(answer, source)
    assert find_answer(text, outside_box=False).source in ("box", "")


@pytest.mark.parametrize(
    "text",
    [
        "So, there are 3 cats and 4 dogs.",
        "Therefore, it is not 18.",
        "So it is about 18.",
        "Thus there are at least 18 of them.",
        "Therefore, he runs 18 miles per day.",
        "So she has 18 thousand.",
        "Hence 2 < x < 3.",
        "So, $x=1$ or $x=2$.",
        "18 students came on day 2.",
        "So he earns twice 9.",
        "Perhaps 18.",
    ],
)
def test_a_sentence_that_does_not_state_one_value_concludes_nothing(text):
    assert find_answer(text).source in ("", "text")
    assert grade(text, "18") is not Verdict.CORRECT


NOTHING = [
    "She has some left.",
    "I don't know",
    "no idea",
    "Sorry",
    "Sorry, I cannot solve it.",
    "I give up",
    "Let me think about it",
    "The problem is about 18 apples",
    "Step one is to add",
    "???  what",
    "hmm",
    "as an AI model",
    "1. First we add the numbers",
    "She has 18 left.",
    "It is 6 * 7 = 42 or so",
]


@pytest.mark.parametrize("text", NOTHING)
@pytest.mark.parametrize("gold", ["18", r"\frac12", "(1,2)", "x+1"])
def test_what_cannot_be_read_is_unparseable_and_never_wrong(text, gold):
    assert grade(text, gold) is Verdict.UNPARSEABLE_PREDICTION


@pytest.mark.parametrize("text", ["6 * 7 = 42", "42", "= 42", "42 apples", "$42$", "The answer is 42.", "So it is 42."])
def test_a_bare_value_is_the_answer(text):
    assert grade(text, "42") is Verdict.CORRECT
    assert grade(text, "43") is Verdict.WRONG
    assert grade(text, "42", outside_box=False) is Verdict.NO_ANSWER


@pytest.mark.parametrize(
    ("prediction", "gold", "verdict"),
    [
        ("no solution", "5", Verdict.WRONG),
        ("yes", "no", Verdict.WRONG),
        ("west", r"\text{east}", Verdict.WRONG),
        ("east", r"\text{east}", Verdict.CORRECT),
        (r"\boxed{\text{east}}", "5", Verdict.WRONG),
        (r"\boxed{cannot be done}", "5", Verdict.WRONG),
    ],
)
def test_words_are_answers_in_a_box_to_a_word_and_where_they_are_known_as_answers(prediction, gold, verdict):
    assert grade(prediction, gold) is verdict


@pytest.mark.parametrize(
    ("prediction", "gold", "refused"),
    [
        ("29 - 15", "14", True),
        ("7 + 7", "14", True),
        (r"2 \times 7", "14", True),
        (r"2\cdot 7", "14", True),
        ("28/2", "14", True),
        ("2*7", "14", True),
        (r"\frac{1}{2} + \frac{1}{2}", "1", True),
        ("x = 20 - 6", "14", True),
        ("(1+1, 3)", "(2,3)", True),
        (r"2\sqrt{3} + 4 - 1", r"2\sqrt{3}+3", True),
        ("14", "29 - 15", False),
        ("29 - 15", "29 - 15", False),
        ("15 - 1", "7 + 7", False),
        ("1/2", "0.5", False),
        (r"\frac{3}{6}", "0.5", False),
        (r"3.2\times 10^{-5}", "0.000032", False),
        (r"2 + \sqrt{3}", r"\sqrt{3}+2", False),
        ("x^2 + 3", "3+x^2", False),
        ("3 + 2x", "2x+3", False),
        ("2^{10}", "1024", False),
        ("1 1/2", "1.5", False),
        ("-14", "-14", False),
        ("a_1 + 2", "2+a_1", False),
        ("3 - 2i", "-2i+3", False),
    ],
)
def test_a_sum_that_is_not_carried_out_is_equal_but_earns_no_reward(prediction, gold, refused):
    assert grade(f"\\boxed{{{prediction}}}", gold) is Verdict.CORRECT
    expected = Verdict.WRONG if refused else Verdict.CORRECT
    assert grade(f"\\boxed{{{prediction}}}", gold, accept_arithmetic=False) is expected
    assert grade(r"\boxed{x^{77}}", gold, accept_arithmetic=False) is Verdict.WRONG


@pytest.mark.parametrize(
    "gold",
    [
        "He bakes 9 loaves and sells each for 2 dollars, so he makes 9 * 2 = $18 a day.\n#### 18",
        "The final answer is 42",
        "It is 42",
        "So x = 42 and we are done here",
        r"\text{See solution}",
        "see above",
        "nan",
        "NaN",
        "null",
        "N/A",
        "TBD",
        "['42']",
        "['42', '43']",
        '"42"',
        "proof",
        "The area equals 42 square units",
        "answer",
        "We get 42 after adding.",
    ],
)
def test_prose_and_placeholders_are_refused_as_gold_answers(gold):
    with pytest.raises(DataError, match="problem 'row 7'"):
        check_gold(Problem(id="row 7", question="q", answer=gold))


@pytest.mark.parametrize(
    "gold",
    ["5 apples", "3 million", r"\text{increasing}", "None of the above", "2023!", "a_1", "$3$,$5$", "62.5%",
     r"\text{(B)}", "x_{n+1}", r"\text{two}", "5 flurbles", "12 miles per hour",
     "2:30", r"1\text{ and }2", "no solution"],
)  # fmt: skip
def test_gold_answers_of_all_kinds_pass(gold):
    check_gold(Problem("p", "q", gold))
