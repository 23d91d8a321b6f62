"""Settings of the environment that are no plain text: a value that cannot be is refused by the variable's name."""

import math
from typing import Any

import environ
from django.core.exceptions import ImproperlyConfigured

FALSE = ("false", "off", "no", "n", "0", "")


def _of_int(text: str) -> bool:
    return int(text) is not None


def _of_float(text: str) -> bool:
    return math.isfinite(float(text))


def _of_bool(text: str) -> bool:
    return text.strip().lower() in (*environ.Env.BOOLEAN_TRUE_STRINGS, *FALSE)


WANTED = {int: ("a whole number", _of_int), float: ("a number", _of_float), bool: ("true or false", _of_bool)}


class Environment(environ.Env):
    """Reads variables. An ``int``, ``float`` or ``bool`` that cannot be read raises ImproperlyConfigured: by itself the
    library fails with a trace, takes "1 minute" for 1.0, and whatever is not true for false."""

    def get_value(self, var: str, cast: Any = None, *args: Any, **options: Any) -> Any:
        """The value of ``var``, of the type ``cast``."""
        text = self.ENVIRON.get(var)
        if text is not None and cast in WANTED:
            words, can_be = WANTED[cast]
            try:
                fine = can_be(text)
            except ValueError:
                fine = False
            if not fine:
                raise ImproperlyConfigured(f"{var} must be {words}")
        return super().get_value(var, cast, *args, **options)
