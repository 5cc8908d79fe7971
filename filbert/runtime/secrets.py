"""Passwords stay out of what is printed and recorded."""

import re

CREDENTIALS = re.compile(r"//[^/@\s]+@")


def without_password(text: object) -> str:
    """The text of a message or address, without the user and password of each address in it."""
    return CREDENTIALS.sub("//", str(text))
