#!/usr/bin/env python
"""Django's command line. Without MUNIMENT_MODE it joins the instance that `make run` left under MUNIMENT_VAR."""

import os
import sys
from pathlib import Path


def join_running_instance() -> None:
    """Load `instance.env`, which the supervisor writes, so that a second shell needs no set-up."""
    if "MUNIMENT_MODE" in os.environ:
        return
    path = Path(os.environ.get("MUNIMENT_VAR", "var")) / "instance.env"
    if not path.is_file():
        return
    for line in path.read_text().splitlines():
        name, separator, value = line.partition("=")
        if separator:
            os.environ.setdefault(name, value)


def main() -> None:
    """Run one command."""
    join_running_instance()
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "governance.settings")
    from django.core.exceptions import ImproperlyConfigured
    from django.core.management import execute_from_command_line

    try:
        execute_from_command_line(sys.argv)
    except ImproperlyConfigured as error:
        sys.stderr.write(f"muniment: {error}\n")
        sys.exit(2)


if __name__ == "__main__":
    main()
