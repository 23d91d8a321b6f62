"""Settings: this one file, from the environment only.

Every secret may come as NAME or as NAME_FILE (a path to read it from). A process gets only its own keys and
refuses to start with another's (DESIGN.md section 6, Keys).
"""

import base64
import binascii
import os
import secrets
from pathlib import Path
from urllib.parse import urlsplit

from celery.schedules import crontab
from csp.constants import NONE, SELF
from django.core.exceptions import ImproperlyConfigured
from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict

from governance import logs, role_mapping
from governance.environment import Environment

BASE_DIR = Path(__file__).resolve().parent.parent
env = Environment()

MUNIMENT_MODE = env.str("MUNIMENT_MODE", "production")
MUNIMENT_PROCESS = env.str("MUNIMENT_PROCESS", "manage")
MUNIMENT_DEMO = MUNIMENT_MODE == "demo"
MUNIMENT_VAR = Path(env.str("MUNIMENT_VAR", "") or "var").absolute()
MUNIMENT_PORT = env.int("MUNIMENT_PORT", 8000)

if MUNIMENT_MODE not in ("production", "demo"):
    raise ImproperlyConfigured(f"MUNIMENT_MODE is {MUNIMENT_MODE!r}; it must be production or demo")

# --- keys -------------------------------------------------------------------------------------------------

KEYS_OF_PROCESS = {
    "web": {"DJANGO_SECRET", "WRITER_KEY", "ASSERTION_KEY", "KEY_ENCRYPTION_KEY", "PEPPER"},
    "worker": {"EXPORT_KEY"},
    "beat": set(),
    "seal": {"LOG_KEY"},
    "manage": {"DJANGO_SECRET", "KEY_ENCRYPTION_KEY", "PEPPER"},
}
# Whether exports may hold personal data: the worker then has what opens it.
MUNIMENT_EXPORT_PERSONAL = env.bool("MUNIMENT_EXPORT_PERSONAL", False)
if MUNIMENT_EXPORT_PERSONAL:
    KEYS_OF_PROCESS["worker"] |= {"KEY_ENCRYPTION_KEY", "PEPPER"}
ALL_KEYS = frozenset().union(*KEYS_OF_PROCESS.values())


def read_secret(name: str) -> str | None:
    """The value of NAME, or the stripped text of the file that NAME_FILE names, or None. No line of the log has it."""
    value = os.environ.get(name)
    if not value and (path := os.environ.get(f"{name}_FILE")):
        try:
            value = Path(path).read_text().strip()
        except OSError as error:
            raise ImproperlyConfigured(f"{name}_FILE cannot be read: {error.strerror}") from None
        except UnicodeDecodeError:
            raise ImproperlyConfigured(f"{name}_FILE cannot be read: it is no text") from None
    logs.hide(value)
    return value or None


def read_keys(process: str) -> dict[str, bytes]:
    """The keys of this process, 32 bytes each. Raises ImproperlyConfigured for a missing or a foreign one."""
    if process not in KEYS_OF_PROCESS:
        raise ImproperlyConfigured(f"MUNIMENT_PROCESS is {process!r}; one of {', '.join(KEYS_OF_PROCESS)}")
    keys = {}
    for name in sorted(ALL_KEYS):
        variable = f"MUNIMENT_{name}"
        text = read_secret(variable)
        if name not in KEYS_OF_PROCESS[process]:
            if text is not None:
                raise ImproperlyConfigured(f"{variable} is set, but the process {process!r} must not have it")
            continue
        if text is None:
            raise ImproperlyConfigured(f"{variable} (or {variable}_FILE) is missing; {process!r} needs it")
        try:
            keys[name] = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            raise ImproperlyConfigured(f"{variable} is not base64") from None
        if len(keys[name]) != 32:
            raise ImproperlyConfigured(f"{variable} must be 32 bytes in base64")
    return keys


MUNIMENT_KEYS = read_keys(MUNIMENT_PROCESS)
# Only web and manage sign sessions; the others get a value that nothing they make can outlive.
SECRET_KEY = MUNIMENT_KEYS.get("DJANGO_SECRET", secrets.token_bytes(32)).hex()

