"""Passwords stay out of what is printed and recorded."""

import re

CREDENTIALS = re.compile(r"//[^/\s]+@")  # a password may have an @ in it
QUERY = re.compile(r"([?&]\w*(?:password|token|secret|key)=)[^&\s]+", re.IGNORECASE)


def without_password(text: object) -> str:
    """The text of a message or address, without the user and password of each address in it."""
    return QUERY.sub(r"\1…", CREDENTIALS.sub("//", str(text)))
