"""Every label that separates one derived stream from another: one list, each used at one place."""

JOINT_SEED = b"lianmo/v1/joint-seed"
NONCE_COMMITMENT = b"lianmo/v1/nonce-commitment"
MATRIX_COMMITMENT = b"lianmo/v1/matrix-commitment"
SEED_COMMITMENT = b"lianmo/v1/seed-commitment"
PAIR_SEED = b"lianmo/v1/pair-seed"

# row keys (protocols/oprf.py)
OPRF_INFO = b"lianmo/v1/oprf-info"
OPRF_BLIND = b"lianmo/v1/oprf-blind"
OPRF_ORDER = b"lianmo/v1/oprf-order"
OPRF_PROOF = b"lianmo/v1/oprf-proof"
ROW_KEY = b"lianmo/v1/row-key"
ROW_KEY_OF_JOB = b"lianmo/v1/row-key-of-job"
ROW_KEY_TAG = b"lianmo/v1/row-key-tag"

# row keys by set OPRF (protocols/set_oprf.py and the modules that it names)
SET_OPRF_CONTEXT = b"lianmo/v1/set-oprf/context"
SET_OPRF_HELLO = b"lianmo/v1/set-oprf/hello"
SET_OPRF_IDENTITY = b"lianmo/v1/set-oprf/identity"
SET_OPRF_REPLY = b"lianmo/v1/set-oprf/reply"
SET_OPRF_SESSION = b"lianmo/v1/set-oprf/session"
SET_OPRF_DELTA = b"lianmo/v1/set-oprf/delta"
SET_OPRF_LIST = b"lianmo/v1/set-oprf/list"
SET_OPRF_NONCE = b"lianmo/v1/set-oprf/nonce"
SET_OPRF_STORE = b"lianmo/v1/set-oprf/store"
SET_OPRF_ROOTS = b"lianmo/v1/set-oprf/roots"
SET_OPRF_CHECK = b"lianmo/v1/set-oprf/check"
SET_OPRF_PLACE = b"lianmo/v1/set-oprf/place"  # at most 32 bytes, as the next: a kernel's block
SET_OPRF_ROW = b"lianmo/v1/set-oprf/row"
SET_OPRF_SNAPSHOT = b"lianmo/v1/set-oprf/snapshot"  # this and the next: federation/tasks/row_keys
SET_OPRF_BANK = b"lianmo/v1/set-oprf/bank"
SET_OPRF_DEPARTMENT = b"lianmo/v1/set-oprf/department"
BASE_OT_POINT = b"lianmo/v1/base-ot/point"
BASE_OT_KEY = b"lianmo/v1/base-ot/key"
SEED_TREE_NODE = b"lianmo/v1/seed-tree/node"
SEED_TREE_LEAF = b"lianmo/v1/seed-tree/leaf"
SEED_TREE_LEAVES = b"lianmo/v1/seed-tree/leaves"

# sealed columns (protocols/sealed.py)
COLUMN_KEY = b"lianmo/v1/column-key"
COLUMN_NONCE = b"lianmo/v1/column-nonce"
ZERO_SUM_MASK = b"lianmo/v1/zero-sum-mask"
ROUNDING = b"lianmo/v1/rounding"

# linear query (protocols/linear_query.py): public, from the joint seed
PUBLIC_A = b"lianmo/v1/public-a"
PUBLIC_PK1 = b"lianmo/v1/public-pk1"
PUBLIC_C1 = b"lianmo/v1/public-c1"
QUERY_CONTEXT = b"lianmo/v1/query-context"
# linear query: the querier's
OUTER_KEY = b"lianmo/v1/outer-key"
OUTER_KEY_ERROR = b"lianmo/v1/outer-key-error"
TOKEN_SECRET = b"lianmo/v1/token-secret"
REQUEST_ERROR = b"lianmo/v1/request-error"
QUERY_ERROR = b"lianmo/v1/query-error"
# linear query: the department's
REPLY_TERNARY = b"lianmo/v1/reply-ternary"
REPLY_ERROR = b"lianmo/v1/reply-error"
REPLY_MASK = b"lianmo/v1/reply-mask"
REPLY_MASK_LOW = b"lianmo/v1/reply-mask-low"
ANSWER_NOISE = b"lianmo/v1/answer-noise"
FORWARD_MASK = b"lianmo/v1/forward-mask"
BANK_SHARE = b"lianmo/v1/bank-share"
HINT_PADDING = b"lianmo/v1/hint-padding"

