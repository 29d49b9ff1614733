r"""What stands around the number of an answer: units, currencies, things that are counted, and words that change it.

A unit may be omitted, two different known units are not equal, and nothing is converted: "5 cm" equals "5" and not
"5 m"; "90°" equals "90"; a base, as in `52_8`, counts as one, but only the prediction may omit it. A magnitude, a
fraction or a power is part of the value: "3 million" is 3000000, "3 tenths" 3/10, "3 squared" 9. Things that are
counted may be omitted as units may ("5 apples" equals "5"), but only those listed here and those that the gold answer
has: a word that nobody knows may change the value, so with one ("5 or more", "5 flurbles") the text is not a number.
"""

from __future__ import annotations

import re
from fractions import Fraction
from math import factorial

from stepwise.grading.exact import MAX_FACTORIAL, TooBig, evaluate

_NAMES = {
    "mm": "millimeter millimetre", "cm": "centimeter centimetre", "m": "meter metre", "km": "kilometer kilometre kms",
    "in": "inch", "ft": "foot feet", "yd": "yard", "mi": "mile", "mg": "milligram", "g": "gram gramme",
    "kg": "kilogram kilo kgs", "lb": "lbs pound", "oz": "ounce", "ton": "tonne", "ml": "mL milliliter millilitre",
    "l": "L liter litre", "gal": "gallon", "quart": "qt", "pint": "pt",
    "s": "sec second secs", "min": "minute mins", "h": "hr hrs hour",
    "day": "", "week": "wk", "month": "", "year": "yr yrs", "decade": "", "century": "", "cent": "¢",
    "dollar": "usd USD $ US$ buck", "euro": "EUR €", "pound sterling": "£ GBP", "yen": "JPY ¥", "rupee": "INR Rs ₹",
    "yuan": "CNY RMB", "franc": "CHF", "canadian dollar": "CAD", "australian dollar": "AUD",
    "percent": "% percents pct", "degree": "° deg", "degree c": "celsius", "degree f": "fahrenheit", "kelvin": "",
    "radian": "rad rads", "mph": "",
    "kph": "", "am": "AM", "pm": "PM", "unit": "", "ordinal": "st nd rd th", "n": "newton N", "j": "joule J",
    "w": "watt W", "v": "volt V", "pa": "pascal Pa", "hz": "hertz Hz", "acre": "", "hectare": "ha",
}  # fmt: skip
_THING_WORDS = """
acorn act adult album alligator animal answer ant antacid apartment appetizer apple area arm arrangement article
athlete attempt attendee baby bag ball balloon banana bar barrel baseball basket basketball bat batch bath battery
bead bean bear bed bee beef bell berry bike bill bird biscuit block blueberry boat bolt bone book bookmark bottle
bouquet bowl box boy bracelet branch bread brick bridge brother brownie bucket bug building bulb bun bunny burger bus
bushel business butter butterfly button cake call calorie camera can candle candy cap car card carrot cart carton case
cat cave cell cement chair change chapter cheese chicken child children chip chocolate choice cigarette circle claim
clam class classmate classroom client clip clock cloth cloud coat coconut coffee coin color colour column combination
computer container cookie corn corner costume country couple coupon course cow crab cracker crate crayon creature
croissant crow cube cubicle cucumber cup cupcake cushion customer cycle daisy dart date debt deer desk diagonal diaper
dice die digit dime dinner dish distance divisor dog doll donut door doughnut dozen drawer drawing dress drink drop
duck ear earring edge edition egg element elephant email employee engine envelope episode error event exam eye fabric
face factor factory family fan farmer feather female fence field file film finger fireman fish flag flavor flight
floor flour flower fly follower food foot fork fraction frame friend frog fruit fuel function furniture gallery game
gas gasoline gem gift girl glass glove goal goat golfer goose grade grape grass group guest guppy hair haircut
hamburger hamster hand handshake hat hay head height hen hiker hive hole home homework honey hook horse hotdog house
income inhabitant insect integer interest invitation item jacket jar jellybean jewel jewelry job jog juice jump key
kid kilocalorie kilowatt kite kitten knife lamb lamp lantern lap laptop laundry leaf leaves leg lego lemon length
lesson letter level library light line lion list lizard loaf loaves lollipop lot luggage lumber machine magazine
magnet mail male man mango map marble mark marker marshmallow mask match meal meat meeting member men message mice
milk minnow mirror mistake money monkey moose mosquito mouse move movie muffin mug multiple mushroom nail name
necklace neighbor neighbour nest nickel night note notebook number nurse nut object oil onion option orange ornament
outcome outfit owner ox oxen pack package packet page paint painting pair palindrome pancake pant paper parent part
participant party passenger pastry path patient pattern peach pear pebble pedal pen pencil pennies penny people pepper
perimeter permutation person pet petal phone photo photograph piano picture pie piece pig pigeon pill pillow pineapple
pint pitcher pixel pizza plane planet plank plant plate player plum point police pony pool position possibility post
poster pot potato practice present prime prize problem product profit program project puppy purse puzzle quart
question quilt quiz quizzes rabbit race racket rat record rectangle red region rent report request resident restaurant
revenue ribbon rice ring road rock roll room roots rope rose round row rug rung runner sack salad sale salt sand
sandwich scarf school scientist seagull seashell seat section seed segment sentence serving session set shark sheep
sheet shelf shell shelves ship shirt shoe shop shot shrimp shrub sibling side sign sister skirt sleep slice slot snack
snail snake sock soda soil soldier solution song speaker spider spoon spoonful spot square squirrel stair stamp star
station step stick sticker stone stop store story strawberry street string stripe student subject subset sugar suit
sunflower sweater sweet swimmer swing sword symbol table tablespoon tablet tadpole tank tape task taxi tea teacher
team teaspoon teddy teeth tent term test text ticket tie tile tin tire title toddler tomato tool tooth top tourist
tower town toy track traffic train tray treat tree triangle trip truck tube tulip turkey turn turtle twig umbrella
uniform unit value vampire van vase vegetable vehicle vertex vertices video villager violin visit visitor volume
volunteer vote wagon walk wall watch water watermelon way weekend weight whale wheat wheel width window winner wire
wolf woman women wood word work worker worm yarn yogurt zebra zombie zoo
ampere atom beat bit bushel byte calories carat cycles decibel fathom furlong gigabyte kilobyte kilojoule knot lumen
megabyte microsecond millisecond mol mole molecule nanometer ohm parsec pairs petabyte quadruples revolution rotation
rpm terabyte triples tuple tuples turns
"""
_THINGS = frozenset(_THING_WORDS.split())
_FILLERS_TEXT = (
    "of a an the per each every left total in all remaining altogether overall exactly only his her their its own and "
    "different distinct possible red blue green yellow white black brown pink purple orange gold silver small large "
    "big long tall old new apart away together positive ordered real rational prime odd even consecutive nonzero whole "
    "unique square cubic "
)
_FILLERS = frozenset(_FILLERS_TEXT.split())
_CLOSING_WORDS = {"left", "total", "remaining", "altogether", "overall", "all", "together", "each"}
_MAGNITUDES = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12,
               "hundreds": 100, "thousands": 1000, "millions": 10**6, "billions": 10**9, "trillions": 10**12,
               "dozens": 12, "mil": 10**6, "gross": 144}  # fmt: skip
