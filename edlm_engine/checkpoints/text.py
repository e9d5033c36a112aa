"""What text a tokenizer can take."""


def check_text(text: str):
    """Raises ValueError for half of a surrogate pair, which is no character (what JSON or surrogateescape
    make of broken bytes)."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        found = f"character {error.start} is the lone surrogate {text[error.start]!a}"
        raise ValueError(f"{found}, which no UTF-8 text can hold") from None
