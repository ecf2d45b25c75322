"""Where in HTTP everything is: the paths that daemon and vllmctl share, and the headers of their own.

A module without imports, since vllmctl needs it before a question can leave.
"""

HEALTH = "/health"
READY = "/ready"
STATUS = "/api/status"
EVENTS = "/api/events"
REQUESTS = "/api/requests"
LOGS = "/api/logs"
METRICS = "/metrics"
JOBS = "/api/jobs"
ENVIRONMENTS = "/api/environments"
PULL = "/api/models/pull"
VERIFY = "/api/models/verify"
LOCAL = "/api/models/local"
PRUNE = "/api/models/prune"
PLAN = "/api/plan"
RELOAD = "/api/reload"
INCIDENTS = "/api/incidents"
PROMPT = "/api/prompt"
WORKFLOW_RUNS = "/api/workflows/runs"
CHAT_COMPLETIONS = "/v1/chat/completions"
MODELS = "/v1/models"
OPENAPI = "/openapi.json"
PAGE = "/"
PAGE_FILES = "/page/"

WAIT_HEADER = "X-Vllmd-Wait"
"""`0`: answer 503 at once instead of waiting for the model."""

REPLAYED_HEADER = "X-Vllmd-Replayed"
"""How often a request was sent again because its engine died before the first byte; left out where it was not."""

CONTINUED_HEADER = "X-Vllmd-Continued"
"""A trailer: how often another engine went on with an answer whose engine had died; left out where none did."""
