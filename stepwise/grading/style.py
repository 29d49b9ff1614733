r"""LaTeX that changes how an answer looks and not what it is: colours, fonts, sizes, boxes, `\text` around numbers."""

from __future__ import annotations

import re

_DECLARATIONS_TEXT = (
    "tiny scriptsize footnotesize small normalsize large Large LARGE huge Huge displaystyle textstyle scriptstyle "
    "scriptscriptstyle limits nolimits rm bf it sf tt sl sc cal bfseries itshape mdseries normalfont boldmath "
    "unboldmath mathstrut strut centering noindent hfill hfil allowbreak nobreak null relax "
)
_DECLARATIONS = _DECLARATIONS_TEXT.split()
_MATH_TEXT = (
    "underline uline uuline uwave mathbf boldsymbol bm pmb bold mathit mathtt mathsf mathnormal mathord mathbin "
    "mathrel mathinner mathop ensuremath boxed fbox framebox hl smash mathbfit symbf symup vcenter "
)
_MATH = _MATH_TEXT.split()
_TEXT_TEXT = "text textbf textit textrm textsf texttt textup textmd textsl textsc textnormal emph mbox hbox mathrm"
_TEXT = _TEXT_TEXT.split()
_ARGUMENTS = {  # arguments in front of the one that is shown
    "color": (1, 0), "textcolor": (1, 1), "colorbox": (1, 1), "fcolorbox": (2, 1), "scalebox": (1, 1), "class": (1, 1),
    "raisebox": (1, 1), "resizebox": (2, 1), "bbox": (0, 1), "enclose": (1, 1), "style": (1, 1), "cssId": (1, 1),
    "href": (1, 1), "hspace": (1, 0), "vspace": (1, 0), "label": (1, 0), "tag": (1, 0), "phantom": (1, 0),
    "vphantom": (1, 0), "hphantom": (1, 0), "kern": (0, 0), "require": (1, 0),
}  # fmt: skip
_COMMAND = re.compile(r"\\([A-Za-z]+)\*?")
_OPTION = re.compile(r"\s*\[[^\[\]]*\]")
_VALUE = re.compile(r"[\d$%=+^_()/:\\|<>]")


def plain_style(text: str) -> str:
    r"""`text` without style commands; what `\text` and its kind hold is set free where it is more than words.

    Example:
        >>> plain_style(r"\textcolor{blue}{\mathbf{\frac34}}"), plain_style(r"\text{13 apples}")
        ('\\frac34', '13 apples')
    """
    pieces: list[str] = []
    at = 0
    for match in _COMMAND.finditer(text):
        if match.start() < at or (match.start() and text[match.start() - 1] == "\\"):
            continue
        name, end = match[1], match.end()
        if name in _DECLARATIONS:
            shown = " "
        elif name in _ARGUMENTS:
            hidden, content = _ARGUMENTS[name]
            end = option.end() if (option := _OPTION.match(text, end)) else end
            arguments, end = _arguments(text, end, hidden + content)
            if len(arguments) < hidden + content:
                continue
            shown = plain_style(arguments[-1]) if content else ""
        elif name in _MATH or name in _TEXT:
            arguments, end = _arguments(text, end, 1)
            if not arguments:
                continue
            shown = plain_style(arguments[0])
            if name == "mathrm" and shown.strip() in ("i", "e", "d"):
                shown = shown.strip()  # the imaginary unit, the base of logarithms: upright letters
            elif name in _TEXT and not _VALUE.search(shown):
                shown = "\\text{" + shown + "}"
        else:
            continue
        before = (pieces[-1] if pieces and match.start() == at else text[at : match.start()])[-1:]
        if before and before in "^_":
            shown = "{" + shown.strip() + "}"
        elif (before.isalnum() and shown[:1].isalnum()) or (name in _ARGUMENTS and shown == ""):
            shown = " " + shown
        pieces += [text[at : match.start()], shown]
        at = end
        if shown[-1:].isalnum() and text[at : at + 1].isalnum():
            pieces.append(" ")
    return "".join([*pieces, text[at:]])


def _arguments(text: str, start: int, count: int) -> tuple[list[str], int]:
    """Up to `count` arguments in braces from `start` on, and where they end."""
    found: list[str] = []
    while len(found) < count:
        opening = len(text[start:]) - len(text[start:].lstrip()) + start
        if text[opening : opening + 1] != "{":
            break
        depth, at = 0, opening
        while at < len(text):
            if text[at] == "\\":
                at += 2
                continue
            depth += (text[at] == "{") - (text[at] == "}")
            if depth == 0:
                break
            at += 1
        if at >= len(text):
            break
        found.append(text[opening + 1 : at])
        start = at + 1
    return found, start
