"""How formulas are written where standard output lacks their characters, in ASCII for one."""

import re
import sys

# Longer ones first. The circumflex is a character of its own, after its letter.
_SPELLED = {
    " × ": " * ",
    "√(": "sqrt(",
    "×": "x",
    "√": "sqrt ",
    "·": "@",  # the matrix product
    "−": "-",
    "≈": "~",
    "∞": "inf",
    "…": "...",
    "µ": "u",
    "\u0302": "_hat",
    "α": "alpha",
    "β": "beta",
    "γ": "gamma",
    "ε": "eps",
    "θ": "theta",
    "λ": "lambda",
    "π": "pi",
    "₀": "0",
    "₁": "1",
    "₂": "2",
    "¹": "^1",
    "²": "^2",
    "³": "^3",
    "ᵗ": "^t",
    "ᵀ": "^T",
}
_SIGNS = re.compile("|".join(map(re.escape, _SPELLED)))


def spelled(text: str) -> str:
    """Return the text with a name for each sign that standard output cannot show."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"

    def spell(sign: re.Match[str]) -> str:
        try:
            sign[0].encode(encoding)
        except UnicodeEncodeError:
            return _SPELLED[sign[0]]
        return sign[0]

    return _SIGNS.sub(spell, text)
