"""The environment names that are a public contract; every other setting is CORRAL_ and its path."""

# Keys of clients and of the operator.
CLIENT_KEY = "OPENAI_API_KEY"
CLIENT_KEYS = "OPENAI_API_KEYS"
CLIENT_KEYS_FILE = "OPENAI_API_KEYS_FILE"
OPERATOR_KEY = "OPERATOR_API_KEY"
KEY_NAMES = (CLIENT_KEY, CLIENT_KEYS, CLIENT_KEYS_FILE, OPERATOR_KEY)

# Models that run already.
MODEL_UPSTREAMS = "MODEL_UPSTREAMS"
BASE_URL = "LLAMA_BASE_URL"
MODEL_NAMES = (MODEL_UPSTREAMS, BASE_URL)

# The settings that are secrets.
KEYS = "auth.keys"
UPSTREAM_KEY = "llama.api_key"
STORE_URL = "store.url"
VALKEY_URL = "valkey.url"
SECRETS = frozenset({KEYS, UPSTREAM_KEY, STORE_URL, VALKEY_URL})

# Where the settings file is.
CONFIG_FILE = "CORRAL_CONFIG"

# Names that stand beside the CORRAL_ name of a single setting.
BESIDE = {
    "llama.threads": "LLAMA_THREADS",
    "llama.threads_batch": "LLAMA_THREADS_BATCH",
    "llama.ctx": "LLAMA_CTX",
    "llama.n_batch": "LLAMA_N_BATCH",
    "llama.parallel": "LLAMA_PARALLEL",
    "llama.embeddings": "LLAMA_EMBEDDINGS",
    "llama.server_bin": "LLAMA_SERVER_BIN",
    UPSTREAM_KEY: "LLAMA_API_KEY",
    "llama.model_paths": "MODEL_PATHS",
    "llama.model_path": "MODEL_PATH",
    "llama.enabled": "ENABLED_MODELS",
}

# Keys in merged layers: the models that corral.yaml and the flags name.
MODELS = "models"
MODEL_FLAG = "--model"


def environment_names(path: str) -> tuple[str, ...]:
    """The environment names of the setting at ``path``, the one to prefer first."""
    name = "CORRAL_" + path.upper().replace(".", "_")
    beside = BESIDE.get(path)
    return (name,) if beside is None else (beside, name)
