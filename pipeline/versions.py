"""Which versions of data this version of the pipeline takes: its own and the one before, so that stages can be
updated one after the other.
"""

from pipeline.errors import SchemaTooNew, SchemaTooOld


def require(what: str, found: int, own: int, todo: str, *, newest: int | None = None) -> None:
    """Is `found` one that can be read, where this pipeline writes `own`? `what` completes "... 3": "X has format".

    Raises SchemaTooNew above `newest` (`own` by default), with what `todo` says, and SchemaTooOld.
    """
    newest = own if newest is None else newest
    if found > newest:
        raise SchemaTooNew(f"{what} {found}; this pipeline knows up to {newest}.", todo)
    if found < max(1, own - 1):
        raise SchemaTooOld(
            f"{what} {found}; this pipeline writes {own}, and reads that and the one before.",
            "Run the versions of the pipeline in between first: each reads what the one before wrote.",
        )
