"""A refusal: why a request is not answered, in the shape of OpenAI's errors.

{"error": {"message": "…", "type": "invalid_request_error", "param": "top_p", "code": null}}
"""

from typing import Any

from pydantic import ValidationError

from stemma.core.config import complaint
from stemma.core.errors import StemmaError, clipped, printable
from stemma.data.flaws import Flaw

LONGEST, LONGEST_PARAM = 600, 100  # characters of a message, of a parameter's name
TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
}
OUTSIDE = "the model failed; the server's log says why"


class Refusal(Exception):
    """What a client is told. `headers` go along, such as Retry-After."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message = status, clipped(printable(message), LONGEST)
        self.param = None if param is None else clipped(printable(param), LONGEST_PARAM)
        self.code, self.headers = code, headers or {}

    @property
    def body(self) -> dict[str, Any]:
        """The error as JSON has it."""
        kind = TYPES.get(self.status, "invalid_request_error")
        return {
            "error": {
                "message": self.message,
                "type": kind,
                "param": self.param,
                "code": self.code,
            }
        }


def of_flaw(flaw: Flaw) -> Refusal:
    """The refusal for messages or JSON that cannot be used."""
    fix = f"; {flaw.fix}" if flaw.fix else ""
    where = f"{flaw.key}: " if flaw.key else ""
    return Refusal(400, f"{where}{flaw.reason}{fix}", param=flaw.key or None)


def of_validation(error: ValidationError) -> Refusal:
    """The refusal for the first key of a request that is wrong.

    Where keys disagree, the sentence begins with the one at fault.
    """
    key, what, kind = complaint(error)
    inside = error.errors(include_url=False)[0]["loc"]
    param = ".".join(str(part) for part in inside) or what.partition(" ")[0].rstrip(":")
    code = "unknown_parameter" if kind == "extra_forbidden" else None
    shown = clipped(printable(key), 100)
    return Refusal(400, f"{shown}: {what}" if key else what, param=param, code=code)


def of_failure(error: BaseException) -> Refusal:
    """The refusal for what went wrong while a model answered: nothing of this machine is told."""
    what = error.what if isinstance(error, StemmaError) else OUTSIDE
    return Refusal(500, what)
