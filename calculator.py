"""Exact arithmetic on an expression, without `eval`.

Numbers are fractions where that is possible. A number that no fraction holds (`sqrt(2)`, `pi`, `log(3)`), or only a
very long one, is a decimal number of a hundred digits. Two rules correct its errors. A number whose first fifty
digits are those of one of at most forty digits is taken for that one, so `floor(sqrt(2)**2)` is 2. A difference that
loses more than fifty digits is taken for zero, so `sin(pi)` is 0. The price of the second rule:
`10**60 + pi - 10**60` is 0 as well.
"""

import decimal
import math
import re
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from operator import add, mul, truediv
from typing import Any

MAX_LENGTH = 30_000  # characters of an expression
MAX_DEPTH = 64  # parentheses, calls, signs and powers within one another
MAX_DIGITS = 10_000  # of a number in full, before and after the point
MAX_BITS = 66_500  # of a numerator and a denominator together, 20,000 digits
MAX_EXPONENT = 1_000_000_000  # of what is not exact
MAX_WORK = 25_000  # a unit is about a microsecond
DIGITS, EQUAL_DIGITS, SHORT_DIGITS, SHOWN_DIGITS = 100, 50, 40, 15  # of what is not exact


class CalculatorError(ValueError):
    """An expression has no answer; the message says why, in one line."""


def calculator(expression: str) -> str:
    """Calculates an arithmetic expression exactly. Knows + - * / // % (remainder) ** and parentheses, the numbers
    pi and e, and the functions sqrt, abs, round(x), round(x, places), min, max, floor, ceil, exp, log(x) (natural),
    log(x, base), sin, cos and tan (in radians).

    Returns a result with a finite decimal expansion in full, up to 10,000 digits. Any other result has 15 significant
    digits, and an exponent (3.33333333333333e+19) from 1e+15 on and below 1e-6. Raises `CalculatorError` where there
    is no answer, and where the answer would take more than about 50 ms.

    Args:
        expression: what to compute, such as "15 * 23" or "sqrt(2) / 3"
    """
    if len(expression) > MAX_LENGTH:
        raise CalculatorError(f"the expression is longer than {MAX_LENGTH:,} characters")
    try:
        with decimal.localcontext(_context(DIGITS)):
            return _text(_Parser(expression.translate(_SPELLINGS)).result())
    except ZeroDivisionError:
        raise CalculatorError("division by zero") from None
    except ArithmeticError:
        raise CalculatorError(f"a number is beyond 1e+{MAX_EXPONENT}, or too close to zero") from None


_Number = Fraction | Decimal  # exact, or not; a Decimal is never zero