# --- where it is served -----------------------------------------------------------------------------------

DEBUG = False
if MUNIMENT_DEMO:
    # The demo issuer hands out tokens to anyone who asks: it must not be reachable under a public name.
    ALLOWED_HOSTS = ["localhost", "127.0.0.1", "[::1]"]
    MUNIMENT_URL = f"http://127.0.0.1:{MUNIMENT_PORT}"
else:
    ALLOWED_HOSTS = env.list("MUNIMENT_HOSTS", default=[])
    MUNIMENT_URL = env.str("MUNIMENT_URL", f"https://{ALLOWED_HOSTS[0]}" if ALLOWED_HOSTS else "")
CSRF_TRUSTED_ORIGINS = [MUNIMENT_URL] if MUNIMENT_URL else []
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https") if env.bool("MUNIMENT_PROXY_TLS", False) else None
SECURE_SSL_REDIRECT = not MUNIMENT_DEMO
SECURE_REDIRECT_EXEMPT = [r"^livez$", r"^readyz$", r"^metrics$"]
SECURE_HSTS_SECONDS = 0 if MUNIMENT_DEMO else 31536000
SECURE_HSTS_INCLUDE_SUBDOMAINS = not MUNIMENT_DEMO
SECURE_HSTS_PRELOAD = not MUNIMENT_DEMO
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = not MUNIMENT_DEMO
SESSION_COOKIE_HTTPONLY = CSRF_COOKIE_HTTPONLY = True
SESSION_COOKIE_SAMESITE = "Lax"
# Names that a sibling of this host cannot set a cookie under (RFC 6265bis, __Host-).
SESSION_COOKIE_NAME = "sessionid" if MUNIMENT_DEMO else "__Host-muniment"
CSRF_COOKIE_NAME = "csrftoken" if MUNIMENT_DEMO else "__Host-muniment-csrf"
SESSION_COOKIE_AGE = 12 * 3600  # in all; without activity it ends sooner, see governance.staff_sessions
MUNIMENT_SESSION_IDLE = env.int("MUNIMENT_SESSION_IDLE", 1800)
X_FRAME_OPTIONS = "DENY"
SECURE_REFERRER_POLICY = "same-origin"
CSRF_FAILURE_VIEW = "governance.error_pages.csrf_failure"
CONTENT_SECURITY_POLICY = {
    "DIRECTIVES": {
        "default-src": [NONE],
        "script-src": [SELF],
        "style-src": [SELF],
        "img-src": [SELF, "data:"],
        "font-src": [SELF],
        "connect-src": [SELF],
        "form-action": [SELF],
        "frame-ancestors": [NONE],
        "base-uri": [NONE],
        "object-src": [NONE],
    }
}

# --- applications -----------------------------------------------------------------------------------------

INSTALLED_APPS = [
    "governance.apps.GovernanceAdminConfig",
    "governance.apps.GovernanceConfig",
    "clients",
    "tools",
    "audit",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "rest_framework",
    "drf_spectacular",
    "django_celery_beat",
]
MIDDLEWARE = [
    "governance.logs.Numbered",
    "governance.headers.PageHeaders",
    "django.middleware.security.SecurityMiddleware",
    "governance.shortcut.ApiShortcut",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "governance.staff_sessions.StaffSessions",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "governance.error_pages.NotAllowed",
]
ROOT_URLCONF = "governance.urls"
WSGI_APPLICATION = "governance.wsgi.application"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator", "OPTIONS": {"min_length": 12}},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]
PASSWORD_HASHERS = [
    "governance.demo_hasher.DemoPasswordHasher" if MUNIMENT_DEMO else "django.contrib.auth.hashers.PBKDF2PasswordHasher"
]
AUTHENTICATION_BACKENDS = ["governance.staff_passwords.PasswordBackend", "governance.staff_oidc.StaffBackend"]
LOGIN_URL = "admin:login"
STATIC_URL = "/static/"
# The demo serves static files from where they are; production from where `manage.py collectstatic` put them.
STATIC_ROOT = None if MUNIMENT_DEMO else MUNIMENT_VAR / "static"
WHITENOISE_USE_FINDERS = MUNIMENT_DEMO
LANGUAGE_CODE = "en"
USE_TZ = True
TIME_ZONE = "UTC"

