"""What can go wrong, as a tree. Each error says what happened and what to do about it.

PipelineError
├── TerminalError           stop; a person has to act
│   ├── BadInput            a file, an argument or a setting is wrong
│   ├── SchemaTooNew        the lake, a message or a state was written by a newer version
│   ├── SchemaTooOld        ... by a version older than the one before
│   ├── MigrationDue        a table is still in the layout of the version before
│   ├── ContractBroken      a frame breaks its table's contract: nothing of it was committed
│   ├── CeilingPassed       too much breaks the contract, and the settings say to stop
│   ├── AccessDenied        credentials are wrong or lack a permission
│   ├── NotSetUp            a topic, bucket or table is missing
│   └── HistoryMismatch     lake, topic and consumer group do not belong together (recreated, wiped, restored)
└── TransientError          retried with back-off, a bounded number of times
    ├── Unreachable         Kafka, S3 or the warehouse does not answer
    └── Conflict            another writer was first: read again and try once more
"""


class PipelineError(Exception):
    """Base of the tree.

    `what` says what happened, with the values that matter; `todo` says what to check or which command helps.
    `exit_code` is the process's, where the error ends it.
    """

    exit_code = 1

    def __init__(self, what: str, todo: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.todo = todo

    def __str__(self) -> str:
        return f"{self.what}\n  {self.todo}" if self.todo else self.what


class TerminalError(PipelineError):
    """Trying again would not help."""


class BadInput(TerminalError):
    """A file, an argument or a setting is wrong."""

    exit_code = 2


class SchemaTooNew(TerminalError):
    """Data carry a schema version that this version of the pipeline cannot read."""


class SchemaTooOld(TerminalError):
    """Data carry a schema version that this version of the pipeline no longer reads."""


class MigrationDue(TerminalError):
    """A table has the layout of the version before: it can be read, but not written."""


class ContractBroken(TerminalError):
    """A frame breaks the contract of the table that it was meant for; it was not committed."""


class CeilingPassed(TerminalError):
    """More readings break the contract than the settings allow; those that pass the ceiling were not committed."""


class AccessDenied(TerminalError):
    """Credentials are wrong, expired, or lack a permission."""


class NotSetUp(TerminalError):
    """A topic, a bucket, a table or the warehouse's schema is missing."""


class HistoryMismatch(TerminalError):
    """The lake, the topic and the consumer group do not belong together."""


class TransientError(PipelineError):
    """May go away by itself: retried, with back-off, a bounded number of times."""

    exit_code = 3


class Unreachable(TransientError):
    """An outside system does not answer."""


class Conflict(TransientError):
    """Another writer committed first."""
