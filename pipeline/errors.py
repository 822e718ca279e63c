"""Every error that nightshift raises on purpose, in one tree; the leaf says what the caller can do.

    NightshiftError                     any of ours
    ├── UsageError                      exit 2: the person can correct it
    │   ├── ConfigError                 the config file or a --set
    │   ├── InputError                  the input data set cannot be used as described
    │   │   └── EmptyInputError         there is nothing to read at all: hold the night if there was something before
    │   └── ModelError                  weights, builder or bundle do not fit
    │       └── DivergedError           training diverged: another learning rate
    ├── StorageError                    the store answered no, and asking again will not help
    │   ├── NotFoundError               no such object
    │   ├── AccessDeniedError           it may exist, but not for us: mend credentials or permissions
    │   ├── AlreadyExistsError          create-only write lost the race: read the winner
    │   └── SourceChangedError          the object is not the version that was planned: plan again
    ├── TransientError                  throttling, timeouts, 5xx: retry the whole attempt
    │   └── StoreFullError              no space or quota is left: somebody has to make room
    ├── ImageError                      one row's image is bad for good: quarantine the row
    ├── IntegrityError                  our own books do not balance: stop, report a bug
    ├── StoppedError                    nobody waits for the result any more: leave
    └── HeldError                       exit 3: finished, but a check holds the result back

Each message has four parts: what was wrong, what was expected, where, what to do next.
"""


class NightshiftError(Exception):
    """Base of all errors raised on purpose."""

    exit_code = 1


class UsageError(NightshiftError):
    """Something that the person who started the command can correct."""

    exit_code = 2


class ConfigError(UsageError):
    """The config file or a `--set` is wrong."""


class InputError(UsageError):
    """The input data set cannot be used as the config describes it."""


class EmptyInputError(InputError):
    """The input does not exist, or holds no file that can be read."""


class ModelError(UsageError):
    """Weights, builder or bundle do not fit together."""


class DivergedError(ModelError):
    """A training whose loss or weights are no finite numbers any more, or whose loss exploded."""


class StorageError(NightshiftError):
    """The storage refused, and the same request would be refused again."""


class NotFoundError(StorageError):
    """No object of that name."""


class AccessDeniedError(StorageError):
    """The storage does not let us: credentials, permissions or a policy."""


class AlreadyExistsError(StorageError):
    """A create-only write found the name taken."""


class SourceChangedError(StorageError):
    """An input object is not the version that was planned."""


class TransientError(NightshiftError):
    """Throttling, timeouts, connection loss, 5xx: the attempt fails, not the row."""


class StoreFullError(TransientError):
    """No space or no quota is left: it may pass, but hardly by itself."""


class ImageError(NightshiftError):
    """One image is bad, and a second read of the same bytes would say the same.

    Parameters
    ----------
    stage : str
        Where the row failed: `read` or `decode`.
    reason : str
        A short slug that groups rows in reports, such as `truncated`.
    message : str
        What a person needs to find the cause.
    """

    def __init__(self, stage: str, reason: str, message: str) -> None:
        super().__init__(stage, reason, message)
        self.stage, self.reason, self.message = stage, reason, message

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}"


class IntegrityError(NightshiftError):
    """Images in differ from labelled plus quarantined, or a committed file is not what the ledger says."""


class StoppedError(NightshiftError):
    """Nobody waits for the result any more."""


class HeldError(NightshiftError):
    """The work is done and kept, but a check holds its publication back."""

    exit_code = 3
