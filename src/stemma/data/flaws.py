"""A flaw: something in an input file that cannot become a document, and exactly where it is.

Readers yield a flaw for one line or row and go on, or raise it when the rest of the file is
lost. What then happens is decided in one place, `stemma.data.documents`: an error, or a reject.
"""


class Flaw(Exception):
    """One unusable line, row or file.

    `line` counts from 1; `column` counts characters of the line from 1; `byte` counts bytes of
    the line from 0. `missing_key` marks a line that has no text key at all. `ends_file` marks a
    flaw after which nothing more of the file can be read.
    """

    def __init__(
        self,
        reason: str,
        *,
        line: int | None = None,
        column: int | None = None,
        byte: int | None = None,
        key: str = "",
        fix: str = "",
        missing_key: bool = False,
        ends_file: bool = False,
    ) -> None:
        super().__init__(reason)
        self.reason, self.line, self.column, self.byte = reason, line, column, byte
        self.key, self.fix = key, fix
        self.missing_key, self.ends_file = missing_key, ends_file

    def place(self, source: str) -> str:
        """`file:line:column`, as far as each is known: "a.jsonl:3:17", "a.txt:2:byte 40"."""
        parts = [source]
        if self.line is not None:
            parts.append(str(self.line))
        if self.byte is not None:
            parts.append(f"byte {self.byte}")
        elif self.column is not None:
            parts.append(str(self.column))
        if self.key:
            parts.append(self.key)
        return ":".join(parts)