# secure aggregation (protocols/secagg.py and the modules that it names)
SECAGG_CONTEXT = b"lianmo/v1/secagg/context"
SECAGG_KEYS = b"lianmo/v1/secagg/keys"
SECAGG_COIN = b"lianmo/v1/secagg/coin"
SECAGG_COIN_COMMITMENT = b"lianmo/v1/secagg/coin-commitment"
SECAGG_SELF_SEED = b"lianmo/v1/secagg/self-seed"
SECAGG_SELF_COMMITMENT = b"lianmo/v1/secagg/self-commitment"
SECAGG_ANNOUNCEMENT = b"lianmo/v1/secagg/announcement"
SECAGG_SESSION = b"lianmo/v1/secagg/session"
SECAGG_ORDER = b"lianmo/v1/secagg/order"
SECAGG_SHARING = b"lianmo/v1/secagg/sharing"
SECAGG_SHARE_KEY = b"lianmo/v1/secagg/share-key"
SECAGG_SHARERS = b"lianmo/v1/secagg/sharers"
SECAGG_PAIR_MASK = b"lianmo/v1/secagg/pair-mask"
SECAGG_SELF_MASK = b"lianmo/v1/secagg/self-mask"
SECAGG_VECTOR = b"lianmo/v1/secagg/vector"
SECAGG_SURVIVORS = b"lianmo/v1/secagg/survivors"
SECAGG_ROUNDING = b"lianmo/v1/secagg/rounding"

# tasks (federation/tasks)
BANK_STATISTIC = b"lianmo/v1/bank-statistic"
BATCHES = b"lianmo/v1/batches"
PRIVACY_NOISE = b"lianmo/v1/privacy-noise"
QUANTISE = b"lianmo/v1/quantise"
HOLD_OUT = b"lianmo/v1/hold-out"
DECOY = b"lianmo/v1/decoy"

# one enterprise's score (protocols/masked_total.py, federation/scoring.py)
SCORE_PAIR = b"lianmo/v1/score-pair"
SCORE_SESSION = b"lianmo/v1/score-session"

# rows (federation/registry.py)
REGISTRY = b"lianmo/v1/registry"
COVER = b"lianmo/v1/cover"

# tasks: the agreement, a scorecard (federation/tasks)
JOINT_NONCE = b"lianmo/v1/joint-nonce"
DATA_COMMITMENT = b"lianmo/v1/data-commitment"
ESCROW_SHARES = b"lianmo/v1/escrow/shares"
ESCROW_SHARE = b"lianmo/v1/escrow/share"
ESCROW_HANDED = b"lianmo/v1/escrow/handed"
ESCROW_CUSTOMERS = b"lianmo/v1/escrow/customers"
AUDIT_COINS = b"lianmo/v1/audit-coins"
AUDIT_BUNDLE = b"lianmo/v1/audit-bundle"
AGREEMENT = b"lianmo/v1/agreement"
STEPS = b"lianmo/v1/steps"
OPRF_SEED = b"lianmo/v1/oprf-seed"
ROUNDING_SECRET = b"lianmo/v1/rounding-secret"
COVER_DIGEST = b"lianmo/v1/cover-digest"
DIRECTION_DIGEST = b"lianmo/v1/direction-digest"
MODEL_DIGEST = b"lianmo/v1/model-digest"