class _Parser:
    """Reads an expression and calculates while it reads."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._work = self._depth = self._calls = 0  # so many functions' parentheses are open
        self._token, self._kind, self._end = "", "", 0
        self._advance()

    def result(self) -> _Number:
        number = self._expression()
        self._accept("=")
        self._accept("?")
        self._expect("")
        return number

    def _expression(self, lowest: int = 1) -> _Number:
        number = self._operand()
        while (found := _OPERATORS.get(self._token)) and found[0] >= lowest:
            precedence, operation = found
            self._advance()
            right = self._expression(precedence + 1)
            self._spend((_bits(number) + 1_000) * (_bits(right) + 1_000) >> 18)  # as if done by hand
            number = operation(number, right)
        return number

    def _operand(self) -> _Number:
        """A number with its sign and what it is raised to: -2**2 is -4, and 2**3**2 is 2**9."""
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise CalculatorError(f"parentheses, signs or powers are more than {MAX_DEPTH} deep")
        if self._token in ("+", "-"):
            number = -self._operand() if self._advance() == "-" else self._operand()
        else:
            number = self._atom()
            if self._accept("**"):
                number = self._call(_power, number, self._operand())
        self._spend(10 + (_bits(number) >> 8))
        self._depth -= 1
        return number

    def _atom(self) -> _Number:
        if self._kind == "number":
            return self._literal(self._advance().replace(",", ""))
        if self._kind == "name":
            return self._named(self._advance().lower())
        self._expect("(")
        number = self._expression()
        self._expect(")")
        return number

    def _literal(self, digits: str) -> _Number:
        try:
            value = _IN_FULL.create_decimal(digits)
        except decimal.Inexact:
            raise CalculatorError(f"a number has more than {MAX_DIGITS:,} digits") from None
        self._spend((len(digits) ** 2 >> 14) + (abs(value.adjusted()) >> 4))
        return Fraction(value)

    def _named(self, name: str) -> _Number:
        if name in _CONSTANTS:
            return _CONSTANTS[name]
        if name not in _FUNCTIONS:
            raise CalculatorError(f"unknown name {name[:20]!r}; known are {', '.join([*_FUNCTIONS, *_CONSTANTS])}")
        most, function = _FUNCTIONS[name]
        self._calls += 1
        self._expect("(")
        arguments = [self._expression()]
        while self._accept(","):
            arguments.append(self._expression())
        self._calls -= 1
        self._expect(")")
        if len(arguments) > most:
            raise CalculatorError(f"too many arguments for {name}: {len(arguments)} where {most} will do{_COMMA}")
        return self._call(function, *arguments)

    def _call(self, function: Callable[..., _Number], *arguments: _Number) -> _Number:
        self._spend(150 + len(arguments) * (sum(map(_bits, arguments)) ** 2 >> 20))
        return function(*arguments)

    def _spend(self, work: int) -> None:
        self._work += work
        if self._work > MAX_WORK:
            raise CalculatorError("this is too much work at once; do it in smaller parts")

    def _advance(self) -> str:
        """Goes on to the next token, and returns the one that it leaves."""
        left = self._token
        found = (_TOKEN if self._calls else _TOKEN_OR_GROUPS).match(self._text, self._end)
        assert found and found.lastgroup  # there is always one, if only the end
        self._kind, self._token, self._end = found.lastgroup, found[found.lastgroup], found.end()
        return left

    def _accept(self, symbol: str) -> bool:
        accepted = self._token == symbol
        if accepted:
            self._advance()
        return accepted

    def _expect(self, symbol: str) -> None:
        if self._accept(symbol):
            return
        if not self._token:
            raise CalculatorError("the expression ends too early")
        before = self._text[: self._end - len(self._token)].rstrip()[-20:]
        place = f"after {before!r}" if before else "at the beginning"
        raise CalculatorError(f"unexpected {self._token[:20]!r} {place}{_COMMA if self._token == ',' else ''}")


def _text(x: _Number) -> str:
    if isinstance(x, Fraction):
        try:
            return f"{_IN_FULL.divide(Decimal(x.numerator), Decimal(x.denominator)):f}"
        except decimal.Inexact:
            pass
    shown = _context(SHOWN_DIGITS).plus(_decimal(x)).normalize()
    return f"{shown:f}" if -7 < shown.adjusted() < SHOWN_DIGITS else f"{shown:e}"


def _bits(x: _Number) -> int:
    return x.numerator.bit_length() + x.denominator.bit_length() if isinstance(x, Fraction) else 0


def _decimal(x: _Number) -> Decimal:
    if isinstance(x, Decimal):
        return x
    # Decimal takes long for a long number, of which 400 bits are more than enough.
    up, down = (max(n.bit_length() - 400, 0) for n in (x.numerator, x.denominator))
    return Decimal(x.numerator >> up) / Decimal(x.denominator >> down) * Decimal(2) ** (up - down)


def _settle(x: _Number) -> _Number:
    """What to go on with instead of `x`: a fraction where that is possible."""
    if isinstance(x, Fraction):
        if _bits(x) <= MAX_BITS:
            return x
        if x.denominator == 1:
            raise CalculatorError(_TOO_LONG)
    value = _decimal(x)
    short = _SHORT.plus(value)
    is_short = short == _EQUAL.plus(value) and abs(short.adjusted()) < EQUAL_DIGITS
    return Fraction(short) if is_short else value


def _operate(operation: Callable[[Any, Any], _Number], x: _Number, y: _Number) -> _Number:
    if isinstance(x, Fraction) and isinstance(y, Fraction):
        return _settle(operation(x, y))
    return _settle(operation(_decimal(x), _decimal(y)))


def _add(x: _Number, y: _Number) -> _Number:
    total = _operate(add, x, y)
    inexact = isinstance(x, Decimal) or isinstance(y, Decimal)
    return Fraction(0) if inexact and abs(_decimal(total)) < abs(_decimal(x)) * _TINY else total


def _floor(x: _Number) -> _Number:
    if isinstance(x, Decimal) and x.adjusted() >= SHORT_DIGITS:
        raise CalculatorError(f"what is not exact has no whole part of more than {SHORT_DIGITS} digits")
    return Fraction(math.floor(x))


def _round(x: _Number, places: _Number = Fraction(0)) -> _Number:
    """Halves go away from zero: 2.5 to 3, and -2.5 to -3."""
    if not isinstance(places, Fraction) or places.denominator > 1 or abs(places) > 1_000:
        raise CalculatorError("round(x, n) is for a whole number n of up to 1,000 places")
    if x < 0:
        return -_round(-x, places)
    unit = Fraction(10) ** -places.numerator
    return _operate(mul, _floor(_add(_operate(truediv, x, unit), _HALF)), unit)


def _power(x: _Number, y: _Number) -> _Number:
    if isinstance(y, Fraction) and y.denominator == 1:
        if isinstance(x, Fraction) and (_bits(x) - 2) * abs(y) <= MAX_BITS:
            return _settle(x**y.numerator)
        if isinstance(x, Fraction) and x.denominator == 1 and y > 0:
            raise CalculatorError(_TOO_LONG)
        if x < 0:
            return _operate(mul, _power(-x, y), Fraction(-1) ** y.numerator)
    if x < 0:
        raise CalculatorError("negative numbers have no real roots or fractional powers")
    if isinstance(x, Fraction) and y == _HALF:
        root = Fraction(math.isqrt(x.numerator), math.isqrt(x.denominator))
        if root**2 == x:
            return root
    return x if x == 0 < y else _settle(_decimal(_operate(mul, y, _log(x))).exp())


def _log(x: _Number, base: _Number | None = None) -> _Number:
    if x <= 0:
        raise CalculatorError("only numbers above zero have logarithms")
    if base is not None:
        return _operate(truediv, _log(x), _log(base))
    beyond_one = _decimal(_add(x, Fraction(-1)))
    return _settle(beyond_one if abs(beyond_one) < _TINY else _decimal(x).ln())


def _sin(x: _Number, quarters: int = 0) -> _Number:
    """The sine of the angle that is `x` and so many quarter turns."""
    angle = _decimal(x)
    if angle.adjusted() >= SHORT_DIGITS:
        raise CalculatorError(f"sin, cos and tan are for angles below 1e+{SHORT_DIGITS}")
    turned = (angle * 2 / _PI).to_integral_value()
    rest = _decimal(_add(angle, -turned * _PI / 2))
    quarters += int(turned)
    power = 1 - quarters % 2  # odd powers make the series of the sine, even ones that of the cosine
    term, total = rest if power else Decimal(1), Decimal(0)
    while total + term != total:
        total += term
        term *= -rest * rest / ((power + 1) * (power + 2))
        power += 2
    return _settle(-total if quarters % 4 > 1 else total)


def _context(digits: int) -> decimal.Context:
    traps = [decimal.Overflow, decimal.Underflow, decimal.InvalidOperation, decimal.DivisionByZero]
    return decimal.Context(digits, decimal.ROUND_HALF_UP, -MAX_EXPONENT, MAX_EXPONENT, traps=traps)


_IN_FULL = decimal.Context(MAX_DIGITS, Emin=-1, Emax=MAX_DIGITS - 1, traps=[decimal.Inexact])
_SHORT, _EQUAL = _context(SHORT_DIGITS), _context(EQUAL_DIGITS)
_TINY, _HALF = Decimal(10) ** -EQUAL_DIGITS, Fraction(1, 2)
_PI = Decimal("3.141592653589793238462643383279502884197169399375105820974944592307816406286208998628034825342117068")

_OPERATORS: dict[str, tuple[int, Callable[[_Number, _Number], _Number]]] = {  # with the precedence
    "+": (1, _add),
    "-": (1, lambda x, y: _add(x, -y)),
    "*": (2, lambda x, y: _operate(mul, x, y)),
    "/": (2, lambda x, y: _operate(truediv, x, y)),
    "//": (2, lambda x, y: _floor(_operate(truediv, x, y))),
    "%": (2, lambda x, y: _add(x, -_operate(mul, y, _floor(_operate(truediv, x, y))))),  # the sign is that of y
}
_FUNCTIONS: dict[str, tuple[int, Callable[..., _Number]]] = {  # with the largest number of arguments
    "sqrt": (1, lambda x: _power(x, _HALF)),
    "abs": (1, abs),
    "round": (2, _round),
    "min": (MAX_LENGTH, lambda *numbers: min(numbers)),
    "max": (MAX_LENGTH, lambda *numbers: max(numbers)),
    "floor": (1, _floor),
    "ceil": (1, lambda x: -_floor(-x)),
    "exp": (1, lambda x: _settle(_decimal(x).exp())),
    "log": (2, _log),
    "sin": (1, _sin),
    "cos": (1, lambda x: _sin(x, 1)),
    "tan": (1, lambda x: _operate(truediv, _sin(x), _sin(x, 1))),
}
_CONSTANTS = {"pi": _PI, "e": _context(DIGITS).exp(Decimal(1))}

_SPELLINGS = str.maketrans(
    {chr(ord("！") + n): chr(ord("!") + n) for n in range(94)}  # full width
    | {"×": " * ", "·": " * ", "⋅": " * ", "÷": " / ", "^": "**", "−": "-", "–": "-", "π": "pi"}
)
_TOO_LONG = f"a whole number on the way has more than {2 * MAX_DIGITS:,} digits"
_COMMA = "; in a function's parentheses a comma separates arguments, elsewhere it groups threes, as in 1,234"
_NUMBER = r"(?P<number>(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?)"
_SYMBOL = r"(?P<symbol>\*\*|//|(?<=\S)%\s*[-+]\s|\S|\Z)"  # in 50% - 1 the sign is no remainder's
_TOKEN = re.compile(rf"\s*(?:{_NUMBER}|(?P<name>[^\W\d]\w*)|{_SYMBOL})")
_GROUPS = r"(?:[1-9][0-9]{0,2}(?:,[0-9]{3})+(?![0-9,])|[0-9]+)"
_TOKEN_OR_GROUPS = re.compile(_TOKEN.pattern.replace("[0-9]+", _GROUPS, 1))