_ONES_TEXT = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
)
_ONES = _ONES_TEXT.split()
_ONES += ["eighteen", "nineteen"]
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_SPELLED = {word: value for value, word in enumerate(_ONES)} | {word: 10 * k for k, word in enumerate(_TENS, 2)}
_PARTS = {"half": 2, "halve": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "eighth": 8, "ninth": 9,
          "twelfth": 12, "sixth": 6, "seventh": 7, "tenth": 10, "hundredth": 100, "thousandth": 1000,
          "millionth": 10**6, "twentieth": 20}  # fmt: skip
_POWERS = {"square": "^2", "sq": "^2", "squared": "^2", "cubic": "^3", "cubed": "^3"}
_CHANGING_TEXT = (
    "or more less fewer least most over under above below about almost nearly around approximately up to than plus "
    "minus times divided by mod modulo remainder with without not no non if unless except but between from through "
    "until point negative percent percentage base root power factorial double twice triple half other at is was are "
    "few several many greater smaller larger within off out and score squares cubes "
)
# Words with which a number is another number, or none: in a gold answer they are no unit.
_CHANGING = frozenset([*_CHANGING_TEXT.split(), *_MAGNITUDES, *_SPELLED, *_PARTS, *(f"{part}s" for part in _PARTS)])
_KNOWN = {name: unit for unit, names in _NAMES.items() for name in (unit, *names.split())}
_SPEEDS = {"mi/h": "mph", "km/h": "kph"}
_ANY = {"unit"}  # "5 units" says nothing that another unit could contradict
_CODE = r"(?:USD|US\$|EUR|GBP|CAD|AUD|JPY|CHF|CNY|RMB|INR|Rs\.?)"
_CURRENCY = re.compile(rf"(-?)\s*(?:\\text\s*\{{\s*)?({_CODE}(?![A-Za-z])|[$€£¥₹])\s*\}}?\s*(?=[-\d.\\])")
_SIGN = re.compile(r"\s*([%°$€£¢¥₹])\s*(?:\\text\s*\{\s*)?(?:(?<=°)\s*)?([CF]?)\s*\}?$")
_SIGNED = re.compile(r"°\s*(?:\\text\s*\{\s*)?([CF])\s*\}?$")
_TEXT = re.compile(r"\s*\\text\s*\{\s*([^{}\d]*?)\s*\}\s*(?:\^\s*\{?\s*(-?[1-4])\s*\}?)?$")
_WORDS = re.compile(r"(\s*)(?<![A-Za-z\\])([A-Za-z][A-Za-z. /'-]*?)\s*(?:\^\s*\{?\s*(-?[1-4])\s*\}?)?$")
# What a number with roots and pi is made of; behind it these letters are units more often than variables.
_CONSTANT = re.compile(
    r"(?=.*[\d\\])(?:[\d\s.,+*/(){}^-]|\\(?:pi|sqrt|[dt]?frac|cdot|times|left|right)(?![A-Za-z]))+(?<=[\d)}i])"
)
_LETTERS = {"m", "s"}
_BRACKETED = re.compile(r"(?<=[\d}])\s+\(\s*(?:\\text\s*\{)?\s*([A-Za-z][A-Za-z. ]+?)\s*\}?\s*\)$")
_ORDINAL = re.compile(r"\s*\^?\s*\{?\s*(?:\\text\s*\{\s*)?(st|nd|rd|th)\s*\}?\s*\}?$")
_ANGLE = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![A-Za-z])[^°]*°$")  # belongs to the function, not to the answer
_BASE_NAMES = ["two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
_IN_BASE = rf"(\d+|{'|'.join(_BASE_NAMES)})"
_BASE = re.compile(
    r"\(?\s*(?:\\text\s*\{\s*)?(-?\s*[0-9A-F]+)\s*\}?\s*\)?\s*"
    rf"(?:_\s*\{{?\s*\(?\s*(?:base\s*)?(?:\\text\s*\{{\s*(?:base\s*)?)?\}}?\s*{_IN_BASE}"
    rf"|\(?\s*(?:\\text\s*\{{\s*)?\(?\s*(?:in\s+)?base[\s-]*\}}?\s*{_IN_BASE})\s*[)}}\s]*$"
)


_AND_PART = re.compile(rf"(.+?)\s+and\s+(.+?)(?:\s+({'|'.join(_MAGNITUDES)}))?")
_POINT = re.compile(rf"(.+?)\s+point((?:\s+(?:{'|'.join(_ONES[:10])}))+)")


class NoNumber(Exception):
    """A number stands with words that nobody knows.

    Example:
        try:
            answer = reader.read("12 florps")
        except NoNumber as error:
            raise Unreadable(role, str(error)) from None
    """


def split_base(text: str) -> tuple[str, str] | None:
    r"""The digits and "base n" of `2516_8`, `(2516)_{8}` or `1AF (base 16)`; None where there is no base.

    >>> split_base("2516_8"), split_base("1AF (base 16)"), split_base("12")
    (('2516', 'base 8'), ('1AF', 'base 16'), None)
    """
    if not (match := _BASE.fullmatch(text)):
        return None
    base = match[2] or match[3]
    base = str(_BASE_NAMES.index(base) + 2) if base in _BASE_NAMES else base
    digits = match[1].replace(" ", "")
    plain = digits.lstrip("-")
    valid = plain.isdigit() or (10 < int(base) <= 36 and all(int(digit, 16) < int(base) for digit in plain))
    return (digits, f"base {base}") if valid else None


def split_unit(text: str, known: frozenset[str] | None = None) -> tuple[str, str, Fraction | None]:
    r"""`text` without its unit, the unit's one name ("" where it has none), and its value where words change that.

    `known`: words of the other answer, which count as things; None: every word does that changes no number. Raises
    NoNumber where a word behind a number is not known.

    Example:
        >>> split_unit("3 million dollars")
        ('3', 'dollar', Fraction(3000000, 1))
    """
    text = text.strip()
    if currency := _CURRENCY.match(text):
        rest, unit, value = split_unit(currency[1] + text[currency.end() :], known)
        named = unit in ("cent", "canadian dollar", "australian dollar")
        return rest, unit if named else _KNOWN[currency[2].rstrip(".")], value
    if _ANGLE.search(text):
        return text, "", None
    if (degree := _SIGNED.search(text)) and degree.start() > 0:
        return text[: degree.start()], f"degree {degree[1].lower()}", None
    if (sign := _SIGN.search(text)) and sign.start() > 0 and not sign[2]:
        return text[: sign.start()], _KNOWN[sign[1]], None
    if (ordinal := _ORDINAL.search(text)) and text[: ordinal.start()].strip().isdigit():
        return text[: ordinal.start()], "ordinal", None
    if (bracketed := _BRACKETED.search(text)) and (len(bracketed[1]) > 2 or _canonical(bracketed[1])):
        return _with_words(text[: bracketed.start()], bracketed[1], None, known, bare=False)
    if (words := _TEXT.search(text)) and words.start() > 0:
        return _with_words(text[: words.start()], words[1], words[2], known, bare=False)
    if (bare := _WORDS.search(text)) and bare.start() > 0 and "\\" not in text[bare.start() :]:
        rest, name = text[: bare.start()], bare[2]
        if _is_number(rest) and (bare[1] or len(name) > 1 or _canonical(name, bare[3]) in (known or ())):
            return _with_words(rest, name, bare[3], known, bare=True)
        unit = _canonical(name, bare[3])
        constant = _CONSTANT.fullmatch(rest) and (len(name) > 1 or (bare[1] and name in _LETTERS))
        if unit and (constant or (len(name) > 1 and rest[-1] in ")}")):
            return rest, unit, None
    return text, "", None


def spelled(text: str) -> Fraction | None:
    """The value of a number in words ("forty-two", "two thirds", "three million dollars"), None for anything else.

    >>> spelled("forty-two"), spelled("two thirds"), spelled("many")
    (Fraction(42, 1), Fraction(2, 3), None)
    """
    if mixed := _AND_PART.fullmatch(text.lower()):
        whole, share = spelled(mixed[1]), spelled(mixed[2])
        if whole is not None and share is not None and whole.denominator == 1 and 0 < share < 1:
            return (whole + share) * _MAGNITUDES.get(mixed[3] or "", 1)
    if decimal := _POINT.fullmatch(text.lower()):
        whole = spelled(decimal[1])
        digits = "".join(str(_ONES.index(word)) for word in decimal[2].split())
        return None if whole is None or whole < 0 else whole + Fraction(int(digits), 10 ** len(digits))
    words = text.lower().split()
    while len(words) > 1 and _is_thing(words[-1], frozenset()) and words[-1] not in _CHANGING:
        words = words[:-1]
    text = " ".join(words)
    words = [word for word in re.split(r"[\s-]+", text.lower().strip()) if word != "and"]
    if not words or not words[0]:
        return None
    sign = -1 if words[0] in ("negative", "minus") else 1
    words = words[1:] if sign < 0 else words
    if len(words) > 1 and words[0] in ("a", "an"):
        words = ["one", *words[1:]]
    part = _PARTS.get(words[-1].removesuffix("s"), 0) if words else 0
    if part:
        words = words[:-1] or ["one"]
    total, current = 0, 0
    for word in words:
        if word in _SPELLED:
            if current % 10 and _SPELLED[word] >= 1:
                return None
            current += _SPELLED[word]
        elif word in _MAGNITUDES and current + total:
            current *= _MAGNITUDES[word]
            if word != "hundred":
                total, current = total + current, 0
        else:
            return None
    return Fraction(sign * (total + current), part or 1) if words else None


def compatible(one: str, other: str) -> bool:
    """False where both units are known and differ.

    >>> compatible("cm", "cm"), compatible("cm", "kg"), compatible("cm", "")
    (True, False, True)
    """
    degrees = "degree" in (one, other) and one.startswith("degree") and other.startswith("degree")
    return not one or not other or one == other or one in _ANY or other in _ANY or degrees


def _canonical(name: str, power: str | None = None) -> str:
    """The one name of a unit with its power, "" where it is unknown."""
    words = name.replace(".", "").replace("/", " per ").split()
    suffix = f"^{power}" if power else ""
    plain = []
    for word in words:
        if word.lower() in _POWERS and len(words) > 1:
            suffix = _POWERS[word.lower()]
        else:
            plain.append(word)
    if len(plain) == 2 and plain[0].lower() in ("degree", "degrees") and plain[1][0] in "CFcf":
        return f"degree {plain[1][0].lower()}"
    units = [_unit(group.strip()) for group in " ".join(plain).split(" per ")]
    unit = "/".join(units)
    return "" if not all(units) else units[0] if units[0] in _ANY else _SPEEDS.get(unit, unit) + suffix


def _unit(name: str) -> str:
    singular = {name, name.lower(), name.lower().removesuffix("s"), name.lower().removesuffix("es")}
    return next((_KNOWN[form] for form in (name, *sorted(singular, key=len, reverse=True)) if form in _KNOWN), "")


def _with_words(
    rest: str, name: str, power: str | None, known: frozenset[str] | None, *, bare: bool
) -> tuple[str, str, Fraction | None]:
    """A number (or a formula) and the words behind it."""
    if unit := _canonical(name, power):
        return rest, unit, None
    words = [word for word in re.split(r"[\s,]+", name.replace(".", "").lower()) if word]
    number = _number(rest)
    value = number
    while words and number is not None and value is not None:
        word = words[0]
        # "5 eighths" is a number, "5 eighth notes" are notes.
        part = _PARTS.get(word.removesuffix("s"), 0) if word.endswith("s") or value == 1 else 0
        if word in _MAGNITUDES:
            value *= _MAGNITUDES[word]
        elif part and word not in ("quarters", "half"):
            value /= part
        elif word in ("squared", "cubed"):
            value **= 2 if word == "squared" else 3
        elif word == "factorial" and value.denominator == 1 and 0 <= value <= MAX_FACTORIAL:
            value = Fraction(factorial(int(value)))
        else:
            break
        words = words[1:]
    if bare and len(words) == 1 and len(words[0]) <= 2 and words[0] not in _CHANGING:
        return rest + " " + name, "", None  # `2 x`, `3 ab`: a product
    left = " ".join(words)
    changed = value if value != number or left != " ".join(name.replace(".", "").lower().split()) else None
    if not words:
        return rest, "", changed
    if unit := _canonical(left, power):
        return rest, unit, changed
    if all(_is_thing(word, known) for word in words) and not (set(words) <= _FILLERS - _CLOSING_WORDS):
        return rest, next((u for word in words if (u := _unit(word)) and len(word) > 2), ""), changed
    if number is None and not bare and not (set(words) & _CHANGING):
        return rest + "\\text{" + name + "}", "", None  # a formula with words: algebra refuses it
    raise NoNumber(f"the words {name!r} behind a number are not known")


def _is_thing(word: str, known: frozenset[str] | None) -> bool:
    if known is None:
        return word not in _CHANGING or word in _FILLERS
    forms = {
        word,
        word.removesuffix("s"),
        word.removesuffix("es"),
        re.sub("ies$", "y", word),
        re.sub("ves$", "f", word),
    }
    return bool(forms & _THINGS) or word in _FILLERS or word in known or bool(len(word) > 2 and _unit(word))


def _number(text: str) -> Fraction | None:
    return evaluate(re.sub(r"(?<=\d),(?=\d{3})", "", text).strip())


def _is_number(text: str) -> bool:
    try:
        return _number(text) is not None
    except TooBig:
        return True
