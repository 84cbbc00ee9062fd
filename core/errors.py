"""The one tree of errors: each has a stable code, an HTTP status and an exit code."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """What a `shoal` command tells the shell. The numbers are a promise to scripts."""

    OK = 0
    FAILED = 1
    USAGE = 2  # a wrong command line or a wrong cluster.toml
    UNREACHABLE = 3
    TIMED_OUT = 4
    REFUSED = 5  # a preflight check said no
    CONFLICT = 6  # the plan is stale
    DENIED = 7
    DEGRADED = 8
    INTERRUPTED = 130


class ShoalError(Exception):
    """Something that a person or a program must be told.

    The text says what happened, why, and what to do next; programs compare `code`.
    """

    code = "internal"
    status = 500
    exit_code = ExitCode.FAILED
    retry_after_s: int | None = None


class InvariantBroken(ShoalError):
    """A rule that only a bug or damaged memory can break. The process must stop trusting itself."""

    code = "invariant-broken"


class BadRequest(ShoalError):
    """The request cannot be understood; the text names the field."""

    code, status, exit_code = "bad-request", 400, ExitCode.USAGE


class NotSupported(BadRequest):
    """A feature of the API that Shoal refuses; the text names the field."""

    code = "not-supported"


class Unprocessable(ShoalError):
    """The request is understood, but a value is out of its range."""

    code, status, exit_code = "unprocessable", 422, ExitCode.USAGE


class Unauthorized(ShoalError):
    """No key, or one that this cluster does not know."""

    code, status, exit_code = "unauthorized", 401, ExitCode.DENIED


class Forbidden(ShoalError):
    """The key is known and may not do this."""

    code, status, exit_code = "forbidden", 403, ExitCode.DENIED


class NotFound(ShoalError):
    """A collection, point, alias or snapshot that does not exist."""

    code, status = "not-found", 404

    @classmethod
    def collection(cls, name: str) -> NotFound:
        # Integrations look for this wording in the first 200 bytes of the answer.
        return cls(f"Not found: Collection `{name}` doesn't exist!")


class DeadlineExceeded(ShoalError):
    """The request's own deadline passed; what it had begun may still take effect."""

    code, status, exit_code = "timeout", 408, ExitCode.TIMED_OUT


class Conflict(ShoalError):
    """The thing exists already, or changed since it was read."""

    code, status, exit_code = "conflict", 409, ExitCode.CONFLICT


class TooLarge(ShoalError):
    """The body is over the limit."""

    code, status = "too-large", 413


class RateLimited(ShoalError):
    """A strict mode limit; `retry_after_s` is None if waiting cannot help."""

    code, status = "rate-limited", 429

    def __init__(self, text: str, *, retry_after_s: int | None = None) -> None:
        super().__init__(text)
        self.retry_after_s = retry_after_s


class Overloaded(ShoalError):
    """A bounded queue is full, or memory is low: try again."""

    code, status = "overloaded", 503

    def __init__(self, text: str, *, retry_after_s: int = 1) -> None:
        super().__init__(text)
        self.retry_after_s = retry_after_s


class Unavailable(ShoalError):
    """The store, or too many replicas, cannot answer now."""

    code, status, exit_code = "unavailable", 503, ExitCode.UNREACHABLE


class NoRoom(ShoalError):
    """Free disk space is below the low-water mark: writes are refused, reads go on."""

    code, status = "no-room", 507


class Damaged(ShoalError):
    """A file does not match its checksum. The text names the file and what can rebuild it."""

    code, status = "damaged", 500


class ConfigInvalid(ShoalError):
    """cluster.toml or the environment is wrong; the text lists every mistake."""

    code, status, exit_code = "config-invalid", 500, ExitCode.USAGE


class StartRefused(ShoalError):
    """This machine or this data folder cannot run the agent; the text says why."""

    code, status, exit_code = "start-refused", 500, ExitCode.REFUSED
