"""Exact arithmetic on an expression, without `eval`.

Numbers are fractions for as long as they can be. What no fraction can say (`sqrt(2)`, `pi`, `log(3)`) is a
decimal number with a bound on its error; where that leaves a digit of the answer open, all is computed again
with ten times as many digits. So every digit shown is right, but for one convention: what 500 digits do not
tell apart from zero (or a whole number, or a half), such as `sin(pi)`, is taken to be exactly that.
"""

from __future__ import annotations

import decimal
import functools
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import NoReturn

MAX_LENGTH = 30_000  # characters of an expression
MAX_DEPTH = 64  # parentheses, calls and powers within one another
MAX_DIGITS = 10_000  # of a number read or written in full
MAX_BITS = 66_500  # of a numerator or denominator on the way, 20,000 digits
MAX_EXPONENT = 100_000_000  # of what is not exact
MAX_ANGLE = 1_000  # decimal exponent of an angle
MAX_WORK = 12_000  # for each of two tries; a unit is about a microsecond
FEW_DIGITS, MANY_DIGITS = 50, 500  # to work with, in the first try and the second
SAFE_DIGITS = 20  # known of every number that is not exact
SHOWN_DIGITS = 15


class CalculatorError(ValueError):
    """An expression has no answer; the message says why, in one line."""


def calculator(expression: str) -> str:
    """Calculates an arithmetic expression exactly. Knows + - * / // % ** and parentheses, the numbers pi and
    e, and the functions sqrt, abs, round(x), round(x, places), min, max, floor, ceil, exp, log(x) (natural),
    log(x, base), sin, cos and tan (in radians).

    A result with a finite decimal expansion is given in full, any other one to 15 significant digits, with an
    exponent (3.33333333333333e+19) from 1e+15 on and below 1e-6. Raises `CalculatorError` where there is no
    answer, or only one that would take more than some 50 ms.

    Args:
        expression: what to compute, such as "15 * 23" or "sqrt(2) / 3"
    """
    if len(expression) > MAX_LENGTH:
        raise CalculatorError(f"the expression is longer than {MAX_LENGTH:,} characters")
    try:
        try:
            return _evaluate(expression, FEW_DIGITS)
        except _Uncertain:
            return _evaluate(expression, MANY_DIGITS)
    except (decimal.Overflow, decimal.Underflow):
        raise CalculatorError(f"a number is beyond 1e+{MAX_EXPONENT}, or too close to zero") from None


@dataclass(frozen=True, slots=True)
class _Real:
    """Some number within `error` of `value`; never one that might be zero."""

    value: Decimal
    error: Decimal

    def __neg__(self) -> _Real:
        return _Real(-self.value, self.error)


_Number = Fraction | _Real


class _Uncertain(CalculatorError):
    """More digits to work with might help."""


def _evaluate(expression: str, digits: int) -> str:
    with decimal.localcontext(_context(digits)):
        arithmetic = _Arithmetic(digits)
        return arithmetic.text(_Parser(expression.translate(_FULL_WIDTH), arithmetic).result())


