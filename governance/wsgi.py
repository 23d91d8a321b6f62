"""The WSGI application that granian serves."""

import gc
import os

from django.core.wsgi import get_wsgi_application
from django.urls import get_resolver

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "governance.settings")
django_application = get_wsgi_application()
from governance import process  # noqa: E402 - their models need the settings
from governance.erasure_gate import Gate  # noqa: E402

application = Gate(django_application)
# All code is loaded before the first request, not during it; and what lives as long as the process is kept out of the
# garbage collector's full rounds, which else stop every thread for some 75 ms (measured), verify calls among them.
get_resolver().check()
gc.collect()
gc.freeze()
process.begin(application.opens)
process.poll(application.opens)