# --- how staff sign in ------------------------------------------------------------------------------------


def oidc_secret(process: str) -> str:
    """The client secret, which web processes alone have. Raises ImproperlyConfigured for another's, and where a web
    process is to use a provider without one."""
    secret = read_secret("MUNIMENT_OIDC_CLIENT_SECRET") or ""
    if secret and process != "web":
        raise ImproperlyConfigured(f"MUNIMENT_OIDC_CLIENT_SECRET is set, but the process {process!r} must not have it")
    if process == "web" and MUNIMENT_OIDC_ISSUER and not secret:
        raise ImproperlyConfigured("MUNIMENT_OIDC_CLIENT_SECRET (or MUNIMENT_OIDC_CLIENT_SECRET_FILE) is missing")
    return secret


def oidc_roles(pairs: str, admin_group: str) -> dict[str, frozenset[str]]:
    """Which roles the provider's groups give. Raises ImproperlyConfigured, without a group's name."""
    try:
        return role_mapping.parse(pairs, admin_group)
    except ValueError as error:
        raise ImproperlyConfigured(f"MUNIMENT_OIDC_ROLES cannot be read: {error}") from None


MUNIMENT_LOCAL_PASSWORDS = env.bool("MUNIMENT_LOCAL_PASSWORDS", MUNIMENT_DEMO)
MUNIMENT_OIDC_ISSUER = env.str("MUNIMENT_OIDC_ISSUER", "")
MUNIMENT_OIDC_NAME = env.str("MUNIMENT_OIDC_NAME", "")
MUNIMENT_OIDC_CLIENT_ID = env.str("MUNIMENT_OIDC_CLIENT_ID", "")
MUNIMENT_OIDC_CLIENT_SECRET = oidc_secret(MUNIMENT_PROCESS)
MUNIMENT_OIDC_SCOPES = env.str("MUNIMENT_OIDC_SCOPES", "openid email profile")
MUNIMENT_OIDC_GROUPS_CLAIM = env.str("MUNIMENT_OIDC_GROUPS_CLAIM", "groups")
MUNIMENT_OIDC_TENANTS_CLAIM = env.str("MUNIMENT_OIDC_TENANTS_CLAIM", "")
MUNIMENT_OIDC_ROLES = oidc_roles(env.str("MUNIMENT_OIDC_ROLES", ""), env.str("MUNIMENT_OIDC_ADMIN_GROUP", ""))

# --- who may scrape /metrics ------------------------------------------------------------------------------


def metrics_token(process: str) -> str:
    """The token that opens /metrics, which web processes alone have; empty where there is none. Raises
    ImproperlyConfigured for one that could be guessed or cannot be sent."""
    token = read_secret("MUNIMENT_METRICS_TOKEN") or ""
    if token and process != "web":
        raise ImproperlyConfigured(f"MUNIMENT_METRICS_TOKEN is set, but the process {process!r} must not have it")
    if token and (len(token) < 16 or not token.isascii() or not token.isprintable() or " " in token):
        raise ImproperlyConfigured("MUNIMENT_METRICS_TOKEN must be 16 or more printable ASCII characters, no spaces")
    return token


MUNIMENT_METRICS_TOKEN = metrics_token(MUNIMENT_PROCESS)

# --- data -------------------------------------------------------------------------------------------------


# No call and no page waits longer than this for the database, whatever somebody else holds open there.
WEB_LIMITS = {"options": "-c lock_timeout=2s -c statement_timeout=10s"}