class _Parser:
    """Reads an expression and calculates while it reads."""

    def __init__(self, text: str, arithmetic: _Arithmetic) -> None:
        self._text = text
        self._arithmetic = arithmetic
        self._depth = 0
        self._calls = 0  # how many functions' parentheses are open
        self._at = 0

    def result(self) -> _Number:
        self._move_to(0)
        number = self._expression()
        self._accept("=")
        self._accept("?")
        if self._at < len(self._text):
            self._refuse()
        return number

    def _expression(self, lowest: int = 1) -> _Number:
        number = self._operand()
        while found := _OPERATOR.match(self._text, self._at):
            precedence, operation = _OPERATORS[found[0]]
            if precedence < lowest:
                break
            if _PER_CENT.match(self._text, self._at):
                raise CalculatorError(_REMAINDER)
            self._move_to(found.end())
            number = operation(self._arithmetic, number, self._expression(precedence + 1))
        return number

    def _operand(self) -> _Number:
        """Signs, a number, and what it is raised to: -2**2 is -4, and 2**3**2 is 2**9."""
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise CalculatorError(f"parentheses or powers are more than {MAX_DEPTH} deep")
        self._arithmetic.spend(12)
        signs = found[0] if (found := self._take(_SIGNS)) else ""
        number = self._atom()
        if self._accept("**") or self._accept("^"):
            number = self._arithmetic.power(number, self._operand())
        self._depth -= 1
        return -number if sum(map(signs.count, "-−–")) % 2 else number

    def _atom(self) -> _Number:
        if found := self._take(_NUMBER if self._calls else _GROUPED_NUMBER):
            return self._literal(*found.groups(""))
        if found := self._take(_NAME):
            return self._named(found[0])
        self._expect("(")
        number = self._expression()
        self._expect(")")
        return number

    def _literal(self, whole: str, fraction: str, exponent: str) -> Fraction:
        if "," in whole and not _THOUSANDS.fullmatch(whole):
            raise CalculatorError(f"{whole[:20]!r}: {_GROUPS}; the decimal point is a point")
        digits, power = whole.replace(",", "") + fraction, exponent.lstrip("+-−0") or "0"
        if not digits.strip("0"):
            return Fraction(0)
        if len(digits) > MAX_DIGITS or len(power) > 5 or int(power) > MAX_DIGITS:
            raise CalculatorError(f"a number has more than {MAX_DIGITS:,} digits")
        self._arithmetic.spend((len(digits) ** 2 >> 15) + (int(power) >> 6))
        sign = -1 if exponent.startswith(("-", "−")) else 1
        return Fraction(Decimal(f"{digits}e{sign * int(power) - len(fraction)}"))

    def _named(self, name: str) -> _Number:
        if name.lower() not in _NAMES:
            raise CalculatorError(f"unknown name {name[:20]!r}; known are {', '.join(_NAMES)}")
        least, most, function = _NAMES[name.lower()]
        arguments = []
        if most:
            if not self._accept("("):
                raise CalculatorError(f"{name} needs parentheses: {name}(…)")
            self._calls += 1
            arguments.append(self._expression())
            while self._accept(","):
                arguments.append(self._expression())
            self._expect(")")
            self._calls -= 1
        if not least <= len(arguments) <= most:
            takes = "one argument" if most == 1 else f"{least} or {most} arguments"
            raise CalculatorError(f"{name} takes {takes}, not {len(arguments)}; {_SEPARATES}")
        return function(self._arithmetic, *arguments)

    def _take(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        found = pattern.match(self._text, self._at)
        if found:
            self._move_to(found.end())
        return found

    def _accept(self, symbol: str) -> bool:
        accepted = self._text.startswith(symbol, self._at)
        if accepted:
            self._move_to(self._at + len(symbol))
        return accepted

    def _expect(self, symbol: str) -> None:
        if not self._accept(symbol):
            self._refuse()

    def _move_to(self, position: int) -> None:
        """There, and on past white space."""
        found = _SPACE.match(self._text, position)
        self._at = found.end() if found else position

    def _refuse(self) -> NoReturn:
        """Says what is wrong with the text from here on."""
        before, rest = self._text[: self._at].rstrip(), self._text[self._at :]
        if before.endswith("%"):
            raise CalculatorError(_REMAINDER)
        if not rest:
            raise CalculatorError("the expression ends too early")
        if rest.startswith(","):
            raise CalculatorError(_SEPARATES if self._calls else _GROUPS)
        no_operator = _NO_OPERATOR.fullmatch(before[-1:] + rest[0])
        hint = "; multiplication is written 2 * 3" if no_operator else ""
        place = f"after {before[-20:]!r}" if before else "at the beginning"
        raise CalculatorError(f"unexpected {rest[0]!r} {place}{hint}")


class _Arithmetic:
    """The operations, with so many digits to work with."""

    def __init__(self, digits: int) -> None:
        self._digits = digits
        self._final = digits == MANY_DIGITS
        self._function_work = 30 + (digits**2 >> 7)
        self._upward = _context(6, decimal.ROUND_UP)
        self._work_left = MAX_WORK

    def spend(self, work: int) -> None:
        self._work_left -= work
        if self._work_left < 0:
            raise CalculatorError("this is too much work at once; do it in smaller parts")

    def text(self, x: _Number) -> str:
        """The number as it is shown."""
        if isinstance(x, Fraction):
            if (places := _decimal_places(x)) is not None:
                return _in_full(x, places)
            x = self._real(x)
        context = _context(SHOWN_DIGITS)
        low, high = context.plus(abs(x.value) - x.error), context.plus(abs(x.value) + x.error)
        if low != high and not self._final:
            self._give_up()
        sign, exponent = "-" if x.value < 0 else "", high.adjusted()
        if -7 < exponent < SHOWN_DIGITS:
            return f"{sign}{high.normalize(context):f}"
        return f"{sign}{high.scaleb(-exponent, context).normalize(context):f}e{exponent:+}"

    def add(self, x: _Number, y: _Number) -> _Number:
        if isinstance(x, Fraction) and isinstance(y, Fraction):
            self._spend_on(x, y)
            return self._exact(x + y)
        a, b = self._real(x), self._real(y)
        return self._inexact(a.value + b.value, a.error + b.error)

    def multiply(self, x: _Number, y: _Number) -> _Number:
        if isinstance(x, Fraction) and isinstance(y, Fraction):
            self._spend_on(x, y)
            return self._exact(x * y)
        a, b = self._real(x), self._real(y)
        error = abs(a.value) * b.error + (abs(b.value) + b.error) * a.error
        return self._inexact(a.value * b.value, error)

    def divide(self, x: _Number, y: _Number) -> _Number:
        if y == 0:
            raise CalculatorError("division by zero")
        if isinstance(x, Fraction) and isinstance(y, Fraction):
            return self.multiply(x, 1 / y)
        a, b = self._real(x), self._real(y)
        value = a.value / b.value
        return self._inexact(value, (a.error + abs(value) * b.error) / (abs(b.value) - b.error))

    def floor(self, x: _Number) -> _Number:
        if isinstance(x, Fraction):
            self.spend(x.numerator.bit_length() * x.denominator.bit_length() >> 20)
            return Fraction(math.floor(x))
        if x.value.adjusted() > self._digits:
            self._give_up()
        nearest = Fraction(int(x.value.to_integral_value()))
        return nearest - 1 if _sign(self.add(x, -nearest)) < 0 else nearest

    def remainder(self, x: _Number, y: _Number) -> _Number:
        """With the sign of `y`, as in Python."""
        return self.add(x, -self.multiply(y, self.floor(self.divide(x, y))))

    def power(self, x: _Number, y: _Number) -> _Number:
        if _sign(y) < 0:
            return self.power(self.divide(Fraction(1), x), -y)
        if x == 0:
            return Fraction(y == 0)
        if isinstance(x, Fraction) and isinstance(y, Fraction):
            root = self._exact_root(x, y.denominator)
            if root is not None:
                bits = (_bits(root) - 1) * y.numerator
                if bits <= MAX_BITS:
                    self.spend((bits**2 >> 21) + (_bits(y) >> 4))
                    return self._exact(root**y.numerator)
                self._refuse_if_finite(root)
        a = self._real(x)
        if isinstance(y, Fraction) and y.denominator == 1:
            self.spend(self._function_work + (_bits(y) ** 2 >> 19))
            value = a.value**y.numerator
            return self._inexact(value, abs(value / a.value) * a.error * y.numerator * 2)
        if a.value < 0:
            raise CalculatorError("negative numbers have no real roots or fractional powers")
        if y == Fraction(1, 2):
            self.spend(self._digits >> 2)
            value = a.value.sqrt()
            return self._inexact(value, a.error / value)
        return self.exp(self.multiply(y, self.log(x)))

    def exp(self, x: _Number) -> _Number:
        if x == 0:
            return Fraction(1)
        self.spend(self._function_work)
        a = self._real(x)
        value = a.value.exp()
        return self._inexact(value, value * a.error * 2)

    def log(self, x: _Number, base: _Number | None = None) -> _Number:
        if _sign(x) <= 0:
            raise CalculatorError("only numbers above zero have logarithms")
        if base is not None:
            return self.divide(self.log(x), self.log(base))
        if x == 1:
            return Fraction(0)
        self.spend(self._function_work)
        a = self._real(x)
        return self._inexact(a.value.ln(), a.error / (a.value - a.error))

    def sine(self, x: _Number, quarters: int = 0) -> _Number:
        """The sine of the angle that is `x` and so many quarter turns."""
        if x == 0:
            return Fraction(quarters)
        self.spend(self._function_work // 2)
        exponent = self._real(x).value.adjusted()
        if exponent > MAX_ANGLE:
            raise CalculatorError(f"sin, cos and tan are for angles up to 1e+{MAX_ANGLE}")
        with decimal.localcontext() as context:
            context.prec = self._digits + 5 + max(0, exponent)
            angle = self._real(x)
            turned = (angle.value * 2 / _pi()).to_integral_value()
            rest = angle.value - turned * _pi() / 2
            context.prec = self._digits + 5
            quarters += int(turned)
            value = _series(rest, odd=quarters % 2 == 0) * (-1 if quarters % 4 >= 2 else 1)
            error = angle.error + (Decimal(10) ** -self._digits if turned else 0)
        return self._inexact(value, error)

    def pi(self) -> _Number:
        return self._inexact(+_pi(), Decimal(0))

    def abs(self, x: _Number) -> _Number:
        return -x if _sign(x) < 0 else x

    def min(self, *numbers: _Number) -> _Number:
        return functools.reduce(lambda x, y: y if _sign(self.add(x, -y)) > 0 else x, numbers)

    def round(self, x: _Number, places: _Number = Fraction(0)) -> _Number:
        """Halves go away from zero: 2.5 to 3, and -2.5 to -3."""
        if not isinstance(places, Fraction) or places.denominator > 1 or abs(places) > MAX_DIGITS:
            raise CalculatorError(f"round(x, n) is for a whole number n of up to {MAX_DIGITS:,} places")
        self.spend(abs(places.numerator) >> 4)
        unit = Fraction(10) ** -places.numerator
        count = self.floor(self.add(self.divide(self.abs(x), unit), Fraction(1, 2)))
        return self.multiply(count, unit * _sign(x))

    def _exact_root(self, x: Fraction, degree: int) -> Fraction | None:
        if degree == 1:
            return x
        if x < 0 or degree > MAX_BITS:
            return None
        self.spend(_bits(x) ** 2 >> 19)
        numerator, denominator = _root(x.numerator, degree), _root(x.denominator, degree)
        exact = numerator**degree == x.numerator and denominator**degree == x.denominator
        return Fraction(numerator, denominator) if exact else None

    def _exact(self, x: Fraction) -> _Number:
        """`x` itself, or where it is too long to go on with and has no end anyway, an approximation."""
        if _bits(x) <= MAX_BITS:
            return x
        self._refuse_if_finite(x)
        return self._real(x)

    def _refuse_if_finite(self, x: Fraction) -> None:
        if _decimal_places(x) is not None:
            raise CalculatorError(f"a number on the way has more than {2 * MAX_DIGITS:,} digits")

    def _real(self, x: _Number) -> _Real:
        if isinstance(x, _Real):
            return x
        digits = decimal.getcontext().prec
        self.spend(_bits(x) + digits >> 5)
        # Shifted so that the quotient is just long enough: Decimal takes much longer for a long number.
        shift = 4 * digits - x.numerator.bit_length() + x.denominator.bit_length()
        quotient = (x.numerator << max(shift, 0)) // (x.denominator << max(-shift, 0))
        value = Decimal(quotient) * Decimal(2) ** -shift
        return _Real(value, abs(value).scaleb(2 - digits))

    def _inexact(self, value: Decimal, error: Decimal) -> _Number:
        """What was computed from numbers with that error, and rounded once more itself."""
        self.spend(self._digits >> 4)
        error = self._upward.add(error, abs(value).scaleb(1 - self._digits))
        if abs(value) > error.scaleb(SAFE_DIGITS):
            return _Real(+value, error)
        if value == error == 0:
            return Fraction(0)
        if self._final and abs(value) <= error and error.adjusted() < -self._digits // 10:
            return Fraction(0)
        self._give_up()

    def _give_up(self) -> NoReturn:
        raise _Uncertain("too many digits cancel out, or are missing, for an answer that is right")

    def _spend_on(self, x: Fraction, y: Fraction) -> None:
        # Common divisors take most of the time, in proportion to the product of the lengths.
        (a, b), (c, d) = ((n.numerator.bit_length(), n.denominator.bit_length()) for n in (x, y))
        self.spend(5 + ((a * d + b * c + b * d) * 4 + a * c >> 21))


def _sign(x: _Number) -> int:
    value = x if isinstance(x, Fraction) else x.value
    return (value > 0) - (value < 0)


def _bits(x: Fraction) -> int:
    return max(x.numerator.bit_length(), x.denominator.bit_length())


def _decimal_places(x: Fraction) -> int | None:
    """How many digits `x` has after the point; None if they have no end."""
    twos = (x.denominator & -x.denominator).bit_length() - 1
    odd = x.denominator >> twos
    fives = math.ceil((odd.bit_length() - 1) / math.log2(5))
    return max(twos, fives) if odd == 5**fives else None


def _in_full(x: Fraction, places: int) -> str:
    if places <= MAX_DIGITS:
        scaled = abs(x.numerator) * (10**places // x.denominator)
        if scaled < 10**MAX_DIGITS:
            digits = str(Decimal(scaled)).rjust(places + 1, "0")  # str(int) would stop at 4,300 digits
            point = len(digits) - places
            return ("-" if x < 0 else "") + digits[:point] + ("." if places else "") + digits[point:]
    raise CalculatorError(f"the result has more than {MAX_DIGITS:,} digits")


def _root(n: int, degree: int) -> int:
    """Rounded down, by Newton's method from above; it begins with the root of the upper half of `n`."""
    if n.bit_length() <= degree:
        return min(n, 1)
    half = n.bit_length() // (2 * degree)
    root = (_root(n >> half * degree, degree) + 1) << half if half else 4
    while (closer := ((degree - 1) * root + n // root ** (degree - 1)) // degree) < root:
        root = closer
    return root


def _series(x: Decimal, odd: bool) -> Decimal:
    """The sine (odd powers) or cosine (even ones) of a small angle."""
    power, term = (1, x) if odd else (0, Decimal(1))
    total, square = term, x * x
    while True:
        power += 2
        term *= -square / (power * (power - 1))
        if total + term == total:
            return total
        total += term


@functools.cache
def _pi() -> Decimal:
    """With all digits that the largest angle needs, by Machin's formula."""
    digits = MANY_DIGITS + MAX_ANGLE + 50
    one: int = 10 ** (digits + 10)

    def arctan_of_one_over(n: int) -> int:
        term = total = one // n
        power = 1
        while term:
            power += 2
            term //= -n * n
            total += term // power
        return total

    with decimal.localcontext(_context(digits)):
        return Decimal(16 * arctan_of_one_over(5) - 4 * arctan_of_one_over(239)) / one


def _context(digits: int, rounding: str = decimal.ROUND_HALF_UP) -> decimal.Context:
    traps = [decimal.Overflow, decimal.Underflow, decimal.InvalidOperation, decimal.DivisionByZero]
    return decimal.Context(digits, rounding, -MAX_EXPONENT, MAX_EXPONENT, traps=traps)


_Operation = Callable[..., _Number]
_OPERATORS: dict[str, tuple[int, _Operation]] = {  # with the precedence
    **dict.fromkeys("+", (1, _Arithmetic.add)),
    **dict.fromkeys("-−–", (1, lambda do, x, y: do.add(x, -y))),
    **dict.fromkeys("*×·⋅", (2, _Arithmetic.multiply)),
    **dict.fromkeys("/÷", (2, _Arithmetic.divide)),
    "//": (2, lambda do, x, y: do.floor(do.divide(x, y))),
    "%": (2, _Arithmetic.remainder),
}
_NAMES: dict[str, tuple[int, int, _Operation]] = {  # with the least and the most arguments
    "sqrt": (1, 1, lambda do, x: do.power(x, Fraction(1, 2))),
    "abs": (1, 1, _Arithmetic.abs),
    "round": (1, 2, _Arithmetic.round),
    "min": (1, MAX_LENGTH, _Arithmetic.min),
    "max": (1, MAX_LENGTH, lambda do, *numbers: -do.min(*(-x for x in numbers))),
    "floor": (1, 1, _Arithmetic.floor),
    "ceil": (1, 1, lambda do, x: -do.floor(-x)),
    "exp": (1, 1, _Arithmetic.exp),
    "log": (1, 2, _Arithmetic.log),
    "sin": (1, 1, _Arithmetic.sine),
    "cos": (1, 1, lambda do, x: do.sine(x, 1)),
    "tan": (1, 1, lambda do, x: do.divide(do.sine(x), do.sine(x, 1))),
    "pi": (0, 0, _Arithmetic.pi),
    "π": (0, 0, _Arithmetic.pi),
    "e": (0, 0, lambda do: do.exp(Fraction(1))),
}

_FULL_WIDTH = {ord("！") + n: ord("!") + n for n in range(94)}
_SPACE = re.compile(r"\s*")
_OPERATOR = re.compile("//|[" + re.escape("".join(_OPERATORS)) + "]")
_SIGNS = re.compile(r"[-−–+\s]+")
_PER_CENT = re.compile(r"(?<=\S)%\s*[-−–+]\s")
_NUMBER = re.compile(r"(?=\.?[0-9])([0-9]*)\.?([0-9]*)(?:[eE]([-−+]?[0-9]+))?")
_GROUPED_NUMBER = re.compile(_NUMBER.pattern.replace("[0-9]*", "[0-9]*(?:,[0-9]+)*", 1))
_THOUSANDS = re.compile(r"[1-9][0-9]{0,2}(?:,[0-9]{3})+")
_NAME = re.compile(r"[^\W\d]\w*")
_NO_OPERATOR = re.compile(r"[\w.)][\w.(]")

_REMAINDER = "% is the remainder, as in 7 % 3; for per cent write / 100"
_GROUPS = "outside a function's parentheses a comma only groups threes, as in 1,234"
_SEPARATES = "inside a function's parentheses a comma separates arguments: 1,234 is written 1234 there"
