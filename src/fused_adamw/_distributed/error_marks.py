"""Marks on errors: what is known of them, whatever their messages say."""


def mark(error: BaseException, name: str, value: object = True) -> None:
    """Mark an error."""
    vars(error)[name] = value


def has_mark(error: BaseException | None, name: str, value: object = True) -> bool:
    """Whether the error, or one that it was raised for, has this mark."""
    while error is not None:
        if vars(error).get(name) == value:
            return True
        error = error.__cause__ or error.__context__
    return False