def database(variable: str) -> dict[str, object]:
    """Django's settings for a PostgreSQL URL; the only database there is."""
    url = read_secret(variable) or ""
    wrong = ImproperlyConfigured(f"{variable} (or {variable}_FILE) must be a postgresql:// URL")
    if not url.startswith(("postgres://", "postgresql://")):
        raise wrong
    try:
        parts = conninfo_to_dict(url)
    except ProgrammingError:  # its words may hold the password
        raise wrong from None
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": parts.pop("dbname", ""),
        "USER": parts.pop("user", ""),
        "PASSWORD": parts.pop("password", ""),
        "HOST": parts.pop("host", ""),
        "PORT": str(parts.pop("port", "")),
        "OPTIONS": {"connect_timeout": 5, **(WEB_LIMITS if MUNIMENT_PROCESS == "web" else {}), **parts},
        # Threads of a web process keep their connection; a dead one is noticed before it is used.
        "CONN_MAX_AGE": 60,
        "CONN_HEALTH_CHECKS": True,
    }


DATABASES = {"default": database("DATABASE_URL")}
if read_secret("DATABASE_OWNER_URL"):
    # Owns the tables: migrations, partitions, retention. Web processes are not given it.
    DATABASES["owner"] = database("DATABASE_OWNER_URL")
MUNIMENT_SERVING_ROLE = str(DATABASES["default"]["USER"])
REDIS_URL = read_secret("REDIS_URL") or ""
if not REDIS_URL.startswith(("redis://", "rediss://", "unix://")):
    raise ImproperlyConfigured("REDIS_URL (or REDIS_URL_FILE) must be a redis://, rediss:// or unix:// URL")

CELERY_BROKER_URL = read_secret("CELERY_BROKER_URL") or REDIS_URL
CELERY_TASK_IGNORE_RESULT = True
CELERY_TIMEZONE = "UTC"
CELERY_TASK_ACKS_LATE = True
CELERY_TASK_TIME_LIMIT = 3600
CELERY_WORKER_HIJACK_ROOT_LOGGER = False
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
MUNIMENT_ANCHOR_INTERVAL = env.float("MUNIMENT_ANCHOR_INTERVAL", 60.0)
CELERY_BEAT_SCHEDULER = "django_celery_beat.schedulers:DatabaseScheduler"
CELERY_BEAT_SCHEDULE = {
    # What was not begun before the next one is due is dropped, so that runs cannot pile up behind an outage.
    name: {"task": task, "schedule": seconds, "options": {"expires": seconds}}
    for name, task, seconds in [
        ("refresh key sets", "clients.tasks.refresh_key_sets", 300.0),
        ("read client metadata", "clients.tasks.refresh_client_metadata", 300.0),
        ("lapse requests", "clients.tasks.lapse_requests", 3600.0),
        ("forget receipts", "clients.tasks.forget_receipts", 24 * 3600.0),
        ("make partitions", "audit.tasks.make_partitions", 3600.0),
        ("count records", "audit.tasks.count_records", 5.0),
        ("clear outbox", "audit.tasks.clear_outbox", 3600.0),
        ("erase users", "audit.tasks.erase_users", 10.0),
        ("hold erasures", "audit.tasks.hold_erasures", 3600.0),
        ("make exports", "audit.tasks.export_sweep", 60.0),
        ("clear sessions", "governance.tasks.clear_sessions", 3600.0),
        ("notify", "governance.tasks.notify", 60.0),
        ("push anchors", "audit.tasks.push_anchors", MUNIMENT_ANCHOR_INTERVAL),
        ("publish destinations", "audit.tasks.publish_destinations", 60.0),
        ("mail exports", "audit.tasks.mail_exports", 60.0),
        ("sweep kept exports", "audit.tasks.sweep_exports", 24 * 3600.0),
        ("stream records", "audit.tasks.stream_records", 5.0),
        ("verify a sample", "audit.tasks.verify_sample", 3600.0),
        ("go on with retention", "audit.tasks.retain_further", 300.0),
    ]
} | {
    # By the clock (UTC), when fewest call.
    name: {"task": task, "schedule": crontab(hour=str(hour), minute="0"), "options": {"expires": 6 * 3600}}
    for name, task, hour in [
        ("retention", "audit.tasks.retain", 2),
        ("verify the whole log", "audit.tasks.verify_all", 3),
    ]
}
DJANGO_CELERY_BEAT_TZ_AWARE = True

REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": [],
    # A view that forgets to say who may call it is closed.
    "DEFAULT_PERMISSION_CLASSES": ["rest_framework.permissions.IsAuthenticated"],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_PARSER_CLASSES": ["rest_framework.parsers.JSONParser"],
    "DEFAULT_SCHEMA_CLASS": "drf_spectacular.openapi.AutoSchema",
    "EXCEPTION_HANDLER": "governance.problems.handle",
    "UNAUTHENTICATED_USER": None,
}
SPECTACULAR_SETTINGS = {
    "TITLE": "Muniment",
    "DESCRIPTION": "Verify, decide and record what AI clients do.",
    "VERSION": "1",
    "OAS_VERSION": "3.1.0",
    "SERVE_PERMISSIONS": [],
    "SERVE_AUTHENTICATION": [],
    "SERVE_INCLUDE_SCHEMA": False,
    "SCHEMA_PATH_PREFIX": "/v1",
    "POSTPROCESSING_HOOKS": ["governance.schema.add_components", "governance.schema_words.add_words"],
}

# --- Muniment ---------------------------------------------------------------------------------------------

DATA_UPLOAD_MAX_MEMORY_SIZE = MUNIMENT_MAX_BODY = 256 * 1024
MUNIMENT_JWKS_COOLDOWN = env.int("MUNIMENT_JWKS_COOLDOWN", 30)
MUNIMENT_JWKS_MAX_STALE = env.int("MUNIMENT_JWKS_MAX_STALE", 24 * 3600)
# Whether the worker reads what is published about clients whose id is a URL. From the demo nothing is asked elsewhere.
MUNIMENT_CLIENT_METADATA = env.bool("MUNIMENT_CLIENT_METADATA", not MUNIMENT_DEMO)
# Seconds between two polls of a transmitter of security events.
MUNIMENT_SIGNAL_POLL_SECONDS = env.float("MUNIMENT_SIGNAL_POLL_SECONDS", 5.0)
if not 1 <= MUNIMENT_SIGNAL_POLL_SECONDS <= 3600:
    raise ImproperlyConfigured("MUNIMENT_SIGNAL_POLL_SECONDS must be 1 to 3600")
MUNIMENT_FAILURES_PER_SECOND = env.int("MUNIMENT_FAILURES_PER_SECOND", 100)
MUNIMENT_FAILURES_BURST = env.int("MUNIMENT_FAILURES_BURST", 1000)
MUNIMENT_QUEUE = env.int("MUNIMENT_QUEUE", 2048)
MUNIMENT_RECORD_TIMEOUT = env.float("MUNIMENT_RECORD_TIMEOUT", 5.0)
MUNIMENT_SEALED_WAITERS = env.int("MUNIMENT_SEALED_WAITERS", 4)
# How the search of AuthZEN names users: by uid, or as their issuer does.
MUNIMENT_AUTHZEN_SUBJECTS = env.str("MUNIMENT_AUTHZEN_SUBJECTS", "uid")
if MUNIMENT_AUTHZEN_SUBJECTS not in ("uid", "sub"):
    raise ImproperlyConfigured("MUNIMENT_AUTHZEN_SUBJECTS must be uid or sub")
MUNIMENT_REQUEST_DAYS = env.int("MUNIMENT_REQUEST_DAYS", 14)
if not 1 <= MUNIMENT_REQUEST_DAYS <= 365:
    raise ImproperlyConfigured("MUNIMENT_REQUEST_DAYS must be 1 to 365")


def days(variable: str, default: int, least: int = 1) -> int:
    """A number of days from the environment, at most a hundred years. Raises ImproperlyConfigured."""
    number = env.int(variable, default)
    if not least <= number <= 36_500:
        raise ImproperlyConfigured(f"{variable} must be {least} to 36500")
    return number


# Where the files of exports are kept for download, and for how long.
MUNIMENT_EXPORTS = Path(env.str("MUNIMENT_EXPORTS", "") or MUNIMENT_VAR / "exports").absolute()
MUNIMENT_EXPORT_DAYS = days("MUNIMENT_EXPORT_DAYS", 30)
# How long backups are kept: so long after an erasure the user may still be in one.
MUNIMENT_BACKUP_DAYS = days("MUNIMENT_BACKUP_DAYS", 35, least=0)
# How long the details of callers that could not be established can be read.
MUNIMENT_UNESTABLISHED_DAYS = days("MUNIMENT_UNESTABLISHED_DAYS", 30)
# The log's name for ever (C2SP tlog-checkpoint: a schema-less URL); it must not change when the host does.
MUNIMENT_LOG_ORIGIN = env.str("MUNIMENT_LOG_ORIGIN", f"{urlsplit(MUNIMENT_URL).hostname or 'muniment'}/log")
MUNIMENT_SEAL_STATE = Path(env.str("MUNIMENT_SEAL_STATE", "") or MUNIMENT_VAR / "seal").absolute()
# Keys that the verification trusts, as lines or as a saved /v1/keys; else it believes those that the log begins with.
MUNIMENT_TRUST = env.str("MUNIMENT_TRUST_FILE", "")
MUNIMENT_ANCHORS = (read_secret("MUNIMENT_ANCHORS") or "").split()


def of_worker(variable: str, process: str) -> str:
    """What is configured with credentials and is the worker's alone; a manage.py command may check it. Raises
    ImproperlyConfigured for another process."""
    text = read_secret(variable) or ""
    if text and process not in ("worker", "manage"):
        raise ImproperlyConfigured(f"{variable} is set, but the process {process!r} must not have it")
    return text


# Where exports are delivered to, as a YAML list: audit.destinations.
MUNIMENT_DESTINATIONS = of_worker("MUNIMENT_DESTINATIONS", MUNIMENT_PROCESS)
# Where records are streamed to, as a YAML list: audit.streams.delivering.
MUNIMENT_STREAMS = of_worker("MUNIMENT_STREAMS", MUNIMENT_PROCESS)
# Whom notifications are sent to besides staff: a URL and a secret (governance.notifications_sending).
MUNIMENT_NOTIFY_WEBHOOK = of_worker("MUNIMENT_NOTIFY_WEBHOOK", MUNIMENT_PROCESS)


def mail_server(url: str) -> dict[str, object]:
    """Django's settings for the URL of a mail server."""
    try:
        if urlsplit(url).scheme not in ("smtp", "smtp+tls", "smtp+ssl") or not urlsplit(url).hostname:
            raise ValueError
        return dict(env.email_url_config(url))
    except ValueError:
        # Not the URL itself, which may hold a password.
        words = "MUNIMENT_EMAIL_URL (or MUNIMENT_EMAIL_URL_FILE) must be an smtp, smtp+tls or smtp+ssl URL"
        raise ImproperlyConfigured(words) from None


# The worker sends mail, to mailboxes that are anchors.
vars().update(mail_server(read_secret("MUNIMENT_EMAIL_URL") or "smtp://localhost:25"))
EMAIL_TIMEOUT = 10
DEFAULT_FROM_EMAIL = env.str("MUNIMENT_EMAIL_FROM", f"muniment@{urlsplit(MUNIMENT_URL).hostname or 'localhost'}")

MUNIMENT_LOG_FORMAT = env.str("MUNIMENT_LOG_FORMAT", "text" if MUNIMENT_DEMO else "json")
if MUNIMENT_LOG_FORMAT not in logs.FORMATS:
    raise ImproperlyConfigured("MUNIMENT_LOG_FORMAT must be json or text")
MUNIMENT_LOG_LEVEL = env.str("MUNIMENT_LOG_LEVEL", "INFO")
if MUNIMENT_LOG_LEVEL not in logs.LEVELS:
    raise ImproperlyConfigured(f"MUNIMENT_LOG_LEVEL must be one of {', '.join(logs.LEVELS)}")
LOGGING = logs.configuration(MUNIMENT_PROCESS, MUNIMENT_LOG_LEVEL, MUNIMENT_LOG_FORMAT)
